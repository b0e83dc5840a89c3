"""The firmware of one STS3215: control table, protection registers, answers. Pure, no clock.

`ServoFirmware` owns the 128 bytes of one servo's control table. `Chain` is the daisy chain of an
arm: it takes instruction packets and gives the status packets that come back, with the time each
servo lets pass before it answers. Behaviour follows Feetech's memory table and protocol manual:

* EEPROM (below address 40) takes effect at once and is kept over a power cycle only if it was
  written while Lock (55) was 0; at power-up Lock is 1.
* Response_Status_Level 0 answers to ping and read alone.
* Goal_Position is clamped to the position limits, unless both are 0.
* Present_Position = (Actual - Homing_Offset) mod 4096.
* Torque_Enable = 128 makes the present position 2048 by changing Homing_Offset.
* A servo hears and speaks at its Baud_Rate alone.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from robot_io.packet import BROADCAST_ID, Instruction, InstructionPacket, StatusPacket
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
from robot_io.twin.shared import Command, Servo

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
        row = [0.0] * len(Command)
        low, high = get("Min_Position_Limit"), get("Max_Position_Limit")
        goal = get("Goal_Position")
        if (low, high) != (0, 0):
            goal = min(max(goal, low), high)
        row[Command.TORQUE_ENABLE] = float(get("Torque_Enable") == 1)
        row[Command.MODE] = get("Operating_Mode")
        row[Command.GOAL_TICK] = goal
        row[Command.GOAL_VELOCITY_TICK_S] = get("Goal_Velocity")
        row[Command.MAX_VELOCITY_TICK_S] = get("Maximum_Velocity_Limit") * _UNIT_SPEED_TICK_S
        acceleration = get("Acceleration") or get("Maximum_Acceleration")
        row[Command.ACCELERATION_TICK_S2] = (
            min(acceleration, get("Maximum_Acceleration") or 254) * _UNIT_ACCELERATION_TICK_S2
        )
        row[Command.OFFSET_TICK] = get("Homing_Offset")
        row[Command.P_GAIN] = get("P_Coefficient")
        row[Command.D_GAIN] = get("D_Coefficient")
        row[Command.TORQUE_LIMIT] = (
            min(get("Torque_Limit"), get("Max_Torque_Limit"), 1000) / 1000
        )
        row[Command.PROTECTIVE_TORQUE] = get("Protective_Torque") / 100
        row[Command.OVERLOAD_TORQUE] = get("Overload_Torque") / 100
        row[Command.PROTECTION_TIME_S] = get("Protection_Time") / 100
        row[Command.PROTECTION_CURRENT_MA] = get("Protection_Current") * _MILLIAMPERES
        row[Command.OVERCURRENT_TIME_S] = get("Over_Current_Protection_Time") / 100
        row[Command.MAX_TEMPERATURE_C] = get("Max_Temperature_Limit")
        row[Command.UNLOAD_ON] = get("Unloading_Condition")
        row[Command.FORCED_ERROR] = self.override.error
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


@dataclass(frozen=True, slots=True)
class Answer:
    """One status packet, and the pause that its servo makes before it."""

    packet: StatusPacket
    delay_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one instruction led to."""

    answers: tuple[Answer, ...] = ()
    written: bool = False  # some servo's registers changed, so its motor has news
    eeprom_changed: bool = False


class Chain:
    """The servos of one arm on one wire."""

    def __init__(self, servos: Mapping[int, ServoFirmware]) -> None:
        self.servos = tuple(servos.values())

    def find(self, servo_id: int) -> tuple[ServoFirmware, ...]:
        """The servos that answer to ``servo_id``; all for the broadcast id."""
        if servo_id == BROADCAST_ID:
            return self.servos
        return tuple(servo for servo in self.servos if servo.servo_id == servo_id)

    def handle(self, packet: InstructionPacket, baud: int) -> Outcome:
        """Carry out one instruction that the wire carried at ``baud``.

        Malformed and unknown instructions get no answer, as from the servo.
        """
        params = packet.params
        match packet.instruction:
            case Instruction.PING:
                return Outcome(tuple(_status(servo) for servo in self._hearing(packet, baud)))
            case Instruction.READ if len(params) == 2 and packet.servo_id != BROADCAST_ID:
                return Outcome(
                    tuple(
                        _status(servo, servo.read(params[0], params[1]))
                        for servo in self._hearing(packet, baud)
                    )
                )
            case Instruction.SYNC_READ if len(params) > 2:
                return Outcome(tuple(self._sync_read(params, baud)))
            case Instruction.SYNC_WRITE if len(params) > 2:
                return self._sync_write(params, baud)
            case Instruction.WRITE if len(params) > 1:
                return self._each(packet, baud, lambda servo: servo.write(params[0], params[1:]))
            case Instruction.REG_WRITE if len(params) > 1:
                return self._each(packet, baud, lambda servo: _keep(servo, params))
            case Instruction.ACTION:
                return self._each(packet, baud, ServoFirmware.act)
            case Instruction.FACTORY_RESET:
                return self._each(packet, baud, ServoFirmware.reset)
            case _:
                return Outcome()

    def _hearing(self, packet: InstructionPacket, baud: int) -> list[ServoFirmware]:
        return [servo for servo in self.find(packet.servo_id) if servo.baud == baud]

    def _each(
        self, packet: InstructionPacket, baud: int, action: Callable[[ServoFirmware], bool]
    ) -> Outcome:
        answers = []
        changed = False
        hearing = self._hearing(packet, baud)
        for servo in hearing:
            changed |= action(servo)
            if packet.servo_id != BROADCAST_ID and servo.answers_writes:
                answers.append(Answer(_bare(packet.servo_id, servo), servo.return_delay_s))
        return Outcome(tuple(answers), bool(hearing), changed)

    def _sync_read(self, params: bytes, baud: int) -> list[Answer]:
        address, size = params[0], params[1]
        hearing: dict[int, list[ServoFirmware]] = {}
        for servo in self.servos:
            if servo.baud == baud:
                hearing.setdefault(servo.servo_id, []).append(servo)
        return [
            _status(servo, servo.read(address, size))
            for servo_id in params[2:]
            for servo in hearing.get(servo_id, ())
        ]

    def _sync_write(self, params: bytes, baud: int) -> Outcome:
        address, size = params[0], params[1]
        stride = size + 1
        changed = written = False
        if (len(params) - 2) % stride:
            return Outcome()
        for at in range(2, len(params), stride):
            for servo in self.servos:
                if servo.servo_id == params[at] and servo.baud == baud:
                    changed |= servo.write(address, params[at + 1 : at + stride])
                    written = True
        return Outcome((), written, changed)


def _status(servo: ServoFirmware, data: bytes = b"") -> Answer:
    return Answer(
        StatusPacket(servo.servo_id, servo.error(), data), servo.return_delay_s
    )


def _bare(servo_id: int, servo: ServoFirmware) -> StatusPacket:
    # A servo whose id was just changed still answers under the old one.
    return StatusPacket(servo_id, servo.error(), b"")


def _keep(servo: ServoFirmware, params: bytes) -> bool:
    servo.keep(params[0], params[1:])
    return False


def _put(table: bytearray, name: str, value: int) -> None:
    register: Register = _REGISTERS[name]
    table[register.address : register.end] = register.encode(value)


def _signed(value: int, sign_bit: int) -> int:
    return encode_sign_magnitude(max(-0x7FFF, min(0x7FFF, value)), sign_bit)


def _touches(address: int, data: bytes, name: str) -> bool:
    register = _REGISTERS[name]
    return address < register.end and address + len(data) > register.address
