"""Push the red cube to the mark with the paddle that the gripper holds."""

from __future__ import annotations

import math

import numpy as np

from robot_io.twin.expert import PAN_AXIS_X_M
from robot_io.twin.layout import Layout, TableSector, TableState, at, draw_in
from robot_io.twin.objects import CUBE_SIZE_M, RED_CUBE, SceneObjects
from robot_io.twin.route import Route
from robot_io.twin.scene import PADDLE_DROP_M, PADDLE_THICKNESS_M
from robot_io.twin.shared import Float
from robot_io.twin.tasks.grasping import CLOSED_RAD
from robot_io.twin.tasks.place import GREEN_MARK, ON_MARK_M
from robot_io.twin.tasks.task import LYING_SPEED_M_S, TwinTask

_CUBE_RADIUS_M = (0.165, 0.175)
_MARK_RADIUS_M = (0.218, 0.228)
_MARK_ASIDE_RAD = 0.05
_ABOVE_M = 0.068
_LOW_M = PADDLE_DROP_M + 0.004  # the paddle's edge over the table
_BEHIND_M = CUBE_SIZE_M / 2 + PADDLE_THICKNESS_M / 2
_GAP_M = 0.010  # between paddle and cube before the push
_WAYPOINTS = 4

_APPROACH_S = 1.3
_DESCENT_S = 0.7
_PUSH_S = 1.8
_BACK_S = 0.5
_RETREAT_S = 0.6
_END_S = 0.2


def _draw(dice: np.random.Generator, sector: TableSector) -> Layout:
    cube = draw_in(dice, sector, _CUBE_RADIUS_M)
    azimuth = math.atan2(cube.y_m, cube.x_m)
    aside = dice.uniform(-_MARK_ASIDE_RAD, _MARK_ASIDE_RAD)
    return cube, at(dice.uniform(*_MARK_RADIUS_M), azimuth + aside)


def _demonstrate(route: Route, layout: Layout) -> None:
    cube, mark = layout
    heading_rad = math.atan2(mark.y_m - cube.y_m, mark.x_m - cube.x_m)
    way = np.array((math.cos(heading_rad), math.sin(heading_rad)))
    start = np.array((cube.x_m, cube.y_m)) - way * (_BEHIND_M + _GAP_M)
    end = np.array((mark.x_m, mark.y_m)) - way * _BEHIND_M

    def pose(place: Float, height_m: float) -> Float:
        # The paddle faces along the push wherever the arm pans.
        x_m, y_m = place.tolist()
        roll_rad = heading_rad - math.atan2(y_m, x_m - PAN_AXIS_X_M)
        return route.pose(x_m, y_m, height_m, CLOSED_RAD, roll_rad)

    route.through(
        [pose(start, _ABOVE_M), pose(start, _LOW_M)], [_APPROACH_S, _DESCENT_S], jaws_s=_APPROACH_S
    )
    shares = np.arange(1, _WAYPOINTS + 1) / _WAYPOINTS
    route.through(
        [pose(start + (end - start) * share, _LOW_M) for share in shares],
        [_PUSH_S / _WAYPOINTS] * _WAYPOINTS,
    )
    back = end - way * _GAP_M
    route.through([pose(back, _LOW_M)], [_BACK_S])
    route.through([pose(back, _ABOVE_M)], [_RETREAT_S])
    route.wait(_END_S)


def _succeeded(state: TableState) -> bool:
    x_m, y_m, _ = state.cubes_m[0]
    mark_x_m, mark_y_m = state.marks_m[0]
    return bool(
        math.hypot(x_m - mark_x_m, y_m - mark_y_m) < ON_MARK_M
        and state.speeds_m_s[0] < LYING_SPEED_M_S
        and state.highest_m[0] < CUBE_SIZE_M  # pushed, not carried
    )


PUSH = TwinTask(
    "push",
    "push",
    (
        "push the red cube to the mark",
        "use the paddle to push the cube onto the green square",
        "slide the red block to the mark with the tool",
        "shove the cube onto the green mark",
    ),
    SceneObjects((RED_CUBE,), (GREEN_MARK,), paddle=True),
    10.0,
    _draw,
    _demonstrate,
    _succeeded,
)
