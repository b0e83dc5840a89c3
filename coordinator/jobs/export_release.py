"""Job: a base as a release folder: the graph with the normaliser inside, and manifest.json.

The weights must be those of the round, and the ONNX file must say what LeRobot's own pipeline says
before it is shown to anybody. Request: weights, spec, normalizer, folder, version, round,
base_digest, evaluation, contributors, created_unix_s, result. Result: manifest_digest,
max_abs_error.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from coordinator.jobs.runner import read_request
from host.files import write_durable
from policy.build import build_policy, write_weights
from policy.errors import BadManifest, BadWeights, PolicyError
from policy.export import export_policy
from policy.release.manifest import POLICY_NAME, write_manifest
from policy.spec import PolicySpec
from policy.statistics import Normalizer
from policy.weights import load_weights


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
    weights = Path(request["weights"])
    policy = build_policy(spec, normalizer, 0)
    write_weights(policy, load_weights(weights))
    exported = export_policy(
        policy,
        spec,
        normalizer,
        folder / POLICY_NAME,
        version=request["version"],
        round_number=request["round"],
    )
    if exported.described["base_digest"] != request["base_digest"]:
        raise BadWeights(
            f"{weights} are not the weights of round {request['round']}: their digest differs"
        )
    manifest = write_manifest(
        folder,
        exported.described,
        evaluation=request["evaluation"],
        contributors=tuple(request["contributors"]),
        created_unix_s=request["created_unix_s"],
    )
    return {"manifest_digest": manifest.digest(), "max_abs_error": exported.max_abs_error}


if __name__ == "__main__":
    sys.exit(main())
