"""The firmware of one STS3215: the 128 bytes of its control table. Pure, no clock.

Behaviour follows Feetech's memory table and protocol manual:

* EEPROM (below address 40) takes effect at once and is kept over a power cycle only if it was
  written while Lock (55) was 0; at power-up Lock is 1.
* Goal_Position is clamped to the position limits, unless both are 0.
* Present_Position = (Actual - Homing_Offset) mod 4096.
* Torque_Enable = 128 makes the present position 2048 by changing Homing_Offset.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass

from robot_io.sts3215 import (
    BAUD_RATES,
    EEPROM_END,
    MAX_HOMING_OFFSET,
    MODEL_NUMBER,
    REGISTERS,
    RESOLUTION,
    Register,
    ServoError,
    decode_sign_magnitude,
    encode_sign_magnitude,
)
from robot_io.twin.shared import Servo, SharedCommand

TABLE_SIZE = 128
_UNIT_SPEED_TICK_S = 50.0
_UNIT_ACCELERATION_TICK_S2 = 100.0
_MILLIAMPERES = 6.5
_BAUD_BY_CODE = {code: baud for baud, code in BAUD_RATES.items()}
_RECENTRE = 128
_TICKS_PER_RAD = RESOLUTION / math.tau
# Present_Position to Goal_Position_2, addresses 56..72.
_PRESENT = struct.Struct("<HHHBBxBBxxHH")

_REGISTERS = REGISTERS
_OFFSET_SIGN_BIT = 11
# Addresses that every answer needs.
_ID = _REGISTERS["ID"].address
_BAUD_RATE = _REGISTERS["Baud_Rate"].address
_RETURN_DELAY = _REGISTERS["Return_Delay_Time"].address
_HOMING_OFFSET = _REGISTERS["Homing_Offset"].address
_VOLTAGE = ServoError.VOLTAGE.value
_OVERHEAT = ServoError.OVERHEAT.value
_MAX_TEMPERATURE = _REGISTERS["Max_Temperature_Limit"].address
_MAX_VOLTAGE = _REGISTERS["Max_Voltage_Limit"].address
_MIN_VOLTAGE = _REGISTERS["Min_Voltage_Limit"].address
_PRESENT_FIRST = _REGISTERS["Present_Position"].address
_PRESENT_END = _REGISTERS["Goal_Position_2"].end
_READ_ONLY = frozenset(
    address
    for register in _REGISTERS.values()
    if register.read_only
    for address in range(register.address, register.end)
)

# Values at delivery. Unloading_Condition 44 = overheat, overcurrent and overload.
FACTORY: dict[str, int] = {
    "Firmware_Major_Version": 3,
    "Firmware_Minor_Version": 10,
    "Model_Number": MODEL_NUMBER,
    "ID": 1,
    "Return_Delay_Time": 250,
    "Response_Status_Level": 1,
    "Max_Position_Limit": RESOLUTION - 1,
    "Max_Temperature_Limit": 70,
    "Max_Voltage_Limit": 140,
    "Min_Voltage_Limit": 40,
    "Max_Torque_Limit": 1000,
    "Phase": 12,
    "Unloading_Condition": 44,
    "LED_Alarm_Condition": 47,
    "P_Coefficient": 32,
    "D_Coefficient": 32,
    "Minimum_Startup_Force": 16,
    "CW_Dead_Zone": 1,
    "CCW_Dead_Zone": 1,
    "Protection_Current": 500,
    "Angular_Resolution": 1,
    "Protective_Torque": 20,
    "Protection_Time": 200,
    "Overload_Torque": 80,
    "Velocity_P_Coefficient": 10,
    "Over_Current_Protection_Time": 200,
    "Velocity_I_Coefficient": 10,
    "Lock": 1,
    "Moving_Velocity_Threshold": 50,
    "DTs": 10,
    "Velocity_Unit_Factor": 50,
    "Hts": 20,
    "Maximum_Velocity_Limit": 64,
    "Maximum_Acceleration": 254,
    "Acceleration_Multiplier": 1,
}


@dataclass(frozen=True, slots=True)
class Measured:
    """What motor and encoder of one servo say: one row of the servo block, and the encoder."""

    actual_tick: float
    row: list[float]


@dataclass(slots=True)
class Override:
    """What a fault injection makes a servo say and feel; None leaves a value as measured."""

    error: int = 0  # bits of ServoError
    temperature_c: int | None = None
    voltage_dv: int | None = None
    load: int | None = None


def factory_table(servo_id: int) -> bytearray:
    """A control table as delivered, with ``servo_id``."""
    table = bytearray(TABLE_SIZE)
    for name, value in FACTORY.items():
        _put(table, name, value)
    _put(table, "ID", servo_id)
    return table


class ServoFirmware:
    """One servo. ``eeprom`` is what was kept over the last power cycle, or None when new.

    ``measure`` gives the encoder and motor as they are at the moment of the call.
    """

    def __init__(
        self,
        servo_id: int,
        measure: Callable[[], Measured],
        eeprom: bytes | None = None,
    ) -> None:
        self._measure = measure
        self._table = factory_table(servo_id)
        if eeprom is not None:
            self._table[:EEPROM_END] = eeprom[:EEPROM_END]
        self.saved_eeprom = bytes(self._table[:EEPROM_END])
        self._pending: tuple[int, bytes] | None = None
        self.override = Override()
        self._factory_id = servo_id
        # At power-up the goal is where the arm stands, and the torque limit comes from EEPROM.
        self._set("Torque_Limit", self._get("Max_Torque_Limit"))
        self._set("Goal_Position", self.present_position())

    @property
    def servo_id(self) -> int:
        """The id in the control table."""
        return self._table[_ID]

    @property
    def baud(self) -> int:
        """The rate at which this servo hears and speaks."""
        return _BAUD_BY_CODE.get(self._table[_BAUD_RATE], 1_000_000)

    @property
    def answers_writes(self) -> bool:
        """Response_Status_Level."""
        return self._get("Response_Status_Level") != 0

    @property
    def return_delay_s(self) -> float:
        """Pause between an instruction and this servo's answer."""
        return self._table[_RETURN_DELAY] * 2e-6

    def present_position(self) -> int:
        """Present_Position as a whole tick, 0..4095."""
        return self._present(self._measure().actual_tick)

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes from ``address``; what lies outside the table reads as 0."""
        if address < _PRESENT_END and address + size > _PRESENT_FIRST:
            self._refresh()
        return bytes(self._table[address : address + size]).ljust(size, b"\0")

    def write(self, address: int, data: bytes) -> bool:
        """Take ``data``; True when what a power cycle keeps has changed by it."""
        locked = self._get("Lock") != 0
        torque_before = self._get("Torque_Enable")
        for at, value in enumerate(data, start=address):
            if at < TABLE_SIZE and at not in _READ_ONLY:
                self._table[at] = value
        if self._get("Torque_Enable") == _RECENTRE:
            self._recentre()
            self._set("Torque_Enable", torque_before)
        if _touches(address, data, "Max_Torque_Limit"):
            self._set("Torque_Limit", self._get("Max_Torque_Limit"))
        eeprom = bytes(self._table[:EEPROM_END])
        if locked or eeprom == self.saved_eeprom:
            return False
        self.saved_eeprom = eeprom
        return True

    def keep(self, address: int, data: bytes) -> None:
        """REG_WRITE: remember a write for `act`."""
        self._pending = (address, data)

    def act(self) -> bool:
        """ACTION: carry out the remembered write; True when the kept EEPROM has changed."""
        if self._pending is None:
            return False
        address, data = self._pending
        self._pending = None
        return self.write(address, data)

    def reset(self) -> bool:
        """FACTORY_RESET: everything as delivered but the id; True, the kept EEPROM changes."""
        servo_id = self.servo_id
        self._table = factory_table(servo_id)
        self._set("Torque_Limit", self._get("Max_Torque_Limit"))
        self._set("Goal_Position", self.present_position())
        self._pending = None
        self.saved_eeprom = bytes(self._table[:EEPROM_END])
        return True

    def error(self) -> int:
        """The error byte of the next status packet: bits of ServoError."""
        row = self._measure().row
        return self._error(row, self._voltage_dv(row), self._temperature_c(row))

    def command_row(self) -> list[float]:
        """This servo's row of the command block, see `robot_io.twin.shared.Command`."""
        get = self._get
        row = [0.0] * len(SharedCommand)
        low, high = get("Min_Position_Limit"), get("Max_Position_Limit")
        goal = get("Goal_Position")
        if (low, high) != (0, 0):
            goal = min(max(goal, low), high)
        row[SharedCommand.TORQUE_ENABLE] = float(get("Torque_Enable") == 1)
        row[SharedCommand.MODE] = get("Operating_Mode")
        row[SharedCommand.GOAL_TICK] = goal
        row[SharedCommand.GOAL_VELOCITY_TICK_S] = get("Goal_Velocity")
        row[SharedCommand.MAX_VELOCITY_TICK_S] = get("Maximum_Velocity_Limit") * _UNIT_SPEED_TICK_S
        acceleration = get("Acceleration") or get("Maximum_Acceleration")
        row[SharedCommand.ACCELERATION_TICK_S2] = (
            min(acceleration, get("Maximum_Acceleration") or 254) * _UNIT_ACCELERATION_TICK_S2
        )
        row[SharedCommand.OFFSET_TICK] = get("Homing_Offset")
        row[SharedCommand.P_GAIN] = get("P_Coefficient")
        row[SharedCommand.D_GAIN] = get("D_Coefficient")
        row[SharedCommand.TORQUE_LIMIT] = (
            min(get("Torque_Limit"), get("Max_Torque_Limit"), 1000) / 1000
        )
        row[SharedCommand.PROTECTIVE_TORQUE] = get("Protective_Torque") / 100
        row[SharedCommand.OVERLOAD_TORQUE] = get("Overload_Torque") / 100
        row[SharedCommand.PROTECTION_TIME_S] = get("Protection_Time") / 100
        row[SharedCommand.PROTECTION_CURRENT_MA] = get("Protection_Current") * _MILLIAMPERES
        row[SharedCommand.OVERCURRENT_TIME_S] = get("Over_Current_Protection_Time") / 100
        row[SharedCommand.MAX_TEMPERATURE_C] = get("Max_Temperature_Limit")
        row[SharedCommand.UNLOAD_ON] = get("Unloading_Condition")
        row[SharedCommand.FORCED_ERROR] = self.override.error
        return row

    def _get(self, name: str) -> int:
        register = _REGISTERS[name]
        return register.decode(self._table[register.address : register.end])

    def _set(self, name: str, value: int) -> None:
        _put(self._table, name, value)

    def _present(self, actual_tick: float) -> int:
        raw = self._table[_HOMING_OFFSET] | self._table[_HOMING_OFFSET + 1] << 8
        return round(actual_tick - decode_sign_magnitude(raw, _OFFSET_SIGN_BIT)) % RESOLUTION

    def _recentre(self) -> None:
        offset = round(self._measure().actual_tick) - RESOLUTION // 2
        self._set("Homing_Offset", max(-MAX_HOMING_OFFSET, min(MAX_HOMING_OFFSET, offset)))

    def _voltage_dv(self, row: list[float]) -> int:
        forced = self.override.voltage_dv
        return forced if forced is not None else round(row[Servo.VOLTAGE_V] * 10)

    def _temperature_c(self, row: list[float]) -> int:
        forced = self.override.temperature_c
        return forced if forced is not None else round(row[Servo.TEMPERATURE_C])

    def _error(self, row: list[float], voltage_dv: int, temperature_c: int) -> int:
        table = self._table
        error = int(row[Servo.ERROR]) | self.override.error
        if not table[_MIN_VOLTAGE] <= voltage_dv <= table[_MAX_VOLTAGE]:
            error |= _VOLTAGE
        if temperature_c > table[_MAX_TEMPERATURE]:
            error |= _OVERHEAT
        return error

    def _refresh(self) -> None:
        measured = self._measure()
        row = measured.row
        voltage_dv = self._voltage_dv(row)
        temperature_c = self._temperature_c(row)
        load = self.override.load
        if load is None:
            load = round(row[Servo.LOAD] * 1000)
        goal = _REGISTERS["Goal_Position"].address
        _PRESENT.pack_into(
            self._table,
            _PRESENT_FIRST,
            self._present(measured.actual_tick),
            _signed(round(row[Servo.VELOCITY_RAD_S] * _TICKS_PER_RAD), 15),
            _signed(max(-1000, min(1000, load)), 10),
            max(0, min(255, voltage_dv)),
            max(0, min(255, temperature_c)),
            self._error(row, voltage_dv, temperature_c),
            int(row[Servo.MOVING]),
            min(0x7FFF, round(row[Servo.CURRENT_MA] / _MILLIAMPERES)),
            self._table[goal] | self._table[goal + 1] << 8,
        )


def _put(table: bytearray, name: str, value: int) -> None:
    register: Register = _REGISTERS[name]
    table[register.address : register.end] = register.encode(value)


def _signed(value: int, sign_bit: int) -> int:
    return encode_sign_magnitude(max(-0x7FFF, min(0x7FFF, value)), sign_bit)


def _touches(address: int, data: bytes, name: str) -> bool:
    register = _REGISTERS[name]
    return address < register.end and address + len(data) > register.address
