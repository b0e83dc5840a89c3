"""The outside hand: motions of a person who holds an arm whose torque is off. Pure.

A plan is joint angles sampled at a fixed rate, smooth from the first to the last sample. The
physics process plays it against its own clock, so that a loaded host slows the hand and the world
alike and never makes the hand jerk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from robot_io.twin.shared import N_JOINTS, Float

PLAN_HZ = 100.0
HAND_SPEED_RAD_S = 2.2
SWEEP_SPEED_RAD_S = 4.0
STOP_S = 0.2
_MINIMUM_S = 0.25
# Peak speed of a minimum-jerk motion over its mean speed.
_PEAK_OVER_MEAN = 1.875


@dataclass(frozen=True, slots=True)
class Plan:
    """A motion of one arm: ``angles_rad`` shape [T, 6] at PLAN_HZ."""

    angles_rad: Float

    @property
    def duration_s(self) -> float:
        """From the first to the last sample."""
        return (len(self.angles_rad) - 1) / PLAN_HZ

    def at(self, elapsed_s: float) -> tuple[Float, Float, bool]:
        """Angles [6] and velocities [6] ``elapsed_s`` after the start, and whether it is over."""
        place = max(0.0, elapsed_s * PLAN_HZ)
        index = int(place)
        if index >= len(self.angles_rad) - 1:
            return self.angles_rad[-1], np.zeros(N_JOINTS), True
        step = self.angles_rad[index + 1] - self.angles_rad[index]
        return self.angles_rad[index] + step * (place - index), step * PLAN_HZ, False


def minimum_jerk(fraction: Float) -> Float:
    """Share of the way done at ``fraction`` of the time (Flash and Hogan 1985)."""
    share: Float = fraction**3 * (10 - 15 * fraction + 6 * fraction**2)
    return share


def move_plan(start_rad: Float, goal_rad: Float, speed_rad_s: float = HAND_SPEED_RAD_S) -> Plan:
    """Straight from ``start_rad`` to ``goal_rad``, no joint faster than ``speed_rad_s``."""
    travel = float(np.max(np.abs(goal_rad - start_rad)))
    duration_s = max(_MINIMUM_S, _PEAK_OVER_MEAN * travel / speed_rad_s)
    count = int(np.ceil(duration_s * PLAN_HZ)) + 1
    share = minimum_jerk(np.arange(count) / (count - 1.0))[:, None]
    return Plan(start_rad + (goal_rad - start_rad) * share)


def chain(plans: Sequence[Plan]) -> Plan:
    """One plan after the other."""
    return Plan(np.concatenate([plan.angles_rad for plan in plans]))


def sweep_plan(start_rad: Float, ranges_rad: Float) -> Plan:
    """To the middle, then every joint at once from stop to stop, and back to the middle.

    ``ranges_rad`` is shape [6, 2]. The hand rests at each stop for long enough that a reader at
    20 Hz sees it.
    """
    middle = ranges_rad.mean(axis=1)
    places = [middle, ranges_rad[:, 0], ranges_rad[:, 1], middle]
    plans = [move_plan(start_rad, middle)]
    for here, there in pairwise(places):
        plans.append(move_plan(here, there, SWEEP_SPEED_RAD_S))
        plans.append(Plan(np.repeat(there[None, :], int(STOP_S * PLAN_HZ), axis=0)))
    return chain(plans)
