"""Logging, set up the same way in every process; the files that hold what processes say."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import IO

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# Libraries that tell of every request at the level at which we tell of what matters.
TALKATIVE = ("httpx", "httpcore", "uvicorn")
LOG_KEEP_BYTES = 8 << 20


def set_up_logging(level: int = logging.INFO) -> None:
    """Log to stderr, in one format; call once, at the start of a process."""
    logging.basicConfig(level=level, format=FORMAT)
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)


def open_log(path: Path, keep_bytes: int = LOG_KEEP_BYTES) -> IO[bytes]:
    """A log to append to; one longer than `keep_bytes` first becomes `NAME.log.1`. Raises OSError.

    Whoever has the old one open goes on writing there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > keep_bytes:
        path.replace(path.with_name(f"{path.name}.1"))
    return path.open("ab")
