"""What one servo's control table promises."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_io.sts3215 import EEPROM_END, MODEL_NUMBER, REGISTERS, ServoError
from robot_io.twin.firmware import TABLE_SIZE, Measured, Override, ServoFirmware
from robot_io.twin.shared import Servo, SharedCommand


class Joint:
    """The motor and encoder behind a servo under test."""

    def __init__(self) -> None:
        self.actual_tick = 1234.0
        self.row = [0.0] * len(Servo)
        self.row[Servo.VOLTAGE_V] = 12.0
        self.row[Servo.TEMPERATURE_C] = 30.0

    def __call__(self) -> Measured:
        return Measured(self.actual_tick, self.row)


@pytest.fixture
def joint() -> Joint:
    return Joint()


@pytest.fixture
def servo(joint: Joint) -> ServoFirmware:
    return ServoFirmware(3, joint)


def get(servo: ServoFirmware, name: str) -> int:
    register = REGISTERS[name]
    return register.decode(servo.read(register.address, register.size))


def put(servo: ServoFirmware, name: str, value: int) -> bool:
    register = REGISTERS[name]
    return servo.write(register.address, register.encode(value))


def test_a_new_servo_says_what_it_is(servo: ServoFirmware) -> None:
    assert get(servo, "Model_Number") == MODEL_NUMBER
    assert get(servo, "ID") == servo.servo_id == 3
    assert servo.baud == 1_000_000


@pytest.mark.parametrize("name", sorted(n for n, r in REGISTERS.items() if not r.read_only))
def test_every_writable_register_reads_back_what_was_written(
    servo: ServoFirmware, name: str
) -> None:
    put(servo, name, 1)
    assert get(servo, name) == 1


@pytest.mark.parametrize("name", sorted(n for n, r in REGISTERS.items() if r.read_only))
def test_a_read_only_register_keeps_its_value(servo: ServoFirmware, name: str) -> None:
    before = get(servo, name)
    put(servo, name, before ^ 1 if before >= 0 else 0)
    assert get(servo, name) == before


@settings(deadline=None)
@given(actual=st.floats(0, 4095.4), offset=st.integers(-2047, 2047))
def test_present_is_actual_less_offset_on_one_turn(actual: float, offset: int) -> None:
    joint = Joint()
    servo = ServoFirmware(1, joint)
    joint.actual_tick = actual
    put(servo, "Homing_Offset", offset)
    present = get(servo, "Present_Position")
    assert 0 <= present < 4096
    assert (present + offset - actual + 2048) % 4096 - 2048 == pytest.approx(0, abs=0.51)


@settings(deadline=None)
@given(address=st.integers(0, 255), size=st.integers(0, 255))
def test_a_read_anywhere_gives_as_many_bytes_as_asked(address: int, size: int) -> None:
    assert len(ServoFirmware(1, Joint()).read(address, size)) == size


@settings(deadline=None)
@given(address=st.integers(0, 255), data=st.binary(max_size=250))
def test_no_write_breaks_the_table(address: int, data: bytes) -> None:
    servo = ServoFirmware(1, Joint())
    servo.write(address, data)
    assert len(servo.read(0, TABLE_SIZE)) == TABLE_SIZE
    assert get(servo, "Model_Number") == MODEL_NUMBER
    assert len(servo.command_row()) == len(SharedCommand)
    assert len(servo.saved_eeprom) == EEPROM_END


def test_a_locked_write_acts_but_is_gone_after_a_power_cycle(
    servo: ServoFirmware, joint: Joint
) -> None:
    assert not put(servo, "P_Coefficient", 16)
    assert get(servo, "P_Coefficient") == 16
    assert get(ServoFirmware(3, joint, servo.saved_eeprom), "P_Coefficient") == 32


def test_an_unlocked_write_survives_a_power_cycle(servo: ServoFirmware, joint: Joint) -> None:
    put(servo, "Lock", 0)
    assert put(servo, "P_Coefficient", 16)
    again = ServoFirmware(3, joint, servo.saved_eeprom)
    assert get(again, "P_Coefficient") == 16
    assert get(again, "Lock") == 1


def test_ram_is_gone_after_a_power_cycle(servo: ServoFirmware, joint: Joint) -> None:
    put(servo, "Lock", 0)
    assert not put(servo, "Torque_Enable", 1)
    assert get(ServoFirmware(3, joint, servo.saved_eeprom), "Torque_Enable") == 0


def test_the_goal_stays_within_the_position_limits(servo: ServoFirmware) -> None:
    put(servo, "Min_Position_Limit", 1000)
    put(servo, "Max_Position_Limit", 3000)
    for goal, sent in ((500, 1000), (2000, 2000), (4000, 3000), (-5, 1000)):
        put(servo, "Goal_Position", goal)
        assert servo.command_row()[SharedCommand.GOAL_TICK] == sent


def test_torque_128_makes_here_the_middle_and_leaves_torque_as_it_was(
    servo: ServoFirmware,
) -> None:
    put(servo, "Torque_Enable", 128)
    assert get(servo, "Present_Position") == 2048
    assert get(servo, "Torque_Enable") == 0


def test_a_kept_write_waits_for_the_action(servo: ServoFirmware) -> None:
    register = REGISTERS["Goal_Position"]
    before = get(servo, "Goal_Position")
    servo.keep(register.address, register.encode(77))
    assert get(servo, "Goal_Position") == before
    servo.act()
    assert get(servo, "Goal_Position") == 77
    put(servo, "Goal_Position", 5)
    servo.act()
    assert get(servo, "Goal_Position") == 5, "an action is carried out once"


def test_a_factory_reset_keeps_the_id(servo: ServoFirmware) -> None:
    put(servo, "P_Coefficient", 9)
    assert servo.reset()
    assert get(servo, "P_Coefficient") == 32
    assert servo.servo_id == 3


def test_load_velocity_and_current_carry_their_signs(servo: ServoFirmware, joint: Joint) -> None:
    joint.row[Servo.LOAD] = -0.25
    joint.row[Servo.VELOCITY_RAD_S] = -1.0
    joint.row[Servo.CURRENT_MA] = 650.0
    assert get(servo, "Present_Load") == -250
    assert get(servo, "Present_Velocity") == -652
    assert get(servo, "Present_Current") == 100
    assert get(servo, "Present_Voltage") == 120
    assert get(servo, "Present_Temperature") == 30


def test_voltage_out_of_its_limits_sets_the_bit(servo: ServoFirmware, joint: Joint) -> None:
    assert servo.error() == 0
    joint.row[Servo.VOLTAGE_V] = 3.5
    assert servo.error() == ServoError.VOLTAGE
    assert get(servo, "Status") == ServoError.VOLTAGE


def test_an_injected_overheat_shows_in_register_error_byte_and_motor(
    servo: ServoFirmware,
) -> None:
    servo.override = Override(ServoError.OVERHEAT.value, temperature_c=78)
    assert get(servo, "Present_Temperature") == 78
    assert servo.error() == ServoError.OVERHEAT
    assert servo.command_row()[SharedCommand.FORCED_ERROR] == ServoError.OVERHEAT
