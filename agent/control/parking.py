"""One way to the park pose: its source, and when it is over."""

from __future__ import annotations

import logging

import numpy as np

from agent.config import AgentConfig
from agent.control.sources import ParkSource
from robot_io.arm import Calibration

log = logging.getLogger(__name__)

SETTLE_S = 0.3  # after the plan's end, for the arm to follow its last goal
EXTRA_S = 2.0  # beyond the longest plan, before a park that does not arrive is ended
LONGEST_WAY = 360.0  # joint units; no joint has farther to go
SMOOTHSTEP_PEAK = 1.5  # a smooth plan takes so much longer than one at full speed


class Parking:
    """Hand `source` to the loop, then ask `over` at each tick."""

    def __init__(self, config: AgentConfig, calibration: Calibration, now_s: float) -> None:
        rest = np.asarray(config.robot.park_pose, np.float32)
        speed = config.control.park_speed_per_s
        self.source = ParkSource(np.clip(rest, calibration.lower, calibration.upper), speed)
        self._arrived_s: float | None = None
        self._until_s = now_s + SMOOTHSTEP_PEAK * LONGEST_WAY / speed + EXTRA_S

    def over(self, now_s: float) -> bool:
        """True when the arm has settled in the park pose, or never will."""
        if self._arrived_s is None and self.source.done(now_s):
            self._arrived_s = now_s
        if self._arrived_s is not None:
            return now_s >= self._arrived_s + SETTLE_S
        if now_s >= self._until_s:
            log.error("the park pose was not reached in time")
            return True
        return False
