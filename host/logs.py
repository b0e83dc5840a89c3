"""Logging, set up the same way in every process."""

from __future__ import annotations

import logging

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# Libraries that tell of every request at the level at which we tell of what matters.
TALKATIVE = ("httpx", "httpcore", "uvicorn")


def set_up_logging(level: int = logging.INFO) -> None:
    """Log to stderr, in one format; call once, at the start of a process."""
    logging.basicConfig(level=level, format=FORMAT)
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
