"""A hand's way with the leader: from pose to pose on clamped cubic splines, smooth and at rest
between its parts. Times are those of an unhurried hand; ``speed`` divides them all.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from robot_io.twin.expert import ARM_JOINTS, GRIPPER, Expert
from robot_io.twin.hand import PLAN_HZ, Plan, minimum_jerk
from robot_io.twin.shared import Float


class Route:
    """Grows by parts from ``start_rad`` [6]; ``here`` is where its last part ends.

    ``stiffness`` [6] in Nm/rad is that of the follower's servos, 0 where unknown.
    """

    def __init__(
        self, expert: Expert, start_rad: Float, stiffness: Float, speed: float = 1.0
    ) -> None:
        self.here = start_rad
        self._expert = expert
        self._stiffness = stiffness[:ARM_JOINTS]
        self._speed = speed
        self._parts: list[Float] = []

    def pose(
        self, x_m: float, y_m: float, height_m: float, gripper_rad: float, roll_rad: float = 0.0
    ) -> Float:
        """Leader angles [6] with which the grasp point is there, gripper down."""
        arm, _ = self._expert.reach(x_m, y_m, height_m, roll_rad)
        return np.array((*self._expert.held_up(arm, self._stiffness), roll_rad, gripper_rad))

    def through(
        self, poses: Sequence[Float], durations_s: Sequence[float], jaws_s: float | None = None
    ) -> None:
        """On through ``poses``, each ``durations_s`` after the one before.

        With ``jaws_s`` the gripper is where the last pose has it by then.
        """
        part = _spline([self.here, *poses], durations_s, self._speed)
        if jaws_s is not None:
            before, after = self.here[GRIPPER], poses[-1][GRIPPER]
            share = np.clip(np.arange(len(part)) / PLAN_HZ * self._speed / jaws_s, 0.0, 1.0)
            part[:, GRIPPER] = before + (after - before) * minimum_jerk(share)
        self._add(part, poses[-1])

    def straight(self, pose: Float, duration_s: float) -> None:
        """On to ``pose``, each joint in a straight line."""
        share = minimum_jerk(_samples(duration_s, self._speed) / duration_s)[:, None]
        self._add(self.here + (pose - self.here) * share, pose)

    def wait(self, duration_s: float) -> None:
        """Stay."""
        self.straight(self.here, duration_s)

    def plan(self) -> Plan:
        """The whole way."""
        return Plan(np.concatenate(self._parts))

    def _add(self, part: Float, end: Float) -> None:
        self._parts.append(part)
        self.here = end


def _samples(duration_s: float, speed: float) -> Float:
    """Times from just after 0 to ``duration_s`` at the plan's rate, in unscaled seconds."""
    count = max(1, round(duration_s / speed * PLAN_HZ))
    return np.arange(1, count + 1) / count * duration_s


def _spline(points: Sequence[Float], durations_s: Sequence[float], speed: float) -> Float:
    """Clamped cubic spline through ``points``, at rest at both ends; shape [T, 6]."""
    times = np.array([0.0, *itertools.accumulate(durations_s)])
    values = np.array(points)
    steps = np.diff(times)
    slopes = np.diff(values, axis=0) / steps[:, None]
    count = len(points)
    # Velocities at the points from continuity of the second derivative.
    matrix = np.eye(count)
    right = np.zeros_like(values)
    for k in range(1, count - 1):
        matrix[k, k - 1 : k + 2] = steps[k], 2 * (steps[k - 1] + steps[k]), steps[k - 1]
        right[k] = 3 * (steps[k] * slopes[k - 1] + steps[k - 1] * slopes[k])
    velocities = np.linalg.solve(matrix, right)
    at = _samples(float(times[-1]), speed)
    piece = np.clip(np.searchsorted(times, at, side="left") - 1, 0, count - 2)
    span = steps[piece][:, None]
    t = (at - times[piece])[:, None] / span
    angles: Float = (
        (2 * t**3 - 3 * t**2 + 1) * values[piece]
        + (t**3 - 2 * t**2 + t) * span * velocities[piece]
        + (-2 * t**3 + 3 * t**2) * values[piece + 1]
        + (t**3 - t**2) * span * velocities[piece + 1]
    )
    return angles
