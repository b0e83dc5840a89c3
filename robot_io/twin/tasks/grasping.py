"""The motions that picking tasks share: grasp a cube, carry it, put it down. Roll stays 0, so that
the jaws close along the radius; the same heights and times wherever the cube lies.
"""

from __future__ import annotations

from robot_io.twin.expert import GRASP_M, grip_m
from robot_io.twin.layout import CubePlacement
from robot_io.twin.objects import CUBE_SIZE_M
from robot_io.twin.route import Route

OPEN_RAD = 0.60
CLOSED_RAD = 0.098  # a 25 mm cube stops the jaw at 0.125: a firm grip, below the overload threshold
ABOVE_M = 0.085  # of the grasp point over the table
LIFT_M = 0.080
_RELEASED_RAD = 0.40
# A held cube hangs as high over the table as the grasp point over its place.
_PUT_DOWN_M = GRASP_M + 0.001

APPROACH_S = 1.15
DESCENT_S = 0.60
CLOSING_S = 0.45
SETTLE_S = 0.10
LIFTING_S = 0.75
_CARRY_S = 1.10
_RELEASE_S = 0.40
_RETREAT_S = 0.60
_END_S = 0.30


def grasp(route: Route, cube: CubePlacement) -> None:
    """Over the cube, down, and close the jaws on it. Opening is done before they come near."""
    x_m, y_m = grip_m(cube.x_m, cube.y_m)
    above, halfway, down = (
        route.pose(x_m, y_m, height, OPEN_RAD)
        for height in (ABOVE_M, (ABOVE_M + GRASP_M) / 2, GRASP_M)
    )
    half_s = DESCENT_S / 2
    route.through([above, halfway, down], [APPROACH_S, half_s, half_s], jaws_s=APPROACH_S)
    route.straight(route.pose(x_m, y_m, GRASP_M, CLOSED_RAD), CLOSING_S)
    route.wait(SETTLE_S)


def lift(route: Route, cube: CubePlacement) -> None:
    """Straight up with the cube that was grasped there."""
    x_m, y_m = grip_m(cube.x_m, cube.y_m)
    raised = [route.pose(x_m, y_m, GRASP_M + LIFT_M * share, CLOSED_RAD) for share in (0.5, 1.0)]
    route.through(raised, [LIFTING_S / 2, LIFTING_S / 2])


def put_down(route: Route, goal: CubePlacement, cubes_below: int = 0) -> None:
    """Carry the lifted cube over the goal, lower it there, let go, and move away upwards."""
    low_m = _PUT_DOWN_M + cubes_below * CUBE_SIZE_M
    high_m = GRASP_M + LIFT_M + cubes_below * CUBE_SIZE_M / 2
    above, halfway, down = (
        route.pose(goal.x_m, goal.y_m, height, CLOSED_RAD)
        for height in (high_m, (high_m + low_m) / 2, low_m)
    )
    route.through([above, halfway, down], [_CARRY_S, DESCENT_S / 2, DESCENT_S / 2])
    route.wait(SETTLE_S)
    route.straight(route.pose(goal.x_m, goal.y_m, low_m, _RELEASED_RAD), _RELEASE_S)
    route.through([route.pose(goal.x_m, goal.y_m, high_m, OPEN_RAD)], [_RETREAT_S])
    route.wait(_END_S)
