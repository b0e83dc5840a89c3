"""Set points, torque ceilings and protection of six motors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_io.sts3215 import ServoError
from robot_io.twin.motor import (
    RAD_PER_TICK,
    Profile,
    Protection,
    encoder_ticks,
    goal_angles,
)
from robot_io.twin.shared import N_JOINTS, Float, SharedCommand

DT_S = 0.005
CENTRE = np.full(N_JOINTS, 2000.0)


def commands(**columns: float) -> Float:
    command = np.zeros((N_JOINTS, len(SharedCommand)))
    defaults = {
        "TORQUE_ENABLE": 1,
        "MAX_VELOCITY_TICK_S": 3200,
        "ACCELERATION_TICK_S2": 25400,
        "TORQUE_LIMIT": 1,
        "PROTECTIVE_TORQUE": 0.2,
        "OVERLOAD_TORQUE": 0.8,
        "PROTECTION_TIME_S": 2,
        "PROTECTION_CURRENT_MA": 3250,
        "OVERCURRENT_TIME_S": 2,
        "MAX_TEMPERATURE_C": 70,
        "UNLOAD_ON": 44,
    }
    for name, value in (defaults | columns).items():
        command[:, SharedCommand[name]] = value
    return command


@settings(deadline=None)
@given(angle=st.floats(-3, 3), centre=st.integers(60, 4036), offset=st.integers(-2047, 2047))
def test_a_goal_equal_to_present_is_where_the_joint_is(
    angle: float, centre: int, offset: int
) -> None:
    angles = np.full(N_JOINTS, angle)
    centres = np.full(N_JOINTS, float(centre))
    present = np.mod(encoder_ticks(angles, centres) - offset, 4096)
    goal = goal_angles(commands(GOAL_TICK=present[0], OFFSET_TICK=offset), angles, centres)
    np.testing.assert_allclose(goal, angles, atol=1e-9)


def test_a_goal_across_the_seam_is_reached_the_long_way_round() -> None:
    angle = np.full(N_JOINTS, 2090 * RAD_PER_TICK)  # encoder at 4090
    goal = goal_angles(commands(GOAL_TICK=10), angle, CENTRE)
    np.testing.assert_allclose(goal - angle, -4080 * RAD_PER_TICK)


@settings(deadline=None, max_examples=25)
@given(
    distance=st.floats(-2, 2),
    velocity=st.integers(0, 3200),
    acceleration=st.integers(0, 254),
)
def test_a_profile_keeps_its_speed_and_acceleration_and_arrives_without_overshoot(
    distance: float, velocity: int, acceleration: int
) -> None:
    goal_tick = round(2000 + distance / RAD_PER_TICK)
    command = commands(
        GOAL_TICK=goal_tick,
        GOAL_VELOCITY_TICK_S=velocity,
        ACCELERATION_TICK_S2=acceleration * 100,
    )
    profile = Profile()
    start = np.zeros(N_JOINTS)
    profile.command(command, start, CENTRE)
    goal = (goal_tick - 2000) * RAD_PER_TICK
    top = (velocity or 3200) * RAD_PER_TICK
    before = 0.0
    for _ in range(3000):
        now = float(profile.step(DT_S, start)[0])
        assert abs(now - before) <= top * DT_S + 1e-9
        assert abs(now) <= abs(goal) + 1e-9, "never beyond the goal"
        assert abs(goal - now) <= abs(goal - before) + 1e-9, "never backwards"
        before = now
    if velocity == 0 or abs(goal) / top < 15:
        assert before == pytest.approx(goal, abs=0.02)


def test_torque_on_begins_where_the_joint_stands_whatever_the_stale_goal() -> None:
    profile = Profile()
    angle = np.full(N_JOINTS, 0.7)
    profile.command(commands(TORQUE_ENABLE=0, GOAL_TICK=2000), angle, CENTRE)
    np.testing.assert_allclose(profile.step(DT_S, angle), angle)
    profile.command(commands(TORQUE_ENABLE=1, GOAL_TICK=2000), angle, CENTRE)
    first = profile.step(DT_S, angle)
    assert np.all(np.abs(first - angle) < 0.01)
    assert np.all(first < angle), "and then goes to the stale goal"


def test_a_motor_without_torque_has_no_set_point_of_its_own() -> None:
    profile = Profile()
    profile.command(commands(TORQUE_ENABLE=0), np.zeros(N_JOINTS), CENTRE)
    moved: Float = np.linspace(-1.0, 1.0, N_JOINTS, dtype=np.float64)
    np.testing.assert_array_equal(profile.step(DT_S, moved), moved)


def push(
    protection: Protection, command: Float, load: float, seconds: float, step_s: float = 0.02
) -> None:
    for _ in range(round(seconds / step_s)):
        protection.step(step_s, command, np.full(N_JOINTS, load))


def test_overload_needs_more_than_the_threshold_for_longer_than_the_time() -> None:
    command = commands(OVERLOAD_TORQUE=0.25)
    protection = Protection()
    push(protection, command, 0.2, 5.0)
    push(protection, command, 0.5, 1.9)
    push(protection, command, 0.1, 0.1)
    push(protection, command, 0.5, 1.9)
    assert not protection.error.any()
    push(protection, command, 0.5, 0.2)
    assert (protection.error == ServoError.OVERLOAD).all()


def test_an_overloaded_motor_keeps_its_protective_torque_until_it_need_not_push() -> None:
    command = commands()
    protection = Protection()
    push(protection, command, -0.9, 2.1)
    np.testing.assert_allclose(protection.torque_ceiling(command), 0.2)
    push(protection, command, -0.2, 1.0)
    np.testing.assert_allclose(protection.torque_ceiling(command), 0.2)
    push(protection, command, -0.05, 0.04)
    np.testing.assert_allclose(protection.torque_ceiling(command), 1.0)


def test_a_hot_motor_lets_go_and_its_bit_clears_when_it_is_cool() -> None:
    command = commands(OVERLOAD_TORQUE=1.1, PROTECTION_CURRENT_MA=9999)
    protection = Protection()
    push(protection, command, 1.0, 200.0, step_s=0.5)
    assert (protection.error == ServoError.OVERHEAT).all()
    np.testing.assert_allclose(protection.torque_ceiling(command), 0.0)
    push(protection, command, 0.0, 120.0, step_s=0.5)
    assert not protection.error.any()


def test_half_load_never_overheats() -> None:
    protection = Protection()
    push(protection, commands(), 0.5, 1500.0, step_s=1.0)
    assert protection.temperature_c.max() < 55


def test_without_its_unloading_bit_a_fault_is_reported_but_torque_stays() -> None:
    command = commands(UNLOAD_ON=0, FORCED_ERROR=int(ServoError.OVERHEAT))
    protection = Protection()
    push(protection, command, 0.1, 0.04)
    assert (protection.error == ServoError.OVERHEAT).all()
    np.testing.assert_allclose(protection.torque_ceiling(command), 1.0)
