"""What stands between a wish and the arm: range, step, velocity, handover, parking. Pure.

All vectors are [6] in joint units (`robot_io.calibration`); times are seconds of one clock, passed
in. Nothing here reads a clock or a bus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntFlag
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robot_io.calibration import JOINTS, Calibration, Vector

# A smoothstep's steepest slope, relative to a straight line of the same length.
_SMOOTHSTEP_PEAK = 1.5


class Clip(IntFlag):
    """Why a joint's goal was changed."""

    NONE = 0
    POSITION = 1
    VELOCITY = 2
    STEP = 4
    NOT_FINITE = 8


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of each joint, float32 [6] each.

    Attributes:
        lower, upper: position range.
        max_step: how far a goal may lie from where the joint is.
        max_velocity: how fast a goal may move, per second.
    """

    lower: Vector
    upper: Vector
    max_step: Vector
    max_velocity: Vector

    def __post_init__(self) -> None:
        for name in ("lower", "upper", "max_step", "max_velocity"):
            values = np.asarray(getattr(self, name), np.float32)
            if values.shape != (len(JOINTS),) or np.isnan(values).any():
                raise ValueError(f"limits.{name} must be {len(JOINTS)} numbers, got {values!r}")
            object.__setattr__(self, name, values)
        if not (self.lower <= self.upper).all():
            raise ValueError("limits.lower must not be above limits.upper")
        if not ((self.max_step > 0).all() and (self.max_velocity > 0).all()):
            raise ValueError("limits.max_step and limits.max_velocity must be above 0")

    @classmethod
    def within(
        cls,
        calibration: Calibration,
        max_step: ArrayLike = np.inf,
        max_velocity: ArrayLike = np.inf,
    ) -> Self:
        """The calibrated range, with a step and a velocity for all joints or for each."""
        return cls(
            calibration.lower,
            calibration.upper,
            np.broadcast_to(max_step, (len(JOINTS),)),
            np.broadcast_to(max_velocity, (len(JOINTS),)),
        )

    def scaled(self, share: float) -> Limits:
        """The same range, with `share` of the step and of the velocity."""
        return replace(self, max_step=self.max_step * share, max_velocity=self.max_velocity * share)


class SafetyFilter:
    """Makes a goal harmless: range first, then velocity, then step.

    The result is never further than ``max_step`` from where the joint is, whatever else; it is
    within the range whenever the joint itself is; and it moves no faster than ``max_velocity``,
    unless it has to come back towards a joint that did not follow.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._last: Vector | None = None

    def reset(self) -> None:
        """Forget the goal sent before: the next one is measured from where the arm is."""
        self._last = None

    def apply(self, goal: Vector, present: Vector, dt_s: float) -> tuple[Vector, tuple[Clip, ...]]:
        """The goal to send, and for each joint why it differs from ``goal``.

        A joint of ``goal`` that is not finite holds the goal sent before.

        Raises:
            ValueError: ``present`` is not six finite numbers, ``goal`` not six, ``dt_s`` below 0.
        """
        present = _vector(present, "present")
        wanted = np.asarray(goal)
        if wanted.shape != (len(JOINTS),):
            raise ValueError(f"a goal is {len(JOINTS)} joint units, got shape {wanted.shape}")
        if not dt_s >= 0:
            raise ValueError(f"dt_s is {dt_s}, it must not be below 0")
        last = present if self._last is None else self._last

        finite = np.isfinite(wanted)
        flags = np.where(finite, Clip.NONE, Clip.NOT_FINITE)
        sent = np.where(finite, wanted, last)
        sent = _clamp(sent, self.limits.lower, self.limits.upper, Clip.POSITION, flags)
        reach = self.limits.max_velocity * dt_s if dt_s > 0 else 0.0
        sent = _clamp(sent, last - reach, last + reach, Clip.VELOCITY, flags)
        step = self.limits.max_step
        sent = _clamp(sent, present - step, present + step, Clip.STEP, flags)

        self._last = sent.astype(np.float32)
        return self._last.copy(), tuple(Clip(int(flag)) for flag in flags)


