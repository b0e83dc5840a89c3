"""What a task of the twin is: words, objects, placements, a hand that can do it, and success."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from robot_io.twin.errors import TwinError
from robot_io.twin.layout import CubePlacement, Layout, TableSector, TableState
from robot_io.twin.objects import SceneObjects
from robot_io.twin.route import Route
from robot_io.twin.shared import Float

_DRAWS = 1000
LYING_SPEED_M_S = 0.02  # a slower cube lies
HAND_AWAY_M = 0.035  # of the grasp point from the cube's centre: the jaws have let go


@dataclass(frozen=True, slots=True)
class TwinTask:
    """One task. Everything in it is pure.

    Attributes:
        name: of the task, as in ``--task``.
        skill: what the hand does, as in the control socket's ``demonstrate``.
        words: ways to tell it.
        objects: what lies on the table.
        trial_s: how long an attempt may take.
        draw: a layout whose first cube to be moved lies in the sector.
        demonstrate: adds the motion to a route that begins where the leader is.
        succeeded: whether the task is done in this state.
    """

    name: str
    skill: str
    words: tuple[str, ...]
    objects: SceneObjects
    trial_s: float
    draw: Callable[[np.random.Generator, TableSector], Layout]
    demonstrate: Callable[[Route, Layout], None]
    succeeded: Callable[[TableState], bool]

    @property
    def start(self) -> Layout:
        """Where everything lies until it is placed."""
        return tuple(CubePlacement(*each.start_m) for each in self.objects.all)

    def words_for(self, seed: int) -> str:
        """One of the ways to tell it."""
        return self.words[int(np.random.default_rng([seed, 0x30AD]).integers(len(self.words)))]


def draw_apart(draw: Callable[[], Layout], least_m: float) -> Layout:
    """A layout in which all that lies on the table is at least this far apart.

    Raises:
        TwinError: there is none, or hardly one.
    """
    for _ in range(_DRAWS):
        layout = draw()
        pairs = [(a, b) for k, a in enumerate(layout) for b in layout[k + 1 :]]
        if all(one.distance_m(other) >= least_m for one, other in pairs):
            return layout
    raise TwinError(f"the sector has no room for objects {least_m * 100:.0f} cm apart")


def lies_on(state: TableState, cube: int, goal: Float, within_m: float, height_m: float) -> bool:
    """Whether a cube rests with its centre at ``height_m``, over ``goal`` [2], without a hand."""
    x_m, y_m, z_m = state.cubes_m[cube]
    return bool(
        np.hypot(x_m - goal[0], y_m - goal[1]) < within_m
        and abs(z_m - height_m) < 0.003
        and state.speeds_m_s[cube] < LYING_SPEED_M_S
        and np.linalg.norm(state.grip_m - state.cubes_m[cube]) > HAND_AWAY_M
    )
