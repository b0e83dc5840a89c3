"""The hand's motions are smooth, bounded in speed, and end where they should."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from robot_io.twin.hand import HAND_SPEED_RAD_S, PLAN_HZ, STOP_S, move_plan, sweep_plan
from robot_io.twin.shared import N_JOINTS, Float

RANGES = np.array([[-1.9, 1.9], [-1.7, 1.7], [-1.6, 1.6], [-1.6, 1.6], [-2.7, 2.7], [-0.2, 1.7]])
poses = npst.arrays(np.float64, N_JOINTS, elements=st.floats(-2.7, 2.7))


@settings(deadline=None)
@given(start=poses, goal=poses)
def test_a_move_ends_at_its_goal_and_no_joint_is_too_fast(start: Float, goal: Float) -> None:
    plan = move_plan(start, goal)
    np.testing.assert_allclose(plan.at(0.0)[0], start, atol=1e-12)
    np.testing.assert_allclose(plan.at(plan.duration_s)[0], goal, atol=1e-12)
    speeds = np.abs(np.diff(plan.angles_rad, axis=0)) * PLAN_HZ
    assert speeds.max() <= HAND_SPEED_RAD_S * 1.02


def test_a_plan_reports_its_end_and_rests_there() -> None:
    plan = move_plan(np.zeros(N_JOINTS), np.ones(N_JOINTS))
    assert not plan.at(plan.duration_s / 2)[2]
    angles, velocities, over = plan.at(plan.duration_s + 5)
    assert over
    np.testing.assert_array_equal(angles, np.ones(N_JOINTS))
    assert not velocities.any()


def test_a_sweep_reaches_every_stop_long_enough_to_be_seen_and_ends_in_the_middle() -> None:
    plan = sweep_plan(np.zeros(N_JOINTS), RANGES)
    for joint in range(N_JOINTS):
        track = plan.angles_rad[:, joint]
        for stop in RANGES[joint]:
            assert np.sum(np.isclose(track, stop)) >= STOP_S * PLAN_HZ
        assert track.min() >= RANGES[joint, 0] - 1e-9
        assert track.max() <= RANGES[joint, 1] + 1e-9
    np.testing.assert_allclose(plan.angles_rad[-1], RANGES.mean(axis=1))


def test_a_sweep_never_jumps() -> None:
    plan = sweep_plan(np.full(N_JOINTS, 0.3), RANGES)
    assert np.abs(np.diff(plan.angles_rad, axis=0)).max() < 0.06