def _clamp(
    values: NDArray[np.float64],
    low: NDArray[np.floating],
    high: NDArray[np.floating],
    reason: Clip,
    flags: NDArray[np.int64],
) -> NDArray[np.float64]:
    clamped = np.clip(values, low, high)
    flags[clamped != values] |= reason
    return clamped


class Ramp:
    """Handover: from where the arm is to what the new source wants, within ``duration_s``.

    Start it at every change of who commands. Its first goal is the place of the arm, its goals
    after ``duration_s`` are the source's own, and between them the weight rises smoothly.
    """

    def __init__(self, duration_s: float) -> None:
        if not duration_s >= 0:
            raise ValueError(f"a ramp's duration_s is {duration_s}, it must not be below 0")
        self.duration_s = duration_s
        self._from: Vector | None = None
        self._began_s = 0.0

    def start(self, present: Vector, now_s: float) -> None:
        """Hand over from ``present``, beginning now."""
        self._from = _vector(present, "present").copy()
        self._began_s = now_s

    def active(self, now_s: float) -> bool:
        """True while the source has not got the arm wholly."""
        return self._from is not None and now_s - self._began_s < self.duration_s

    def apply(self, goal: Vector, now_s: float) -> Vector:
        """The goal to pass on, float32 [6]."""
        goal = np.asarray(goal, np.float32)
        if self._from is None or not self.active(now_s):
            return goal
        weight = smoothstep((now_s - self._began_s) / self.duration_s)
        return (self._from + weight * (goal - self._from)).astype(np.float32)


class FirstMoveGuard:
    """Refuses a source whose first goal lies too far from the arm, instead of going there.

    A policy's first chunk or a leader left in another pose is the usual cause.
    """

    def __init__(self, max_distance: ArrayLike) -> None:
        self._max_distance = np.broadcast_to(
            np.asarray(max_distance, np.float32), (len(JOINTS),)
        ).copy()
        self._passed = False

    def reset(self) -> None:
        """Look at the next goal again: another source commands."""
        self._passed = False

    def refusal(self, goal: Vector, present: Vector) -> str | None:
        """One line that names the joints too far away, or None; once passed, always None."""
        if self._passed:
            return None
        distance = np.abs(goal - _vector(present, "present"))
        # Not "greater than", so that a goal that is no number is refused as well.
        far = ~(distance <= self._max_distance)
        if not far.any():
            self._passed = True
            return None
        listed = ", ".join(
            f"{JOINTS[i]} by {distance[i]:.1f} (allowed {self._max_distance[i]:.1f})"
            for i in np.flatnonzero(far)
        )
        return f"the first goal is too far from where the arm is: {listed}"


class ParkPlan:
    """A smooth way from ``present`` to ``rest``; no joint is faster than its ``max_speed``.

    All joints begin and end together; speed is zero at both ends.
    """

    def __init__(self, present: Vector, rest: Vector, max_speed: ArrayLike) -> None:
        self.present = _vector(present, "present").copy()
        self.rest = _vector(rest, "rest").copy()
        speed = np.broadcast_to(max_speed, (len(JOINTS),))
        if not (speed > 0).all():
            raise ValueError("a park plan's max_speed must be above 0")
        distance = np.abs(self.rest - self.present)
        self.duration_s = float(np.max(_SMOOTHSTEP_PEAK * distance / speed))

    def goal(self, t_s: float) -> Vector:
        """The goal ``t_s`` seconds after the beginning, float32 [6]."""
        if self.done(t_s):
            return self.rest.copy()
        weight = smoothstep(max(0.0, t_s) / self.duration_s)
        return (self.present + weight * (self.rest - self.present)).astype(np.float32)

    def done(self, t_s: float) -> bool:
        """True when the plan has arrived."""
        return t_s >= self.duration_s


def smoothstep(x: float) -> float:
    """From 0 to 1 while ``x`` does, without speed at either end."""
    return x * x * (3.0 - 2.0 * x)


def _vector(values: Vector | Sequence[float], name: str) -> Vector:
    vector = np.asarray(values, np.float32)
    if vector.shape != (len(JOINTS),) or not np.isfinite(vector).all():
        raise ValueError(f"{name} must be {len(JOINTS)} finite joint units, got {vector!r}")
    return vector
