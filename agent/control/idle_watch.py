"""Looks after arms that are at rest: are they still there, and well?"""

from __future__ import annotations

import logging

from agent.control.arms import Arms
from agent.control.loop import MotionLoop
from robot_io.errors import RobotIOError, Unplugged

log = logging.getLogger(__name__)

LEADER_PERIOD_S = 1.0
MISSED_READS = 3  # in a row, a fifth of a second apart


class IdleWatch:
    """For the loop thread, a few times a second."""

    def __init__(self, arms: Arms) -> None:
        self._arms = arms
        self._missed = 0
        self._leader_due_s = 0.0

    def restart(self) -> None:
        """Another follower is connected."""
        self._missed = 0

    def look(self, motion: MotionLoop | None, now_s: float) -> str | None:
        """Read both arms; the reason why the follower, if it was there, is lost now."""
        if now_s >= self._leader_due_s:
            self._leader_due_s = now_s + LEADER_PERIOD_S
            self._look_at_leader()
        follower = self._arms.follower
        if follower is None:
            return None
        try:
            reading = follower.read()
        except Unplugged as error:
            reason = f"follower unplugged: {error}"
        except RobotIOError as error:
            self._missed += 1
            if self._missed <= MISSED_READS:
                return None
            reason = f"follower lost: {error}"
        else:
            self._missed = 0
            if motion is not None:
                motion.note_health(reading)
            return None
        self._arms.lose("follower", reason)
        return reason

    def _look_at_leader(self) -> None:
        leader = self._arms.leader
        if leader is None:
            return
        try:
            leader.read()
        except Unplugged as error:
            self._arms.lose("leader", f"leader unplugged: {error}")
        except RobotIOError as error:
            log.debug("leader: %s", error)  # teleoperation counts and reports these
