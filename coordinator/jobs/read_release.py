"""Job: read a release as every robot will, and try its graph, before anybody hears of it.

By the robots' own reader: manifest, sizes, digests, the graph's inputs and output, goldens.
Request: folder, result. Result: manifest_digest, golden_error (raw joint units).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from coordinator.jobs.runner import read_request
from host.files import write_durable
from policy.errors import BadPolicyFolder, PolicyError
from policy.release.folder import read_policy_folder
from policy.release.trial import golden_complaint, goldens_of, load_graph, worst_golden_error


def main() -> int:
    """Exit code 0, or 1 with the reason as the last line on stderr."""
    request = read_request()
    try:
        result = read(Path(request["folder"]))
        write_durable(Path(request["result"]), json.dumps(result).encode())
    except (PolicyError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def read(path: Path) -> dict[str, Any]:
    """What the folder proves of itself. Raises PolicyError with one line, OSError."""
    folder = read_policy_folder(path, hash_all=True)
    graph = load_graph(folder, threads=1)
    worst = worst_golden_error(graph, goldens_of(folder))
    if complaint := golden_complaint(folder, worst):
        raise BadPolicyFolder(f"{path}: {complaint}")
    return {
        "manifest_digest": folder.manifest.digest(),
        "golden_error": worst,
    }


if __name__ == "__main__":
    sys.exit(main())
