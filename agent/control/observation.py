"""What a source of action sees, and what it answers. The seam between the loop and its sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from robot_io.cameras import Frame

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Observation:
    """One tick's view of the robot, in calibrated joint units.

    `t_s` is the monotonic time at which the joint positions were read. `environment` is empty
    when no tracker is configured. `frames` holds each camera's newest frame, never a stale one.
    """

    tick: int
    t_s: float
    state: Vector  # [6] measured joint positions
    environment: Vector  # [E] tracked places, in metres, in the order of config.environment_names
    frames: Mapping[str, Frame]


@dataclass(frozen=True, slots=True)
class SourceAction:
    """What a source wants now. `goal` None means: hold where you are. `fault` ends the motion."""

    goal: Vector | None  # [6] joint units, before limits
    fault: str | None = None


class ActionSource(Protocol):
    """Who commands the arm: the leader, a policy, a park trajectory, or nobody (hold).

    `action` is called once a tick, inside the loop's period: it must not wait for anything.
    """

    def begin(self, observation: Observation, now_s: float) -> None:
        """Take command, from this observation on."""
        ...

    def action(self, observation: Observation, now_s: float) -> SourceAction:
        """The goal for this tick."""
        ...

    def end(self) -> None:
        """Give up command. Called exactly once for each `begin`."""
        ...
