"""Pick the red cube up and hold it."""

from __future__ import annotations

import numpy as np

from robot_io.twin.layout import Layout, TableSector, TableState, draw_in
from robot_io.twin.objects import ONE_CUBE
from robot_io.twin.route import Route
from robot_io.twin.tasks import grasping
from robot_io.twin.tasks.task import TwinTask

LIFTED_M = 0.05  # of the cube's centre above the table, as the demo judges it
_HOLD_S = 0.45
DURATION_S = (
    grasping.APPROACH_S
    + grasping.DESCENT_S
    + grasping.CLOSING_S
    + grasping.SETTLE_S
    + grasping.LIFTING_S
    + _HOLD_S
)


def _draw(dice: np.random.Generator, sector: TableSector) -> Layout:
    return (draw_in(dice, sector),)


def _demonstrate(route: Route, layout: Layout) -> None:
    (cube,) = layout
    grasping.grasp(route, cube)
    grasping.lift(route, cube)
    route.wait(_HOLD_S)


def _succeeded(state: TableState) -> bool:
    return bool(state.highest_m[0] > LIFTED_M)


LIFT = TwinTask(
    "lift",
    "pick_lift",
    (
        "pick up the red cube",
        "lift the red cube",
        "grasp the cube and raise it",
        "take the red block off the table",
    ),
    ONE_CUBE,
    6.0,
    _draw,
    _demonstrate,
    _succeeded,
)
