"""A policy that predicts beside whoever commands, and is only compared: a subscriber of the loop.

It sees the loop's ticks and gives nothing back, so it cannot command. Its channel, its process and
its socket are its own: one that hangs or dies takes nothing from the policy that drives.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agent.control.loop import Tick
from agent.control.policy_source import PolicySource
from agent.errors import AgentError
from agent.inference.errors import EpisodeRunning
from agent.policies.errors import PolicyRefused

log = logging.getLogger(__name__)

REPORT_S = 5.0  # of comparing, then the figures go to the supervisor


@dataclass(frozen=True)
class ShadowReport:
    """What so many seconds beside the one who commands came to.

    `difference` is the mean over ticks and joints of |predicted - commanded|, joint units; None
    where nothing was compared. `number` tells a new report from one that was seen.
    """

    number: int = 0
    policy: str | None = None
    seconds: float = 0.0
    difference: float | None = None
    fault: str | None = None


class Shadow:
    """`tick` and `pause` belong to the loop's thread and wait for nothing; `want` to another."""

    def __init__(
        self, source: PolicySource, fps: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._source = source
        self._fps = fps
        self._clock = clock
        self._loaded: Path | None = None
        self._begun = False
        self._ticks = 0
        self._sum = 0.0
        self.report = ShadowReport()

    def status(self) -> dict[str, Any]:
        """The newest report."""
        return asdict(self.report)

    def want(self, folder: Path | None, timeout_s: float) -> None:
        """Load this policy, which waits for its process; None: forget the one that is loaded."""
        if folder == self._loaded:
            return
        try:
            if self._loaded is not None:
                self._source.unload()
                self._loaded = None
            if folder is not None:
                loaded = self._source.load(folder, timeout_s)
                self._ticks, self._sum = 0, 0.0
                self._loaded = folder
                log.info("policy %s predicts as a shadow", loaded.name)
        except EpisodeRunning:
            log.debug("the shadow is in the middle of a motion; it is changed after it")
        except PolicyRefused as error:
            self._say(folder.name if folder is not None else None, str(error))
        except AgentError as error:
            log.warning("the shadow cannot be loaded: %s", error)

    def tick(self, tick: Tick) -> None:
        """Compare what it would have wanted with what was asked of the arm."""
        loaded = self._source.loaded
        if loaded is None or self._loaded is None:
            return
        now_s = self._clock()
        if not self._begun:
            self._source.begin(tick.observation, now_s)
            self._begun = True
        wanted = self._source.action(tick.observation, now_s)
        if wanted.fault is not None:
            if not self._source.blind:  # a camera's fault is not the policy's
                self._say(loaded.name, wanted.fault)
            self.pause()
        elif wanted.goal is not None:
            self._ticks += 1
            self._sum += float(np.mean(np.abs(wanted.goal - tick.requested)))
            if self._ticks >= REPORT_S * self._fps:
                self._say(loaded.name, None)

    def pause(self) -> None:
        """Nobody commands any more, or the arm parks."""
        if self._begun:
            self._source.end()
            self._begun = False

    def _say(self, policy: str | None, fault: str | None) -> None:
        self.report = ShadowReport(
            self.report.number + 1,
            policy,
            self._ticks / self._fps,
            self._sum / self._ticks if self._ticks else None,
            fault,
        )
        self._ticks, self._sum = 0, 0.0
