"""Job: merge the sketches, make the fleet's normaliser, build and save base 0.

Request: sketches (agent -> JSON), spec, seed, weights (path to write), result (path to write).
Result: normalizer, normalizer_digest, digest (of the weights), count (frames behind it).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from coordinator.jobs.runner import read_request
from host.files import write_durable
from policy.build import build_policy, read_weights
from policy.errors import PolicyError
from policy.spec import PolicySpec
from policy.statistics import Normalizer, Sketch, merge
from policy.weights import save_weights, weights_digest


def main() -> int:
    """Exit code 0, or 1 with the reason as the last line on stderr."""
    request = read_request()
    try:
        spec = PolicySpec.from_json(request["spec"])
        sketches = [Sketch.from_json(part) for _, part in sorted(request["sketches"].items())]
        normalizer = Normalizer.from_sketches(sketches)
        weights = read_weights(build_policy(spec, normalizer, int(request["seed"])))
        path = Path(request["weights"])
        path.parent.mkdir(parents=True, exist_ok=True)
        save_weights(path, weights)
    except (PolicyError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    result = {
        "normalizer": normalizer.to_json(),
        "normalizer_digest": normalizer.digest(),
        "digest": weights_digest(weights),
        "count": merge(sketches).count,
    }
    write_durable(Path(request["result"]), json.dumps(result).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
