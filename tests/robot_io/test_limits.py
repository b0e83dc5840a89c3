"""No goal, however wrong, leaves the range, outruns the speed or jumps at a handover."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robot_io.calibration import JOINTS, Calibration, JointCalibration
from robot_io.limits import Clip, FirstMoveGuard, Limits, ParkPlan, Ramp, SafetyFilter

EPS = 1e-3
units = st.floats(-200, 200, width=32)
vectors = st.lists(units, min_size=6, max_size=6).map(lambda v: np.array(v, np.float32))
wild = st.lists(
    st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=6, max_size=6
).map(lambda v: np.array(v, np.float32))


def limits(step: float = 20.0, speed: float = 90.0) -> Limits:
    return Limits(
        np.full(6, -100.0, np.float32),
        np.full(6, 100.0, np.float32),
        np.full(6, step, np.float32),
        np.full(6, speed, np.float32),
    )


@given(st.lists(st.tuples(wild, vectors, st.floats(0, 0.2)), min_size=1, max_size=10))
def test_whatever_is_asked_and_wherever_the_arm_is_the_bounds_hold(ticks):
    safety = SafetyFilter(limits())
    last = ticks[0][1]
    for goal, present, dt_s in ticks:
        sent, clipped = safety.apply(goal, present, dt_s)
        assert np.isfinite(sent).all()
        assert (np.abs(sent - present) <= 20.0 + EPS).all()
        inside = np.abs(present) <= 100.0
        held_back = np.array([bool(clip & Clip.STEP) for clip in clipped])
        # Within reach of the last goal, or pulled towards a joint that is further away.
        reach = np.abs(sent - last) <= 90.0 * dt_s + EPS
        assert (reach | held_back).all()
        assert (np.abs(sent[inside & ~held_back & (np.abs(last) <= 100)]) <= 100.0 + EPS).all()
        last = sent


@given(vectors, st.floats(0.001, 0.2))
def test_a_harmless_goal_passes_unchanged(goal, dt_s):
    goal = np.clip(goal, -100, 100)
    sent, clipped = SafetyFilter(limits()).apply(goal, goal, dt_s)
    assert sent.tolist() == goal.tolist()
    assert clipped == (Clip.NONE,) * 6


@pytest.mark.parametrize("end", [-100.0, 100.0])
def test_a_goal_beyond_either_end_of_the_range_stops_at_that_end(end):
    near = np.full(6, end * 0.9, np.float32)
    sent, clipped = SafetyFilter(limits()).apply(near * 2, near, 1.0)
    assert sent.tolist() == [end] * 6
    assert clipped == (Clip.POSITION,) * 6


def test_no_goal_moves_in_no_time_even_where_the_speed_is_unlimited():
    safety = SafetyFilter(limits(speed=np.inf))
    sent, clipped = safety.apply(np.full(6, 5.0, np.float32), np.ones(6, np.float32), 0.0)
    assert sent.tolist() == [1.0] * 6
    assert clipped == (Clip.VELOCITY,) * 6


def test_whatever_numbers_come_in_goals_go_out_as_float32():
    goal = np.full(6, 0.1)
    ramp = Ramp(1.0)
    assert ramp.apply(goal, 0.0).dtype == np.float32
    ramp.start(goal, 0.0)
    plan = ParkPlan(goal.tolist(), np.ones(6).tolist(), 1.0)
    safety = SafetyFilter(Limits([-1] * 6, [1] * 6, [1] * 6, [1] * 6))
    assert safety.limits.lower.dtype == np.float32
    assert safety.apply(goal, goal, 0.1)[0].dtype == np.float32
    assert ramp.apply(goal, 0.5).dtype == np.float32
    assert plan.goal(0.1).dtype == plan.goal(plan.duration_s).dtype == np.float32


def test_limits_within_a_calibration_are_its_range_and_unlimited_unless_told():
    calibration = Calibration(
        {name: JointCalibration(i + 1, 0, 0, 1000 + i, 3000 - i) for i, name in enumerate(JOINTS)}
    )
    free = Limits.within(calibration)
    assert free.lower.tolist() == calibration.lower.tolist()
    assert free.upper.tolist() == calibration.upper.tolist()
    assert free.max_step.tolist() == free.max_velocity.tolist() == [np.inf] * 6
    bound = Limits.within(calibration, 5, [1, 2, 3, 4, 5, 6])
    assert bound.max_step.tolist() == [5.0] * 6
    assert bound.max_velocity.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_the_narrowest_limits_that_make_sense_are_accepted():
    narrow = Limits(np.ones(6), np.ones(6), np.full(6, 0.5), np.full(6, 0.5))
    sent, _ = SafetyFilter(narrow).apply(np.zeros(6), np.ones(6), 1.0)
    assert sent.tolist() == [1.0] * 6


def test_a_goal_that_is_no_number_holds_that_joint_and_says_so():
    safety = SafetyFilter(limits())
    present = np.zeros(6, np.float32)
    safety.apply(np.full(6, 1.0, np.float32), present, 1.0)
    goal = np.array([np.nan, np.inf, -np.inf, 2, 2, 2], np.float32)
    sent, clipped = safety.apply(goal, present, 1.0)
    assert sent.tolist() == [1, 1, 1, 2, 2, 2]
    assert clipped == (Clip.NOT_FINITE,) * 3 + (Clip.NONE,) * 3


def test_each_reason_is_told_apart():
    safety = SafetyFilter(limits(step=5.0, speed=30.0))
    present = np.zeros(6, np.float32)
    _, clipped = safety.apply(np.array([150, 50, 4, 0, 0, 0], np.float32), present, 0.1)
    assert clipped[0] == Clip.POSITION | Clip.VELOCITY
    assert clipped[1:4] == (Clip.VELOCITY, Clip.VELOCITY, Clip.NONE)
    safety.apply(np.full(6, 5.0, np.float32), present, 1.0)
    sent, clipped = safety.apply(np.full(6, 7.0, np.float32), present, 1.0)
    assert sent.tolist() == [5.0] * 6
    assert clipped == (Clip.STEP,) * 6


def test_after_a_reset_the_way_begins_where_the_arm_is():
    safety = SafetyFilter(limits(speed=30.0))
    safety.apply(np.full(6, 20.0, np.float32), np.full(6, 20.0, np.float32), 0.1)
    safety.reset()
    sent, _ = safety.apply(np.full(6, 20.0, np.float32), np.zeros(6, np.float32), 0.1)
    np.testing.assert_allclose(sent, 3.0)


@given(vectors, vectors, st.floats(0.05, 5.0), st.floats(0, 1e6))
def test_a_ramp_begins_at_the_arm_ends_at_the_source_and_never_overshoots(
    present, goal, duration_s, began_s
):
    ramp = Ramp(duration_s)
    assert ramp.apply(goal, began_s).tolist() == goal.tolist()
    ramp.start(present, began_s)
    np.testing.assert_allclose(ramp.apply(goal, began_s), present, atol=EPS)
    done_before = np.zeros(6)
    for x in np.linspace(0, 0.99, 20):
        sent = ramp.apply(goal, began_s + x * duration_s)
        done = np.abs(sent - present)
        assert (done >= done_before - EPS).all()
        assert (done <= np.abs(goal - present) + EPS).all()
        done_before = done
    after_s = began_s + duration_s * 1.001 + 1e-6
    assert not ramp.active(after_s)
    assert ramp.apply(goal, after_s).tolist() == goal.tolist()


def test_a_ramp_is_half_way_at_half_its_time():
    ramp = Ramp(2.0)
    ramp.start(np.full(6, 10.0, np.float32), 100.0)
    assert ramp.apply(np.full(6, 20.0, np.float32), 101.0).tolist() == [15.0] * 6


def test_a_ramp_of_no_length_hands_over_at_once():
    ramp = Ramp(0.0)
    ramp.start(np.zeros(6, np.float32), 5.0)
    assert not ramp.active(5.0)
    assert ramp.apply(np.ones(6, np.float32), 5.0).tolist() == [1.0] * 6


def test_first_move_is_measured_from_where_the_arm_is_up_to_the_distance_allowed():
    guard = FirstMoveGuard(0.1)
    present = np.full(6, 50.0, np.float32)
    assert guard.refusal(-present, present) is not None
    assert FirstMoveGuard(10.0).refusal(present + 10, present) is None
    # 0.1 as float32 is a little more than 0.1.
    assert guard.refusal(np.full(6, 0.1, np.float32), np.zeros(6, np.float32)) is None


def test_first_move_too_far_is_refused_by_joint_until_it_is_near():
    guard = FirstMoveGuard(10.0)
    present = np.zeros(6, np.float32)
    far = np.array([0, 0, 30, 0, 0, np.nan], np.float32)
    refusal = guard.refusal(far, present)
    assert refusal is not None
    assert "elbow_flex by 30.0" in refusal
    assert "gripper by nan" in refusal
    assert guard.refusal(np.full(6, 9.0, np.float32), present) is None
    assert guard.refusal(far, present) is None
    guard.reset()
    assert guard.refusal(far, present) is not None


@given(vectors, vectors, st.floats(1, 200))
def test_parking_arrives_and_no_joint_is_too_fast(present, rest, max_speed):
    plan = ParkPlan(present, rest, max_speed)
    np.testing.assert_allclose(plan.goal(0.0), present if plan.duration_s else rest, atol=EPS)
    assert plan.goal(plan.duration_s).tolist() == rest.tolist()
    assert plan.done(plan.duration_s)
    times = np.linspace(0, plan.duration_s, 200)
    if plan.duration_s > 0.1:
        path = np.array([plan.goal(t) for t in times], np.float64)
        speed = np.abs(np.diff(path, axis=0)) / np.diff(times)[:, None]
        assert speed.max() <= max_speed * 1.01 + 0.01


def test_parking_takes_as_long_as_its_fastest_joint_needs_and_no_longer():
    """A smoothstep peaks at 1.5 times the mean speed: 60 units at 30 a second take 3 s."""
    rest = np.array([60, -20, 0, 0, 0, 4], np.float32)
    assert ParkPlan(np.zeros(6), rest, 30.0).duration_s == 3.0
    assert ParkPlan(np.zeros(6), rest, [120, 60, 60, 60, 60, 1.5]).duration_s == 4.0
    assert ParkPlan(rest, rest, 30.0).duration_s == 0.0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: limits(step=0.0), "above 0"),
        (lambda: limits(speed=-1.0), "above 0"),
        (lambda: limits(speed=0.0), "above 0"),
        (lambda: Limits(np.ones(6), np.zeros(6), np.ones(6), np.ones(6)), "lower"),
        (lambda: Limits(np.ones(5), np.ones(6), np.ones(6), np.ones(6)), "6 numbers"),
        (lambda: Ramp(-1.0), "duration_s"),
        (lambda: Ramp(float("nan")), "duration_s"),
        (lambda: Ramp(1.0).start(np.full(6, np.inf), 0.0), "present"),
        (lambda: FirstMoveGuard(1.0).refusal(np.zeros(6), np.full(6, np.nan)), "present"),
        (lambda: ParkPlan(np.full(6, np.nan), np.zeros(6), 10.0), "present"),
        (lambda: ParkPlan(np.zeros(6), np.full(6, np.nan), 10.0), "rest"),
        (lambda: ParkPlan(np.zeros(6), np.zeros(6), 0.0), "max_speed"),
        (lambda: SafetyFilter(limits()).apply(np.zeros(5), np.zeros(6), 0.1), "6 joint units"),
        (lambda: SafetyFilter(limits()).apply(np.zeros(6), np.zeros(6), float("nan")), "dt_s"),
        (lambda: SafetyFilter(limits()).apply(np.zeros(6), np.full(6, np.nan), 0.1), "present"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(make, said):
    with pytest.raises(ValueError, match=said):
        make()
