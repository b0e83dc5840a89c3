"""The trainer: one long-lived torch process that learns while the robot is idle.

    python -m agent.training.trainer --config FILE

The supervisor freezes it (SIGSTOP) the moment somebody wants the robot, and may kill it at any
time: all that it publishes is replaced as a whole, and it goes on from its last snapshot.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from agent.child.link import ChildLink
from agent.config import load_config
from agent.errors import AgentError, LinkClosed
from host.logs import set_up_logging

if TYPE_CHECKING:
    from agent.training.scheduler import TrainingScheduler

log = logging.getLogger(__name__)

SPEAK_EVERY_S = 0.5


def run(
    scheduler: TrainingScheduler, link: ChildLink, clock: Callable[[], float] = time.monotonic
) -> None:
    """Train until the supervisor is gone (LinkClosed)."""
    allowed = True
    spoke_s = float("-inf")
    while True:
        idle_s = scheduler.turn() if allowed else SPEAK_EVERY_S
        now_s = clock()
        if idle_s > 0.0 or now_s - spoke_s >= SPEAK_EVERY_S:
            message = link.receive(idle_s)
            while message is not None:
                if message["kind"] == "state":
                    allowed = bool(message.get("training_allowed", True))
                message = link.receive(0.0)
        if now_s - spoke_s >= SPEAK_EVERY_S:
            spoke_s = now_s
            link.heartbeat()
            link.send("status", **scheduler.progress().model_dump())


def main(argv: list[str]) -> int:
    """Entry of the process; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m agent.training.trainer")
    parser.add_argument("--config", required=True, type=Path, help="the agent's TOML file")
    options = parser.parse_args(argv)
    set_up_logging()
    link = ChildLink.from_environment()
    try:
        config = load_config(options.config)
        # torch and LeRobot read these when they are imported.
        cache = config.training_dir / ".cache"
        os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_DATASETS_CACHE=str(cache))
        os.environ.update(OMP_NUM_THREADS=str(config.training.threads))
        import torch

        from agent.training.scheduler import TrainingScheduler

        torch.set_num_threads(config.training.threads)
        torch.set_num_interop_threads(1)
        run(TrainingScheduler(config, time.monotonic, time.time), link)
    except LinkClosed:
        log.info("the supervisor is gone; the trainer ends")
        return 0
    except AgentError as error:
        log.error("%s", error)  # noqa: TRY400 - one line, the traceback says nothing to the reader
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
