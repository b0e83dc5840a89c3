"""Faults of a bus: what a status packet suffers between servo and host. Pure but for its dice.

A fault holds until its count of packets is used up or its time is over, whichever comes first;
with neither, until it is cleared.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum

from robot_io.sts3215 import ServoError
from robot_io.twin.errors import BadRequest
from robot_io.twin.firmware import Override


class FaultKind(StrEnum):
    """What can be injected. The last group acts on the servo, UNPLUG and REPLUG on the port."""

    MUTE = "mute"
    LATE = "late"
    BAD_CHECKSUM = "bad_checksum"
    CORRUPT = "corrupt"
    TRUNCATE = "truncate"
    NOISE = "noise"
    UNPLUG = "unplug"
    REPLUG = "replug"
    OVERHEAT = "overheat"
    OVERLOAD = "overload"
    OVERCURRENT = "overcurrent"
    UNDERVOLTAGE = "undervoltage"
    SENSOR = "sensor"


WIRE_KINDS = frozenset(
    {
        FaultKind.MUTE,
        FaultKind.LATE,
        FaultKind.BAD_CHECKSUM,
        FaultKind.CORRUPT,
        FaultKind.TRUNCATE,
        FaultKind.NOISE,
    }
)
_DEFAULT_DELAY_S = 0.08
_NOISE_BYTES = 7

_OVERRIDES = {
    FaultKind.OVERHEAT: Override(ServoError.OVERHEAT.value, temperature_c=78),
    FaultKind.OVERLOAD: Override(ServoError.OVERLOAD.value, load=1000),
    FaultKind.OVERCURRENT: Override(ServoError.OVERCURRENT.value),
    FaultKind.UNDERVOLTAGE: Override(ServoError.VOLTAGE.value, voltage_dv=36),
    FaultKind.SENSOR: Override(ServoError.SENSOR.value),
}


@dataclass(slots=True)
class Fault:
    """One injected fault. ``servo_id`` None means every servo of the arm."""

    kind: FaultKind
    servo_id: int | None = None
    count: int | None = None
    until_s: float | None = None
    delay_s: float = _DEFAULT_DELAY_S


@dataclass(frozen=True, slots=True)
class Sent:
    """The bytes that reach the host for one status packet, and how much too late."""

    data: bytes
    extra_delay_s: float = 0.0


def parse_fault(request: dict[str, object], now_s: float) -> Fault:
    """A fault out of a control request: kind, servo, count, duration_s, delay_s.

    Raises:
        BadRequest: an unknown kind or a value that makes no sense.
    """
    try:
        kind = FaultKind(str(request.get("kind")))
    except ValueError:
        known = ", ".join(kind.value for kind in FaultKind)
        raise BadRequest(f"unknown fault kind {request.get('kind')!r}; known: {known}") from None
    servo = request.get("servo")
    if servo is not None and (not isinstance(servo, int) or not 1 <= servo <= 253):
        raise BadRequest(f"servo must be an id from 1 to 253 or absent, not {servo!r}")
    count = request.get("count")
    if count is not None and (not isinstance(count, int) or count < 1):
        raise BadRequest(f"count must be a whole number of packets >= 1, not {count!r}")
    duration_s = _seconds(request, "duration_s")
    delay_s = _seconds(request, "delay_s")
    return Fault(
        kind,
        servo,
        count,
        None if duration_s is None else now_s + duration_s,
        _DEFAULT_DELAY_S if delay_s is None else delay_s,
    )


def _seconds(request: dict[str, object], key: str) -> float | None:
    value = request.get(key)
    if value is None:
        return None
    if not isinstance(value, int | float) or not 0 <= value < 1e6:
        raise BadRequest(f"{key} must be a number of seconds >= 0, not {value!r}")
    return float(value)


class FaultPlan:
    """The faults that hold on one arm now."""

    def __init__(self, dice: random.Random) -> None:
        self._faults: list[Fault] = []
        self._dice = dice

    def add(self, fault: Fault) -> None:
        """Let ``fault`` hold from now on."""
        self._faults.append(fault)

    def clear(self) -> None:
        """No fault holds any more."""
        self._faults.clear()

    @property
    def active(self) -> bool:
        """Whether any fault may still act."""
        return bool(self._faults)

    def expire(self, now_s: float) -> bool:
        """Drop what is over; True when something was."""
        kept = [
            fault
            for fault in self._faults
            if (fault.count is None or fault.count > 0)
            and (fault.until_s is None or now_s < fault.until_s)
        ]
        changed = len(kept) != len(self._faults)
        self._faults = kept
        return changed

    def override(self, servo_id: int) -> Override:
        """What the servo faults together make ``servo_id`` say."""
        whole = Override()
        for fault in self._faults:
            part = _OVERRIDES.get(fault.kind)
            if part is None or fault.servo_id not in (None, servo_id):
                continue
            whole.error |= part.error
            if part.temperature_c is not None:
                whole.temperature_c = part.temperature_c
            if part.voltage_dv is not None:
                whole.voltage_dv = part.voltage_dv
            if part.load is not None:
                whole.load = part.load
        return whole

    def transmit(self, servo_id: int, frame: bytes) -> Sent:
        """What becomes of ``frame`` on its way from ``servo_id`` to the host."""
        data = frame
        delay_s = 0.0
        for fault in self._faults:
            if fault.kind not in WIRE_KINDS or fault.servo_id not in (None, servo_id):
                continue
            if fault.count is not None:
                if fault.count == 0:
                    continue
                fault.count -= 1
            match fault.kind:
                case FaultKind.MUTE:
                    data = b""
                case FaultKind.LATE:
                    delay_s += fault.delay_s
                case FaultKind.NOISE:
                    data = self._dice.randbytes(_NOISE_BYTES) + data
                case _ if data:
                    data = self._damage(fault.kind, data)
        return Sent(data, delay_s)

    def _damage(self, kind: FaultKind, frame: bytes) -> bytes:
        damaged = bytearray(frame)
        match kind:
            case FaultKind.BAD_CHECKSUM:
                damaged[-1] ^= 0xFF
            case FaultKind.CORRUPT:
                # Anything behind the header may flip; one bit is always noticed by the checksum.
                damaged[self._dice.randrange(2, len(damaged))] ^= 1 << self._dice.randrange(8)
            case FaultKind.TRUNCATE:
                del damaged[len(damaged) // 2 :]
            case _:
                raise AssertionError(kind)
        return bytes(damaged)
