"""From one reading of an arm to a verdict on its health. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from robot_io.arm import ArmReading
from robot_io.calibration import JOINTS
from robot_io.sts3215 import ServoError


class Level(IntEnum):
    """How bad it is; a higher level is worse."""

    OK = 0
    WARN = 1
    FAULT = 2

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class HealthLimits:
    """From where on a reading is worth a warning, and from where on the arm must stop.

    The STS3215 switches itself off at 70 degC (factory setting); it is sold for 7.4 V and for
    12 V, so the lower bounds are those of the smaller one and the upper those of the larger.
    """

    temperature_warn_c: float = 55.0
    temperature_fault_c: float = 65.0
    voltage_low_warn_v: float = 5.0
    voltage_low_fault_v: float = 4.5
    voltage_high_fault_v: float = 14.0
    load_warn_percent: float = 90.0
    current_warn_ma: float = 2000.0
    current_fault_ma: float = 3200.0
    # Bits that a servo sets while it still does what it is told.
    harmless_errors: ServoError = field(default=ServoError.ANGLE)
    # A gripper that squeezes for two seconds has been set to limit itself (Overload_Torque).
    harmless_gripper_errors: ServoError = field(default=ServoError.ANGLE | ServoError.OVERLOAD)


@dataclass(frozen=True, slots=True)
class HealthVerdict:
    """The worst level of all joints, with one reason a finding, the worst first."""

    level: Level
    reasons: tuple[str, ...]


DEFAULT_LIMITS = HealthLimits()


def judge(reading: ArmReading, limits: HealthLimits = DEFAULT_LIMITS) -> HealthVerdict:
    """Judge temperature, voltage, load, current and error bits of all six servos."""
    findings: list[tuple[Level, str]] = []
    for i, joint in enumerate(JOINTS):
        gripper = joint == "gripper"
        found = _judge_joint(
            float(reading.temperature_c[i]),
            float(reading.voltage_v[i]),
            abs(float(reading.load[i])),
            abs(float(reading.current_ma[i])),
            reading.errors[i],
            limits.harmless_gripper_errors if gripper else limits.harmless_errors,
            limits,
        )
        findings += [(level, f"{joint}: {reason}") for level, reason in found]
    findings.sort(key=lambda finding: -finding[0])
    worst = findings[0][0] if findings else Level.OK
    return HealthVerdict(worst, tuple(reason for _, reason in findings))


def _judge_joint(
    temperature_c: float,
    voltage_v: float,
    load_percent: float,
    current_ma: float,
    errors: ServoError,
    harmless: ServoError,
    limits: HealthLimits,
) -> list[tuple[Level, str]]:
    found = []
    for bit in errors:
        level = Level.WARN if bit in harmless else Level.FAULT
        found.append((level, f"servo reports {', '.join(bit.words())}"))
    if unknown := int(errors) & ~int(~ServoError.NONE):
        found.append((Level.WARN, f"servo reports unknown error bits 0x{unknown:02x}"))
    if temperature_c >= limits.temperature_fault_c:
        found.append((Level.FAULT, f"{temperature_c:.0f} degC, let it cool down"))
    elif temperature_c >= limits.temperature_warn_c:
        found.append((Level.WARN, f"{temperature_c:.0f} degC, getting hot"))
    if voltage_v <= limits.voltage_low_fault_v:
        found.append((Level.FAULT, f"{voltage_v:.1f} V, check the power supply"))
    elif voltage_v <= limits.voltage_low_warn_v:
        found.append((Level.WARN, f"{voltage_v:.1f} V, the supply is weak"))
    elif voltage_v >= limits.voltage_high_fault_v:
        found.append((Level.FAULT, f"{voltage_v:.1f} V, the supply is too high"))
    if current_ma >= limits.current_fault_ma:
        found.append((Level.FAULT, f"{current_ma:.0f} mA, the joint is blocked"))
    elif current_ma >= limits.current_warn_ma:
        found.append((Level.WARN, f"{current_ma:.0f} mA"))
    if load_percent >= limits.load_warn_percent:
        found.append((Level.WARN, f"load {load_percent:.0f} %"))
    return found
