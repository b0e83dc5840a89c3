"""The trainer: one long-lived torch process that learns while the robot is idle.

    python -m agent.training.trainer --config FILE

The supervisor freezes it (SIGSTOP) the moment somebody wants the robot, and may kill it at any
time: all that it publishes is replaced as a whole, and it goes on from its last snapshot.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from agent.child.entry import run_as_child
from agent.child.link import ChildLink
from agent.config import AgentConfig
from agent.errors import ConfigError
from host.memory import limit_memory

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
            link.send("status", **scheduler.progress().model_dump(mode="json"))


def serve(config: AgentConfig, path: Path, link: ChildLink) -> None:
    """Train until the supervisor is gone. Raises LinkClosed, AgentError."""
    # torch and LeRobot read these when they are imported.
    cache = config.training_dir / ".cache"
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_DATASETS_CACHE=str(cache))
    os.environ.update(OMP_NUM_THREADS=str(config.training.threads))
    import torch

    from agent.training.compute import Compute
    from agent.training.scheduler import TrainingScheduler
    from policy.device import Accelerators
    from policy.errors import NoSuchDevice

    torch.set_num_threads(config.training.threads)
    torch.set_num_interop_threads(1)
    try:
        compute = Compute.choose(config.training, Accelerators.present())
    except NoSuchDevice as error:
        raise ConfigError(str(error)) from error
    log.info("training on %s%s", compute.device, " in bfloat16" if compute.bfloat16 else "")
    limit_memory(config.training.memory_limit_mb << 20)
    run(TrainingScheduler(config, path, time.monotonic, time.time, compute), link)


if __name__ == "__main__":
    run_as_child(serve)
