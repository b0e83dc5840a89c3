"""What an untrained ResNet learns behind group norm and behind LeRobot's frozen identity norm.

    python benchmarks/backbone_norm.py [--steps 200] [--seeds 1] [--json FILE]

A made-up pick: where the cube lies shows only as a few pixels of a 48 by 64 picture. ACT with a
ResNet-18 is trained on 24 demonstrations and scored on 12 with other places. Prints one JSON
object: for each norm and seed the held-out error of the actions in joint units, and seconds a
step; beside them the error where every picture is black, which is what the joints alone can tell.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

import numpy as np
import torch
from synthetic_pick import JOINTS, frames_of, normalizer_of

from policy.batches import Frames, VectorBatches
from policy.build import Tensors, build_policy, build_processors
from policy.kinds.act import ActSpec
from policy.spec import ENVIRONMENT, CameraSpec
from policy.statistics import Normalizer
from policy.train import LocalTraining, held_out_error

CAMERA = CameraSpec(name="overhead", height=48, width=64)
CUBE = 5  # pixels
REACH_X_M, REACH_Y_M = (0.15, 0.22), (-0.07, 0.07)
CASES = {"group": ("group", False), "frozen": ("frozen", False), "black": ("group", True)}


def pictures(places: np.ndarray, black: bool) -> torch.Tensor:
    """A red square on a noisy table for each place [N,2] in metres; uint8 [N,3,48,64]."""
    dice = np.random.default_rng(0)
    height, width = CAMERA.height, CAMERA.width
    drawn = dice.integers(60, 90, (len(places), 3, height, width), dtype=np.uint8)
    for picture, (x_m, y_m) in zip(drawn, places, strict=True):
        row = int(np.interp(x_m, REACH_X_M, (0, height - CUBE)))
        column = int(np.interp(y_m, REACH_Y_M, (0, width - CUBE)))
        picture[:, row : row + CUBE, column : column + CUBE] = np.array([[[200]], [[30]], [[30]]])
    return torch.from_numpy(drawn * np.uint8(not black))


def examples(frames: Frames, spec: ActSpec, normalizer: Normalizer, black: bool) -> Tensors:
    """All frames as one normalised batch."""
    (whole,) = VectorBatches(frames, spec, normalizer).ordered(len(frames.episode))
    preprocess, _ = build_processors(spec, normalizer)
    raw = pictures(frames.vectors[ENVIRONMENT], black).to(torch.float32) / 255.0
    return whole | {CAMERA.key: preprocess({CAMERA.key: raw})[CAMERA.key]}


def learn(norm: str, black: bool, seed: int, steps: int) -> dict[str, float]:
    """Held-out error after so many steps, and their mean time."""
    spec = ActSpec.model_validate(
        {
            "state_names": JOINTS,
            "action_names": JOINTS,
            "cameras": [CAMERA],
            "fps": 30,
            "batch_size": 16,
            "backbone": "resnet18",
            "backbone_norm": norm,
        }
    )
    frames, unseen = frames_of(24, seed=1), frames_of(12, seed=2)
    normalizer = normalizer_of(frames, spec)
    training_set = examples(frames, spec, normalizer, black)
    held_out = examples(unseen, spec, normalizer, black)
    training = LocalTraining(build_policy(spec, normalizer, seed), spec)
    dice = torch.Generator().manual_seed(seed)
    began_s = time.process_time()
    for _ in range(steps):
        rows = torch.randint(len(frames.episode), (spec.batch_size,), generator=dice)
        training.step({name: values[rows] for name, values in training_set.items()})
    step_s = (time.process_time() - began_s) / steps
    error = held_out_error(training.policy, [held_out], normalizer)
    return {"held_out_mae": round(error.action_mae, 3), "cpu_s_per_step": round(step_s, 3)}


def main() -> int:
    """Run, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the result there as well")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"steps": arguments.steps}
    for name, (norm, black) in CASES.items():
        runs = [learn(norm, black, seed, arguments.steps) for seed in range(arguments.seeds)]
        median = statistics.median(run["held_out_mae"] for run in runs)
        result[name] = {"held_out_mae": median, "runs": runs}
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
