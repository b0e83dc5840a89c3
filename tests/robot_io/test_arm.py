"""An arm over the wire: found, configured, energised without a jump, released whatever happens."""

from __future__ import annotations

import numpy as np
import pytest

from robot_io.arm import JOINTS, Calibration, Calibrator, Follower, JointCalibration, Leader
from robot_io.bus import ServoBus
from robot_io.errors import (
    BadCalibration,
    BusTimeout,
    NotCalibrated,
    TorqueRefused,
    Unplugged,
    WrongServos,
)
from robot_io.sts3215 import REGISTERS, ServoError

IDS = (1, 2, 3, 4, 5, 6)
GOAL = REGISTERS["Goal_Position"].address
TORQUE = REGISTERS["Torque_Enable"].address


@pytest.fixture
def calibration() -> Calibration:
    return Calibration(
        {name: JointCalibration(i + 1, 0, 10 * i, 1000, 3000) for i, name in enumerate(JOINTS)}
    )


@pytest.fixture
def bus(servos):
    with ServoBus(servos.port, reply_timeout_s=0.02) as opened:
        yield opened


@pytest.fixture
def follower(servos, bus, calibration):
    arm = Follower(bus, calibration)
    arm.connect(write_calibration=True)
    servos.requests.clear()
    return arm


# -- connecting --------------------------------------------------------------------------------


def test_reading_is_in_joint_units(servos, follower):
    servos.set(1, "Present_Position", 2000 + 91)
    servos.set(6, "Present_Position", 1500)
    servos.set(2, "Present_Velocity", -4095)
    servos.set(2, "Present_Load", -500)
    servos.set(2, "Present_Current", 100)
    servos.set(3, "Status", ServoError.OVERLOAD)
    reading = follower.read()
    assert reading.position.dtype == np.float32
    np.testing.assert_allclose(reading.position[[0, 5]], [8.0, 25.0])
    np.testing.assert_allclose(reading.velocity[1], -360.0)
    np.testing.assert_allclose(reading.load[1], -50.0)
    np.testing.assert_allclose(reading.current_ma[1], 650.0)
    np.testing.assert_allclose(reading.voltage_v, 7.4)
    np.testing.assert_allclose(reading.temperature_c, 30.0)
    assert reading.errors[2] == ServoError.OVERLOAD
    assert reading.load.dtype == np.float32
    assert len(servos.requests) == 1


def test_reading_carries_the_time_of_its_answer(bus, calibration):
    assert Follower(bus, calibration, clock=lambda: 42.0).read().t_read_s == 42.0


def test_closing_the_arm_closes_its_port(follower):
    follower.close()
    assert not follower.bus.is_open


def test_wrong_servo_count_names_the_servos_that_are_missing(servos, bus, calibration):
    servos.mute = {3, 6}
    with pytest.raises(WrongServos, match=r"4 of the 6.*3 \(elbow_flex\), 6 \(gripper\)") as caught:
        Follower(bus, calibration).connect()
    assert caught.value.servo_ids == (3, 6)


def test_servo_of_another_model_is_named(servos, bus, calibration):
    servos.set(2, "Model_Number", 2825)
    with pytest.raises(WrongServos, match=r"2 \(shoulder_lift\) is 2825, not 777"):
        Follower(bus, calibration).connect()


def test_uncalibrated_arm_says_how_to_calibrate(bus):
    with pytest.raises(NotCalibrated, match="armada setup calibrate"):
        Follower(bus, None).connect()


def test_eeprom_that_differs_from_the_file_is_named_and_left_alone(servos, bus, calibration):
    servos.set(4, "Homing_Offset", 5)
    with pytest.raises(NotCalibrated, match=r"wrist_flex \(homing_offset 5 instead of 30"):
        Follower(bus, calibration).connect()
    assert servos.get(4, "Homing_Offset") == 5


def test_calibration_is_written_into_unlocked_eeprom_when_told(servos, bus, calibration):
    unlocked = []
    servos.on_write = lambda servo_id, address, data: (
        unlocked.append(servos.get(servo_id, "Lock") == 0) if address < 40 else None
    )
    Follower(bus, calibration).connect(write_calibration=True)
    assert unlocked
    assert all(unlocked)
    for servo_id in IDS:
        assert servos.get(servo_id, "Homing_Offset") == 10 * (servo_id - 1)
        assert servos.get(servo_id, "Min_Position_Limit") == 1000
        assert servos.get(servo_id, "Max_Position_Limit") == 3000
        assert servos.get(servo_id, "Lock") == 1


def test_connecting_to_the_right_arm_writes_nothing_and_keeps_torque(servos, follower):
    servos.set(2, "Torque_Enable", 1)
    written = []
    servos.on_write = lambda *write: written.append(write)
    follower.connect()
    assert written == []
    assert follower.torque_states() == (False, True, False, False, False, False)


