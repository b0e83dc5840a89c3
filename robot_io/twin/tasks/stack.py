"""Stack the red cube on the blue one."""

from __future__ import annotations

import numpy as np

from robot_io.twin.layout import WHOLE_TABLE, Layout, TableSector, TableState, draw_in
from robot_io.twin.objects import CUBE_SIZE_M, RED_CUBE, SceneObjects, TableCube
from robot_io.twin.route import Route
from robot_io.twin.tasks import grasping
from robot_io.twin.tasks.task import TwinTask, draw_apart, lies_on

BLUE_CUBE = TableCube("blue_cube", (0.10, 0.22, 0.85), (0.17, -0.10))
# A cube whose centre is farther out than half of its size falls.
_CENTRED_M = CUBE_SIZE_M / 2
_APART_M = 0.080  # the jaws open over the red cube without touching the blue one


def _draw(dice: np.random.Generator, sector: TableSector) -> Layout:
    return draw_apart(lambda: (draw_in(dice, sector), draw_in(dice, WHOLE_TABLE)), _APART_M)


def _demonstrate(route: Route, layout: Layout) -> None:
    red, blue = layout
    grasping.grasp(route, red)
    grasping.lift(route, red)
    grasping.put_down(route, blue, cubes_below=1)


def _succeeded(state: TableState) -> bool:
    return lies_on(state, 0, state.cubes_m[1, :2], _CENTRED_M, CUBE_SIZE_M * 3 / 2)


STACK = TwinTask(
    "stack",
    "pick_stack",
    (
        "stack the red cube on the blue cube",
        "put the red cube on top of the blue one",
        "place the red block on the blue block",
        "build a tower with the red cube on top",
    ),
    SceneObjects((RED_CUBE, BLUE_CUBE)),
    10.0,
    _draw,
    _demonstrate,
    _succeeded,
)
