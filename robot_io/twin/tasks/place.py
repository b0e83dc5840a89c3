"""Put the red cube on the mark."""

from __future__ import annotations

import numpy as np

from robot_io.twin.layout import WHOLE_TABLE, Layout, TableSector, TableState, draw_in
from robot_io.twin.objects import CUBE_SIZE_M, RED_CUBE, SceneObjects, TableMark
from robot_io.twin.route import Route
from robot_io.twin.tasks import grasping
from robot_io.twin.tasks.task import TwinTask, draw_apart, lies_on

GREEN_MARK = TableMark("mark", (0.10, 0.50, 0.18), (0.17, -0.10))
ON_MARK_M = 0.020  # of the cube's centre from the mark's
_APART_M = 0.065


def _draw(dice: np.random.Generator, sector: TableSector) -> Layout:
    # The mark may lie anywhere: a robot's sector says where its cubes lie.
    return draw_apart(lambda: (draw_in(dice, sector), draw_in(dice, WHOLE_TABLE)), _APART_M)


def _demonstrate(route: Route, layout: Layout) -> None:
    cube, mark = layout
    grasping.grasp(route, cube)
    grasping.lift(route, cube)
    grasping.put_down(route, mark)


def _succeeded(state: TableState) -> bool:
    return lies_on(state, 0, state.marks_m[0], ON_MARK_M, CUBE_SIZE_M / 2)


PLACE = TwinTask(
    "place",
    "pick_place",
    (
        "place the red cube on the mark",
        "put the cube on the green square",
        "move the red block onto the mark",
        "set the red cube down on the green mark",
    ),
    SceneObjects((RED_CUBE,), (GREEN_MARK,)),
    10.0,
    _draw,
    _demonstrate,
    _succeeded,
)
