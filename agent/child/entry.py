"""How every process of the agent begins and ends: one `main` for the whole process table."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from agent.child.link import ChildLink
from agent.config import AgentConfig, load_config
from agent.errors import AgentError, LinkClosed
from host.logs import set_up_logging

log = logging.getLogger(__name__)

STOPPED = 0
TO_BE_MENDED = 2  # by the operator; the last line of the log says what

Serve = Callable[[AgentConfig, Path, ChildLink], None]


def serve_as_child(serve: Serve, arguments: list[str] | None = None) -> int:
    """Take `--config FILE`, then `serve(config, path, link)` until it returns; the exit status.

    0 when it was told to stop or the supervisor is gone, 2 for what the operator must mend.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True, help="the agent's TOML file")
    path: Path = parser.parse_args(arguments).config
    set_up_logging()
    link = ChildLink.from_environment()
    try:
        serve(load_config(path), path, link)
    except LinkClosed:
        log.info("the supervisor is gone; process %d ends", os.getpid())
    except AgentError as error:
        log.error("%s", error)  # noqa: TRY400 - one line, the traceback says nothing to the reader
        return TO_BE_MENDED
    return STOPPED


def run_as_child(serve: Serve) -> None:
    """End this process with the status of `serve_as_child`."""
    sys.exit(serve_as_child(serve))
