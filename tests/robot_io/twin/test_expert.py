"""The expert's plans, without clock and wire: in MuJoCo alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from robot_io.twin.expert import ARM_JOINTS, GRASP_M, Expert
from robot_io.twin.hand import PLAN_HZ, Plan
from robot_io.twin.layout import CubePlacement
from robot_io.twin.route import Route
from robot_io.twin.scene import REST_JOINTS_RAD, build_scene, joint_ranges_rad
from robot_io.twin.tasks.grasping import CLOSED_RAD, OPEN_RAD
from robot_io.twin.tasks.lift import DURATION_S, LIFT

REST = np.array(REST_JOINTS_RAD)
STIFF = np.zeros(6)


@pytest.fixture(scope="module")
def expert() -> Expert:
    return Expert()


def pick_lift(expert: Expert, x_m: float, y_m: float, speed: float = 1.0) -> Plan:
    route = Route(expert, REST, STIFF, speed)
    LIFT.demonstrate(route, (CubePlacement(x_m, y_m),))
    return route.plan()


def places() -> list[tuple[float, float]]:
    return [
        (radius * math.cos(azimuth), radius * math.sin(azimuth))
        for radius in (0.16, 0.1875, 0.215)
        for azimuth in (-0.785, -0.3, 0.0, 0.4, 0.785)
    ]


@pytest.mark.parametrize(("x_m", "y_m"), places())
def test_every_place_can_be_reached_to_a_tenth_of_a_millimetre(
    expert: Expert, x_m: float, y_m: float
) -> None:
    angles, off_m = expert.reach(x_m, y_m, GRASP_M)
    assert off_m < 1e-4
    ranges = joint_ranges_rad(build_scene().model)[:ARM_JOINTS]
    assert (angles >= ranges[:, 0]).all()
    assert (angles <= ranges[:, 1]).all()


@pytest.mark.parametrize(("x_m", "y_m"), places())
def test_a_demonstration_is_smooth_short_and_within_the_servos_speed(
    expert: Expert, x_m: float, y_m: float
) -> None:
    plan = pick_lift(expert, x_m, y_m)
    assert 3.4 <= plan.duration_s <= 4.0
    assert plan.duration_s == pytest.approx(DURATION_S, abs=0.05)
    track = np.vstack([REST, plan.angles_rad])
    velocity = np.diff(track, axis=0) * PLAN_HZ
    assert np.abs(velocity).max() < 3.0
    assert np.abs(np.diff(velocity, axis=0)).max() * PLAN_HZ < 25.0, "no jerk between its parts"
    assert plan.angles_rad[-1, 5] == pytest.approx(CLOSED_RAD)
    assert plan.angles_rad[:, 5].max() == pytest.approx(OPEN_RAD, abs=0.01)


def test_a_place_a_millimetre_away_gives_nearly_the_same_motion(expert: Expert) -> None:
    here = pick_lift(expert, 0.18, 0.03).angles_rad
    there = pick_lift(expert, 0.18, 0.031).angles_rad
    assert np.abs(here - there).max() < 0.03


def test_a_faster_hand_takes_the_same_way_in_less_time(expert: Expert) -> None:
    slow = pick_lift(expert, 0.19, 0.0)
    fast = pick_lift(expert, 0.19, 0.0, speed=2.0)
    assert fast.duration_s == pytest.approx(slow.duration_s / 2, abs=0.05)
    np.testing.assert_allclose(fast.angles_rad[-1], slow.angles_rad[-1])
