"""Job: a base as a release folder: policy.onnx with the normaliser inside, and manifest.json.

The golden observations are drawn from the normaliser (mean + k·std), so they show nobody's data;
their actions are LeRobot's own, by torch, and the ONNX file must give the same before it is shown
to anybody. Request: weights, spec, normalizer, folder, version, round, base_digest, evaluation,
contributors, created_unix_s, result. Result: manifest_digest, max_abs_error.
"""

from __future__ import annotations

import json
import sys
from hashlib import file_digest
from pathlib import Path
from typing import Any

import torch

from coordinator.jobs.runner import read_request
from host.files import write_durable
from policy.build import build_policy, build_processors, write_weights
from policy.errors import PolicyError
from policy.export import Observation, check_parity, export_onnx, golden_observations, input_names
from policy.spec import PolicySpec
from policy.statistics import Normalizer
from policy.weights import load_weights
from protocol.errors import BadManifest
from protocol.manifest import (
    MANIFEST_NAME,
    POLICY_NAME,
    FileEntry,
    Golden,
    ReleaseManifest,
)

GOLDEN_COUNT = 5
# Raw joint units. Export must be exact; another host's kernels may round a little differently.
PARITY_TOLERANCE = 1e-2
HOST_TOLERANCE = 5e-2


def main() -> int:
    """Exit code 0, or 1 with the reason as the last line on stderr."""
    request = read_request()
    try:
        result = export(request)
    except (PolicyError, BadManifest, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    write_durable(Path(request["result"]), json.dumps(result).encode())
    return 0


def export(request: dict[str, Any]) -> dict[str, Any]:
    """Fill the folder. Raises PolicyError (parity among them), BadManifest, OSError."""
    torch.set_num_threads(1)
    spec = PolicySpec.from_json(request["spec"])
    normalizer = Normalizer.from_json(request["normalizer"])
    folder = Path(request["folder"])
    policy = build_policy(spec, normalizer, 0)
    write_weights(policy, load_weights(Path(request["weights"])))
    policy.eval()
    path = folder / POLICY_NAME
    about = {key: request[key] for key in ("version", "round", "base_digest")}
    about |= {"spec": spec.to_json(), "normalizer_digest": normalizer.digest()}
    export_onnx(policy, spec, normalizer, path, about)
    observations = golden_observations(spec, normalizer, GOLDEN_COUNT)
    worst = check_parity(policy, spec, normalizer, path, observations, PARITY_TOLERANCE)
    with path.open("rb") as stream:
        entry = FileEntry(
            sha256=file_digest(stream, "sha256").hexdigest(), size=path.stat().st_size
        )
    manifest = ReleaseManifest(
        version=request["version"],
        round=request["round"],
        base_digest=request["base_digest"],
        spec=spec.to_json(),
        normalizer=normalizer.to_json(),
        files={POLICY_NAME: entry},
        golden=tuple(answers(policy, spec, normalizer, observations)),
        tolerance=HOST_TOLERANCE,
        evaluation=request["evaluation"],
        contributors=tuple(request["contributors"]),
        created_unix_s=request["created_unix_s"],
    )
    write_durable(folder / MANIFEST_NAME, manifest.canonical_bytes())
    return {"manifest_digest": manifest.digest(), "max_abs_error": worst}


def answers(
    policy: Any, spec: PolicySpec, normalizer: Normalizer, observations: list[dict[str, Any]]
) -> list[Golden]:
    """Each observation with LeRobot's own action chunk [C, A], both without a batch axis."""
    preprocess, postprocess = build_processors(spec, normalizer)
    goldens = []
    for observation in observations:
        raw = _as_tensors(spec, observation)
        with torch.no_grad():
            action = postprocess(policy.predict_action_chunk(preprocess(raw)))[0]
        goldens.append(
            Golden(
                observation={name: observation[name].tolist() for name in input_names(spec)},
                action=action.to(torch.float32).numpy().tolist(),
            )
        )
    return goldens


def _as_tensors(spec: PolicySpec, observation: Observation) -> dict[str, torch.Tensor]:
    """LeRobot's form: a batch axis, images float 0..1, [1,3,H,W]."""
    cameras = {camera.key for camera in spec.cameras}
    tensors = {}
    for name in input_names(spec):
        value = torch.from_numpy(observation[name]).unsqueeze(0)
        tensors[name] = value.permute(0, 3, 1, 2).float() / 255.0 if name in cameras else value
    return tensors


if __name__ == "__main__":
    sys.exit(main())
