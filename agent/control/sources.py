"""Who may command the follower, besides a policy: the leader arm, and the way to the park pose."""

from __future__ import annotations

from agent.control.observation import Observation, SourceAction, Vector
from robot_io.arm import Leader
from robot_io.errors import BusError, Unplugged
from robot_io.limits import ParkPlan


class LeaderSource:
    """The person at the leader arm. A read that fails holds; too many in a row are a fault."""

    def __init__(self, leader: Leader, max_missed_reads: int) -> None:
        self._leader = leader
        self._max_missed_reads = max_missed_reads
        self._missed = 0
        self.missed_total = 0

    def begin(self, observation: Observation, now_s: float) -> None:
        """Forget earlier misses."""
        self._missed = 0

    def action(self, observation: Observation, now_s: float) -> SourceAction:
        """Where the leader stands."""
        try:
            position = self._leader.read().position
        except Unplugged as error:
            return SourceAction(None, f"leader unplugged: {error}")
        except BusError as error:
            self._missed += 1
            self.missed_total += 1
            if self._missed > self._max_missed_reads:
                return SourceAction(None, f"leader lost after {self._missed} reads: {error}")
            return SourceAction(None)
        self._missed = 0
        return SourceAction(position)

    def end(self) -> None:
        """Nothing is kept."""


class ParkSource:
    """The way to the rest pose, no joint faster than `max_speed` joint units a second."""

    def __init__(self, rest: Vector, max_speed: float) -> None:
        self._rest = rest
        self._max_speed = max_speed
        self._plan: ParkPlan | None = None
        self._began_s = 0.0

    def begin(self, observation: Observation, now_s: float) -> None:
        """Plan from where the arm is."""
        self._plan = ParkPlan(observation.state, self._rest, self._max_speed)
        self._began_s = now_s

    def action(self, observation: Observation, now_s: float) -> SourceAction:
        """The plan's goal for now."""
        if self._plan is None:
            return SourceAction(None)
        return SourceAction(self._plan.goal(now_s - self._began_s))

    def end(self) -> None:
        """Nothing is kept."""

    def done(self, now_s: float) -> bool:
        """True when the plan has arrived."""
        return self._plan is not None and self._plan.done(now_s - self._began_s)
