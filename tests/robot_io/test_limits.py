"""No goal, however wrong, leaves the range, outruns the speed or jumps at a handover."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: limits(step=0.0), "above 0"),
        (lambda: limits(speed=-1.0), "above 0"),
        (lambda: Limits(np.ones(6), np.zeros(6), np.ones(6), np.ones(6)), "lower"),
        (lambda: Limits(np.ones(5), np.ones(6), np.ones(6), np.ones(6)), "6 numbers"),
        (lambda: Ramp(-1.0), "duration_s"),
        (lambda: Ramp(float("nan")), "duration_s"),
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