# -- configuring -------------------------------------------------------------------------------


def test_follower_gets_lerobots_settings_and_stays_released(servos, follower):
    for servo_id in IDS:
        servos.set(servo_id, "Torque_Enable", 1)
    follower.configure()
    for servo_id in IDS:
        assert servos.get(servo_id, "Torque_Enable") == 0
        assert servos.get(servo_id, "Lock") == 1
        assert servos.get(servo_id, "Phase") == 0x0C
        for name, value in {
            "Operating_Mode": 0,
            "P_Coefficient": 16,
            "I_Coefficient": 0,
            "D_Coefficient": 32,
            "Return_Delay_Time": 0,
            "Maximum_Acceleration": 254,
            "Acceleration": 254,
        }.items():
            assert servos.get(servo_id, name) == value, name
    assert servos.get(6, "Max_Torque_Limit") == 500
    assert servos.get(6, "Protection_Current") == 250
    assert servos.get(6, "Overload_Torque") == 25
    assert servos.get(1, "Max_Torque_Limit") == 1000


def test_configuring_twice_writes_no_eeprom_twice(servos, follower):
    follower.configure()
    written = []
    servos.on_write = lambda servo_id, address, data: written.append(address)
    follower.configure()
    assert set(written) == {TORQUE}


def test_leader_keeps_its_own_position_loop(servos, bus, calibration):
    leader = Leader(bus, calibration)
    leader.connect(write_calibration=True)
    leader.configure()
    assert servos.get(1, "P_Coefficient") == 32
    assert servos.get(1, "Return_Delay_Time") == 0


def test_nothing_is_configured_while_a_servo_may_be_energised(servos, follower):
    servos.deaf = {5}
    with pytest.raises(TorqueRefused, match="wrist_roll"):
        follower.configure()
    assert servos.get(1, "P_Coefficient") == 32


# -- torque ------------------------------------------------------------------------------------


def test_torque_comes_only_after_the_goal_is_where_the_arm_is(servos, follower):
    """A stale goal, as a crashed host leaves it, would throw the arm."""
    for servo_id in IDS:
        servos.set(servo_id, "Goal_Position", 2900)
    energised_at = []

    def watch(servo_id: int, address: int, data: bytes) -> None:
        if address == TORQUE and data == b"\x01":
            energised_at.append(
                servos.get(servo_id, "Goal_Position") - servos.get(servo_id, "Present_Position")
            )

    servos.on_write = watch
    position = follower.torque_on()
    assert energised_at == [0] * 6
    np.testing.assert_allclose(position, follower.read().position, atol=1e-5)


def test_an_arm_outside_its_range_is_energised_at_the_end_of_the_range(servos, follower):
    """A goal beyond its limits is one that the servo would correct in a jump of its own."""
    servos.set(2, "Present_Position", 990)
    servos.set(3, "Present_Position", 3010)
    position = follower.torque_on()
    held = follower.bus.sync_read("Goal_Position", IDS)
    assert held == {1: 2001, 2: 1000, 3: 3000, 4: 2004, 5: 2005, 6: 2006}
    assert follower.torque_states() == (True,) * 6
    np.testing.assert_allclose(position, follower.calibration.to_units(np.array([*held.values()])))


def test_a_refused_arm_is_released_though_it_was_energised_before(servos, follower):
    for servo_id in IDS:
        servos.set(servo_id, "Torque_Enable", 1)
    servos.on_write = lambda *_: servos.set(5, "Goal_Position", 2900)
    with pytest.raises(TorqueRefused, match="wrist_roll"):
        follower.torque_on()
    assert follower.torque_states() == (False,) * 6


def test_torque_is_refused_when_a_servo_did_not_take_the_goal(servos, follower):
    def forget(servo_id: int, address: int, data: bytes) -> None:
        if servo_id == 4 and address == GOAL:
            servos.set(4, "Goal_Position", 2900)

    servos.on_write = forget
    with pytest.raises(TorqueRefused, match="wrist_flex"):
        follower.torque_on()
    assert follower.torque_states() == (False,) * 6


def test_servo_that_falls_silent_while_energising_leaves_the_others_released(servos, follower):
    def fall_silent(servo_id: int, address: int, data: bytes) -> None:
        if servo_id == 3 and address == TORQUE and data == b"\x01":
            servos.mute = {4}

    servos.on_write = fall_silent
    with pytest.raises(BusTimeout):
        follower.torque_on()
    servos.on_write = None
    servos.mute = set()
    assert follower.torque_states() == (False,) * 6


def test_release_goes_on_past_a_mute_servo_and_names_it(servos, follower):
    follower.torque_on()
    servos.deaf = {2}
    failures = follower.release()
    assert list(failures) == ["shoulder_lift"]
    servos.deaf = set()
    assert follower.torque_states() == (False, True, False, False, False, False)


