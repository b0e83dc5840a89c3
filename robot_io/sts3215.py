"""The STS3215 servo: its control table, units, error bits and number formats. Pure.

Addresses, sizes and sign bits follow Feetech's "STS3215 memory table" and agree with LeRobot
0.6.1 (``lerobot/motors/feetech/tables.py``) wherever both name a register. The sign of
Present_Current is Feetech's alone (bit 15, as in their own SMS_STS driver).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag

MODEL_NUMBER = 777
RESOLUTION = 4096
# Homing_Offset has 11 bits of magnitude.
MAX_HOMING_OFFSET = 2047
# EEPROM is what lies below this address; writing there needs Lock = 0 to last.
EEPROM_END = 40

BAUD_RATES: dict[int, int] = {
    1_000_000: 0,
    500_000: 1,
    250_000: 2,
    128_000: 3,
    115_200: 4,
    57_600: 5,
    38_400: 6,
    19_200: 7,
}


class ServoError(IntFlag):
    """Bits of a status packet's error byte; the Status register (65) uses the same ones."""

    NONE = 0
    VOLTAGE = 1 << 0
    SENSOR = 1 << 1
    OVERHEAT = 1 << 2
    OVERCURRENT = 1 << 3
    ANGLE = 1 << 4
    OVERLOAD = 1 << 5

    def words(self) -> tuple[str, ...]:
        """The set bits in words, lowest first; unknown bits as ``bit 0x40``."""
        known = tuple(_ERROR_WORDS[bit] for bit in _ERROR_WORDS if self & bit)
        rest = int(self) & ~int(_ALL_ERRORS)
        return known + ((f"bit 0x{rest:02x}",) if rest else ())


_ERROR_WORDS: dict[ServoError, str] = {
    ServoError.VOLTAGE: "input voltage out of range",
    ServoError.SENSOR: "magnetic encoder fault",
    ServoError.OVERHEAT: "overheated",
    ServoError.OVERCURRENT: "overcurrent",
    ServoError.ANGLE: "angle out of limits",
    ServoError.OVERLOAD: "overloaded",
}
_ALL_ERRORS = (
    ServoError.VOLTAGE
    | ServoError.SENSOR
    | ServoError.OVERHEAT
    | ServoError.OVERCURRENT
    | ServoError.ANGLE
    | ServoError.OVERLOAD
)


class OperatingMode(IntEnum):
    """Values of the Operating_Mode register."""

    POSITION = 0
    VELOCITY = 1
    PWM = 2
    STEP = 3


@dataclass(frozen=True, slots=True)
class Register:
    """One named value of the control table.

    ``sign_bit`` is the bit that carries the sign in sign-magnitude form, or None for an unsigned
    value. ``scale`` turns the decoded integer into ``unit``.
    """

    name: str
    address: int
    size: int
    sign_bit: int | None = None
    read_only: bool = False
    scale: float = 1.0
    unit: str = ""

    @property
    def eeprom(self) -> bool:
        """True when the value survives a power cycle, if it was written with Lock = 0."""
        return self.address < EEPROM_END

    @property
    def end(self) -> int:
        """First address behind the register."""
        return self.address + self.size

    def encode(self, value: int) -> bytes:
        """The register's bytes for ``value``.

        Raises:
            ValueError: ``value`` does not fit.
        """
        if self.sign_bit is not None:
            value = encode_sign_magnitude(value, self.sign_bit, self.name)
        if not 0 <= value < 1 << (8 * self.size):
            raise ValueError(f"{self.name} = {value} does not fit {self.size} byte(s)")
        return value.to_bytes(self.size, "little")

    def decode(self, data: bytes | bytearray | memoryview) -> int:
        """The integer in the first ``size`` bytes of ``data``.

        Raises:
            ValueError: too few bytes.
        """
        if len(data) < self.size:
            raise ValueError(f"{self.name} needs {self.size} byte(s), got {len(data)}")
        value = int.from_bytes(data[: self.size], "little")
        return value if self.sign_bit is None else decode_sign_magnitude(value, self.sign_bit)


def encode_sign_magnitude(value: int, sign_bit: int, name: str = "value") -> int:
    """``value`` as magnitude with ``sign_bit`` set when negative.

    Raises:
        ValueError: the magnitude needs more than ``sign_bit`` bits.
    """
    limit = (1 << sign_bit) - 1
    if abs(value) > limit:
        raise ValueError(f"{name} = {value} is outside -{limit}..{limit}")
    return (1 << sign_bit) | -value if value < 0 else value


