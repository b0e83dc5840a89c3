"""Hosts ingest passes that a test kills: loads the heavy libraries once, then forks for each pass.

    python ingest_victim.py CONFIG

For each line on standard input it starts one pass and prints its process id; the pass writes
"done" when it has taken all that was waiting.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import datasets.config

import agent.dataset.writer
from agent.config import load_config
from agent.dataset.ingest import Ingest

BATCH = 2  # small, so that a pass has many commits to be killed in


def main() -> None:
    config = load_config(sys.argv[1])
    datasets.config.HF_DATASETS_CACHE = Path(sys.argv[1]).parent / "cache"
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            ingest = Ingest(config)
            ingest.recover()
            while waiting := ingest.waiting():
                ingest.take(waiting[:BATCH])
            os.write(1, b"done\n")
            os._exit(0)
        os.write(1, f"{child}\n".encode())
        os.waitpid(child, 0)
        os.write(1, b"ended\n")


if __name__ == "__main__":
    assert agent.dataset.writer
    main()