def test_release_reaches_a_servo_that_hears_but_cannot_speak(servos, follower):
    follower.torque_on()
    servos.mute = {1}
    assert list(follower.release()) == ["shoulder_pan"]
    servos.mute = set()
    assert follower.torque_states() == (False,) * 6


def test_release_of_an_unplugged_arm_returns_all_joints_and_never_raises(servos, follower):
    servos.unplug()
    failures = follower.release()
    assert list(failures) == list(JOINTS)
    assert all(isinstance(error, Unplugged) for error in failures.values())
    follower.close()


def test_goal_is_clipped_to_the_calibrated_range_and_told_as_sent(servos, follower):
    sent = follower.write_goal(np.array([0, 500, -500, 10, 0, 150], np.float32))
    held = follower.bus.sync_read("Goal_Position", IDS)
    assert held == {1: 2000, 2: 3000, 3: 1000, 4: 2114, 5: 2000, 6: 3000}
    np.testing.assert_allclose(sent, follower.calibration.to_units(np.array(list(held.values()))))


def test_goal_that_is_no_number_is_not_sent(servos, follower):
    with pytest.raises(ValueError, match="six finite"):
        follower.write_goal(np.full(6, np.nan, np.float32))
    assert servos.requests == []


# -- calibrating -------------------------------------------------------------------------------


class Arm:
    """Moves the fake's joints; Present = actual - offset, as the servo computes it."""

    def __init__(self, servos, actual: dict[int, int]) -> None:
        self.servos = servos
        self.actual = actual
        servos.on_write = lambda servo_id, *_: self.place(servo_id)
        for servo_id in IDS:
            self.place(servo_id)

    def place(self, servo_id: int) -> None:
        offset = self.servos.get(servo_id, "Homing_Offset")
        self.servos.set(servo_id, "Present_Position", (self.actual[servo_id] - offset) % 4096)

    def move(self, by: int) -> None:
        for servo_id in IDS:
            self.actual[servo_id] = (self.actual[servo_id] + by) % 4096
            self.place(servo_id)


def test_calibration_in_steps_centres_every_joint_and_records_its_range(servos, bus):
    arm = Arm(servos, {1: 300, 2: 4000, 3: 2047, 4: 1, 5: 3000, 6: 2500})
    for servo_id in IDS:
        servos.set(servo_id, "Homing_Offset", 77)
        servos.set(servo_id, "Torque_Enable", 1)
    calibrator = Calibrator(bus)
    offsets = calibrator.set_half_turn_homing()
    assert offsets["shoulder_pan"] == 300 - 2047
    assert bus.sync_read("Present_Position", IDS) == dict.fromkeys(IDS, 2047)
    calibrator.start_range()
    for step in [-400] * 2 + [400] * 5 + [-400] * 3:
        arm.move(step)
        seen = calibrator.observe()
    assert seen["gripper"] == (2047 - 800, 2047, 2047 + 1200)
    calibration = calibrator.finish()
    assert calibration.joints["elbow_flex"] == JointCalibration(3, 0, 0, 1247, 3247)
    assert calibration.joints["wrist_roll"].range_min == 0
    assert calibration.joints["wrist_roll"].range_max == 4095
    Follower(bus, calibration).connect()


def test_offset_that_the_servo_cannot_hold_is_refused_in_one_line(servos, bus):
    Arm(servos, {1: 2000, 2: 4095, 3: 2000, 4: 2000, 5: 2000, 6: 2000})
    with pytest.raises(BadCalibration, match=r"shoulder_lift \(2048\) is beyond ±2047") as caught:
        Calibrator(bus).set_half_turn_homing()
    assert "\n" not in str(caught.value)


def test_joint_that_was_not_moved_is_named_and_the_range_goes_on(servos, bus):
    arm = Arm(servos, dict.fromkeys(IDS, 2047))
    calibrator = Calibrator(bus)
    calibrator.set_half_turn_homing()
    calibrator.start_range()
    with pytest.raises(BadCalibration, match=r"shoulder_pan \(0 ticks\).*hardly moved"):
        calibrator.finish()
    for step in (-900, 1800):
        arm.move(step)
        calibrator.observe()
    assert calibrator.finish().joints["gripper"].range_max == 2947


def test_joint_that_runs_through_the_encoders_end_is_refused(servos, bus):
    arm = Arm(servos, dict.fromkeys(IDS, 2047))
    calibrator = Calibrator(bus)
    calibrator.set_half_turn_homing()
    calibrator.start_range()
    arm.move(1900)
    calibrator.observe()
    arm.move(500)
    with pytest.raises(BadCalibration, match="through the end of its encoder"):
        calibrator.observe()


def test_steps_out_of_order_are_refused(bus):
    calibrator = Calibrator(bus)
    for step in (calibrator.start_range, calibrator.observe, calibrator.finish):
        with pytest.raises(BadCalibration, match="step first"):
            step()
