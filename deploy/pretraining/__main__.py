"""Make the trunk that policies see by: ``python -m deploy.pretraining --out policy/trunks``."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import torch
from safetensors.torch import save

from deploy.pretraining.scenes import draw_scenes
from deploy.pretraining.trunk import train_trunk
from host.files import write_durable
from policy.artefacts import artefact_digest

SIZES = ((64, 48), (96, 72))


def main() -> None:
    """Draw, train, and write the trunk under its digest with a note of how it was made."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=6000, help="of each size")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    scenes = draw_scenes(SIZES, asked.pictures, asked.seed)
    trunk, errors = train_trunk(scenes, asked.steps, asked.seed)
    asked.out.mkdir(parents=True, exist_ok=True)
    fresh = asked.out / "new"
    write_durable(fresh, save(trunk.state_dict()))
    digest = artefact_digest(fresh)
    fresh.rename(asked.out / digest)
    note = {
        "sha256": digest,
        "command": (
            f"python -m deploy.pretraining --out policy/trunks --pictures {asked.pictures} "
            f"--steps {asked.steps} --seed {asked.seed}"
        ),
        "cube_error_widths": round(float(errors[-200:].mean()), 5),  # of the picture, a mean
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    write_durable(asked.out / f"{digest}.json", (json.dumps(note, indent=2) + "\n").encode())
    print(json.dumps(note))


if __name__ == "__main__":
    main()