def decode_sign_magnitude(raw: int, sign_bit: int) -> int:
    """Inverse of `encode_sign_magnitude`; bits above the sign bit are ignored."""
    magnitude = raw & ((1 << sign_bit) - 1)
    return -magnitude if raw >> sign_bit & 1 else magnitude


_DEGREES_PER_TICK = 360.0 / RESOLUTION

REGISTERS: dict[str, Register] = {
    register.name: register
    for register in (
        # EEPROM
        Register("Firmware_Major_Version", 0, 1, read_only=True),
        Register("Firmware_Minor_Version", 1, 1, read_only=True),
        Register("Model_Number", 3, 2, read_only=True),
        Register("ID", 5, 1),
        Register("Baud_Rate", 6, 1),
        Register("Return_Delay_Time", 7, 1, scale=2.0, unit="us"),
        Register("Response_Status_Level", 8, 1),
        Register("Min_Position_Limit", 9, 2, unit="tick"),
        Register("Max_Position_Limit", 11, 2, unit="tick"),
        Register("Max_Temperature_Limit", 13, 1, unit="degC"),
        Register("Max_Voltage_Limit", 14, 1, scale=0.1, unit="V"),
        Register("Min_Voltage_Limit", 15, 1, scale=0.1, unit="V"),
        Register("Max_Torque_Limit", 16, 2, scale=0.1, unit="%"),
        Register("Phase", 18, 1),
        Register("Unloading_Condition", 19, 1),
        Register("LED_Alarm_Condition", 20, 1),
        Register("P_Coefficient", 21, 1),
        Register("D_Coefficient", 22, 1),
        Register("I_Coefficient", 23, 1),
        Register("Minimum_Startup_Force", 24, 2, scale=0.1, unit="%"),
        Register("CW_Dead_Zone", 26, 1, unit="tick"),
        Register("CCW_Dead_Zone", 27, 1, unit="tick"),
        Register("Protection_Current", 28, 2, scale=6.5, unit="mA"),
        Register("Angular_Resolution", 30, 1),
        Register("Homing_Offset", 31, 2, sign_bit=11, unit="tick"),
        Register("Operating_Mode", 33, 1),
        Register("Protective_Torque", 34, 1, unit="%"),
        Register("Protection_Time", 35, 1, scale=10.0, unit="ms"),
        Register("Overload_Torque", 36, 1, unit="%"),
        Register("Velocity_P_Coefficient", 37, 1),
        Register("Over_Current_Protection_Time", 38, 1, scale=10.0, unit="ms"),
        Register("Velocity_I_Coefficient", 39, 1),
        # SRAM
        Register("Torque_Enable", 40, 1),
        Register("Acceleration", 41, 1, scale=100 * _DEGREES_PER_TICK, unit="deg/s2"),
        Register("Goal_Position", 42, 2, sign_bit=15, unit="tick"),
        Register("Goal_Time", 44, 2),
        Register("Goal_Velocity", 46, 2, sign_bit=15, scale=_DEGREES_PER_TICK, unit="deg/s"),
        Register("Torque_Limit", 48, 2, scale=0.1, unit="%"),
        Register("Lock", 55, 1),
        Register("Present_Position", 56, 2, sign_bit=15, read_only=True, unit="tick"),
        Register(
            "Present_Velocity",
            58,
            2,
            sign_bit=15,
            read_only=True,
            scale=_DEGREES_PER_TICK,
            unit="deg/s",
        ),
        Register("Present_Load", 60, 2, sign_bit=10, read_only=True, scale=0.1, unit="%"),
        Register("Present_Voltage", 62, 1, read_only=True, scale=0.1, unit="V"),
        Register("Present_Temperature", 63, 1, read_only=True, unit="degC"),
        Register("Status", 65, 1, read_only=True),
        Register("Moving", 66, 1, read_only=True),
        Register("Present_Current", 69, 2, sign_bit=15, read_only=True, scale=6.5, unit="mA"),
        Register("Goal_Position_2", 71, 2, sign_bit=15, read_only=True, unit="tick"),
        # Factory
        Register("Moving_Velocity_Threshold", 80, 1),
        Register("DTs", 81, 1, unit="ms"),
        Register("Velocity_Unit_Factor", 82, 1),
        Register("Hts", 83, 1, unit="ns"),
        Register("Maximum_Velocity_Limit", 84, 1),
        Register("Maximum_Acceleration", 85, 1),
        Register("Acceleration_Multiplier", 86, 1),
    )
}

# The span that one sync read takes for position and health together: 15 bytes, 56..70.
TELEMETRY_ADDRESS = REGISTERS["Present_Position"].address
TELEMETRY_SIZE = REGISTERS["Present_Current"].end - TELEMETRY_ADDRESS
