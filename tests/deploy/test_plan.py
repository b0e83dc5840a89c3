"""The demo's plan keeps its promises about who saw what."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.local_fleet.plan import CLEARANCE_M, make_plan
from robot_io.twin.layout import RADIUS_MAX_M, RADIUS_MIN_M, YAW_JITTER_RAD, table_sectors


def plan(seed=3, robots=3, episodes=8, trials=2):
    return make_plan(robots, episodes, trials, ("local", "active"), seed)


@given(st.integers(1, 8))
def test_sectors_cover_the_table_without_overlap(count):
    slices = table_sectors(count)
    assert len(slices) == count
    for before, after in itertools.pairwise(slices):
        assert before.azimuth_max_deg == after.azimuth_min_deg


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_every_robot_demonstrates_in_its_own_sector_only(seed):
    for robot in plan(seed):
        for place in robot.demonstrations:
            azimuth_deg = math.degrees(math.atan2(place.y_m, place.x_m))
            assert robot.sector.azimuth_min_deg <= azimuth_deg <= robot.sector.azimuth_max_deg
            assert RADIUS_MIN_M <= math.hypot(place.x_m, place.y_m) <= RADIUS_MAX_M + 1e-9
            assert abs(place.yaw_rad - math.radians(azimuth_deg)) <= YAW_JITTER_RAD + 1e-9


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_no_trial_lies_on_a_demonstrated_placement(seed):
    robots = plan(seed)
    demonstrated = [place for robot in robots for place in robot.demonstrations]
    for robot in robots:
        for trial in robot.trials:
            for place in demonstrated:
                gap_m = math.hypot(trial.placement.x_m - place.x_m, trial.placement.y_m - place.y_m)
                assert gap_m >= CLEARANCE_M


def test_policies_are_tried_on_the_same_placements():
    for robot in plan():
        local = [trial.placement for trial in robot.trials if trial.policy == "local"]
        world = [trial.placement for trial in robot.trials if trial.policy == "active"]
        assert local == world
        assert {place.sector for place in local} == {"right", "centre", "left"}


def test_the_same_seed_gives_the_same_plan():
    assert plan(5) == plan(5)
    assert plan(5) != plan(6)


@pytest.mark.parametrize("wrong", [{"robots": 0}, {"episodes": 0}, {"trials": 0}])
def test_a_count_below_one_is_refused(wrong):
    with pytest.raises(ValueError, match="at least one"):
        plan(**wrong)
