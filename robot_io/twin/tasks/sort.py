"""Sort by colour: the red cube goes on the white mark, the blue cube on the black one.

One cube lies on the table; the other is parked out of reach and sight.
"""

from __future__ import annotations

import math

import numpy as np

from robot_io.twin.layout import PARKED, CubePlacement, Layout, TableSector, TableState, at, draw_in
from robot_io.twin.objects import CUBE_SIZE_M, RED_CUBE, SceneObjects, TableMark
from robot_io.twin.route import Route
from robot_io.twin.tasks import grasping
from robot_io.twin.tasks.place import ON_MARK_M
from robot_io.twin.tasks.stack import BLUE_CUBE
from robot_io.twin.tasks.task import TwinTask, draw_apart, lies_on

_APART_M = 0.065
_MARK_RADIUS_M = 0.19
_MARK_AZIMUTH_DEG = (35.0, 40.0)
_WHITE_MARK = TableMark("white_mark", (0.93, 0.93, 0.93), (0.15, 0.11))
_BLACK_MARK = TableMark("black_mark", (0.06, 0.06, 0.06), (0.15, -0.11))


def _draw(dice: np.random.Generator, sector: TableSector) -> Layout:
    red = bool(dice.integers(2))

    def layout() -> Layout:
        left, right = (math.radians(dice.uniform(*_MARK_AZIMUTH_DEG)) for _ in range(2))
        marks = at(_MARK_RADIUS_M, left), at(_MARK_RADIUS_M, -right)
        cube = draw_in(dice, sector)
        return (cube, PARKED, *marks) if red else (PARKED, cube, *marks)

    return draw_apart(layout, _APART_M)


def _demonstrate(route: Route, layout: Layout) -> None:
    cubes, marks = layout[:2], layout[2:]
    which = _to_sort(cubes)
    grasping.grasp(route, cubes[which])
    grasping.lift(route, cubes[which])
    grasping.put_down(route, marks[which])


def _succeeded(state: TableState) -> bool:
    which = _to_sort([CubePlacement(x_m, y_m) for x_m, y_m, _ in state.cubes_m.tolist()])
    return lies_on(state, which, state.marks_m[which], ON_MARK_M, CUBE_SIZE_M / 2)


def _to_sort(cubes: Layout | list[CubePlacement]) -> int:
    """The cube that is not parked; the red one where both are."""
    return next((which for which, cube in enumerate(cubes) if not cube.parked), 0)


SORT = TwinTask(
    "sort",
    "pick_sort",
    (
        "sort the cube by its colour",
        "put a red cube on the white mark and a blue cube on the black mark",
        "red goes on white, blue goes on black",
        "move the cube to the mark for its colour",
    ),
    SceneObjects((RED_CUBE, BLUE_CUBE), (_WHITE_MARK, _BLACK_MARK)),
    10.0,
    _draw,
    _demonstrate,
    _succeeded,
)
