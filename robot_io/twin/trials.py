"""Trials and demonstrations on a `LockstepTwin`.

A source gives the goal of a tick. The caller brings it, and with it whatever stands between a
policy and the arm: chunks, latency, blending.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robot_io.calibration import Vector
from robot_io.twin.hand import Plan
from robot_io.twin.layout import CubePlacement, Layout
from robot_io.twin.lockstep import LockstepTwin, TwinObservation

type Source = Callable[[TwinObservation, int], Vector]
"""Goal [6] in joint units at a tick, from the observation of that tick; ticks count from 0."""


@dataclass(frozen=True, slots=True)
class TwinTrial:
    """How one attempt ended. ``cube_m`` [3] is where the first cube's centre came to be.

    ``lifted`` tells whether that cube was up, ``succeeded`` whether the task was done.
    """

    placement: CubePlacement | Layout
    seed: int
    lifted: bool
    highest_m: float
    ticks: int
    cube_m: tuple[float, float, float]
    succeeded: bool


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One demonstration: row t is the observation at tick t and the goal sent on it.

    Attributes:
        state, action: float32 [T, 6], joint units.
        environment: float32 [T, 2], metres.
        images: uint8 [T, H, W, 3] RGB by camera.
    """

    placement: CubePlacement | Layout
    seed: int
    lifted: bool
    state: NDArray[np.float32]
    action: NDArray[np.float32]
    environment: NDArray[np.float32]
    images: dict[str, NDArray[np.uint8]]
    succeeded: bool


def teleoperation(twin: LockstepTwin, plan: Plan) -> Source:
    """A hand that moves the leader along ``plan``; the follower copies what the leader reads."""

    def goal(_observation: TwinObservation, tick: int) -> Vector:
        angle_rad, _, _ = plan.at(tick / twin.control_hz)
        return twin.leader_units(angle_rad)

    return goal


def run_trial(
    twin: LockstepTwin,
    new_source: Callable[[], Source],
    placement: CubePlacement | Layout,
    seed: int = 0,
    duration_s: float | None = None,
) -> TwinTrial:
    """One attempt, ended by success or by ``duration_s``, which is the task's unless given.

    ``new_source`` is called once the trial is set up, so that it may look at the twin.

    Raises:
        OutOfReach: no cube can be grasped there.
    """
    observation = twin.reset(placement, seed)
    source = new_source()
    duration_s = twin.task.trial_s if duration_s is None else duration_s
    for tick in range(round(duration_s * twin.control_hz)):
        observation = twin.step(source(observation, tick))
        if twin.succeeded:
            break
    x_m, y_m, z_m = (float(value) for value in observation.cube_m)
    return TwinTrial(
        placement,
        seed,
        twin.lifted,
        twin.highest_m,
        observation.tick,
        (x_m, y_m, z_m),
        twin.succeeded,
    )


def run_trials(
    twin: LockstepTwin,
    new_source: Callable[[], Source],
    placements: Iterable[CubePlacement | Layout],
    seed: int = 0,
    duration_s: float | None = None,
) -> list[TwinTrial]:
    """One trial a placement; trial k has seed ``seed + k``."""
    return [
        run_trial(twin, new_source, placement, seed + number, duration_s)
        for number, placement in enumerate(placements)
    ]


def demonstrate(
    twin: LockstepTwin, placement: CubePlacement | Layout, seed: int = 0, speed: float = 1.0
) -> Demonstration:
    """Let the expert do the task; a demonstration that drops the cube says so.

    Raises:
        OutOfReach: no cube can be grasped there.
    """
    observation = twin.reset(placement, seed)
    plan = twin.demonstration(speed)
    source = teleoperation(twin, plan)
    observations: list[TwinObservation] = []
    actions: list[Vector] = []
    for tick in range(round(plan.duration_s * twin.control_hz)):
        observations.append(observation)
        observation = twin.step(source(observation, tick))
        actions.append(twin.sent)
    return Demonstration(
        placement,
        seed,
        twin.lifted,
        _stack(each.state for each in observations),
        _stack(actions),
        _stack(each.environment for each in observations),
        {
            camera.name: np.stack([each.images[camera.name] for each in observations])
            for camera in twin.cameras
        },
        twin.succeeded,
    )


def _stack(rows: Iterable[Vector]) -> NDArray[np.float32]:
    return np.stack(list(rows)).astype(np.float32)
