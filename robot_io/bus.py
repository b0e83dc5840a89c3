"""ServoBus: question and answer on one STS servo bus.

Three rules keep an answer from being taken for the answer to another question:

1. Input is thrown away before each request.
2. After a servo has failed to answer, its answer may still be under way (a stalled USB adapter
   delivers it tens of milliseconds later, in the middle of a later exchange). Until
   ``late_window_s`` has passed, a read from that servo asks for a byte or more beyond what it
   needs, so that the reply to the older request is told apart by its length, dropped and counted.
3. An acknowledgement has no length to tell it apart by. While one may still be under way, a
   write is proved by reading back instead.
"""

from __future__ import annotations

import contextlib
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from robot_io import packet
from robot_io.errors import BadChecksum, BusError, BusTimeout
from robot_io.packet import FRAME_OVERHEAD_BYTES, PacketParser, StatusPacket
from robot_io.serial_link import SerialLink
from robot_io.sts3215 import (
    REGISTERS,
    TELEMETRY_ADDRESS,
    TELEMETRY_SIZE,
    Register,
    ServoError,
    decode_sign_magnitude,
)

# Position, velocity, load (u16), voltage, temperature, skip, status, moving (u8), skip, current.
_TELEMETRY = struct.Struct("<HHHBBxBBxxH")
_BITS_PER_BYTE = 10  # start, eight data, stop
# Longer reads stay within the addresses that the servo documents.
_TABLE_END = max(register.end for register in REGISTERS.values())
_WRITE_TIMEOUT_S = 0.2


@dataclass(frozen=True, slots=True)
class Telemetry:
    """One servo's position and health in register steps (units: ``sts3215.REGISTERS``).

    ``error`` joins the packet's error byte and the Status register.
    """

    servo_id: int
    error: ServoError
    position: int
    velocity: int
    load: int
    voltage: int
    temperature: int
    moving: bool
    current: int

    @classmethod
    def from_status(cls, status: StatusPacket) -> Self:
        """Decode a reply that begins with the 15 bytes 56..70."""
        position, velocity, load, voltage, temperature, error, moving, current = (
            _TELEMETRY.unpack_from(status.params)
        )
        return cls(
            status.servo_id,
            ServoError(status.error | error),
            decode_sign_magnitude(position, 15),
            decode_sign_magnitude(velocity, 15),
            decode_sign_magnitude(load, 10),
            voltage,
            temperature,
            bool(moving),
            decode_sign_magnitude(current, 15),
        )


@dataclass(slots=True)
class BusStats:
    """Counts since the bus was made; they survive an unplug."""

    requests: int = 0
    retries: int = 0
    timeouts: int = 0
    bad_checksums: int = 0
    noise_bytes: int = 0
    flushed_bytes: int = 0
    late_replies: int = 0
    read_backs: int = 0
    unplugs: int = 0

    def as_dict(self) -> dict[str, int]:
        """All counts by name."""
        return asdict(self)


class ServoBus:
    """One serial port with STS servos on it. May be used from several threads.

    Args:
        port: path of the serial port, best a stable name (`robot_io.ports.list_ports`).
        baudrate: bits per second.
        reply_timeout_s: how long to wait for an answer beyond the time it takes on the wire.
        retries: how often a question is asked again after no answer or a corrupt one.
        retry_budget_s: no new attempt begins once a call has taken this long.
        late_window_s: how late an answer may come and still be recognised as late.
        clock: monotonic seconds.

    ``faults`` keeps the newest error bits of each servo, ``names`` may give servo ids a name for
    messages.
    """

    def __init__(
        self,
        port: str | Path,
        baudrate: int = 1_000_000,
        *,
        reply_timeout_s: float = 0.04,
        retries: int = 2,
        retry_budget_s: float = 0.12,
        late_window_s: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.port = str(port)
        self.faults: dict[int, ServoError] = {}
        self.names: dict[int, str] = {}
        self._link = SerialLink(self.port, baudrate)
        self._stats = BusStats()
        self._reply_timeout_s = reply_timeout_s
        self._retries = retries
        self._retry_budget_s = retry_budget_s
        self._late_window_s = late_window_s
        self._clock = clock
        self._lock = threading.RLock()
        self._parser = PacketParser(StatusPacket)
        # (servo id, length of params) of answers that may still come -> until when.
        self._overdue: dict[tuple[int, int], float] = {}

    @property
    def is_open(self) -> bool:
        """True between `open` and `close` or an unplug."""
        return self._link.is_open

    @property
    def stats(self) -> BusStats:
        """Counts so far; a copy."""
        counts = asdict(self._stats)
        counts.update(
            bad_checksums=self._parser.bad_checksums,
            noise_bytes=self._parser.noise_bytes,
            unplugs=self._link.unplugs,
        )
        return BusStats(**counts)

    def open(self) -> None:
        """Open the port for this process alone; also after an unplug.

        Raises:
            PortMissing, PortDenied, PortBusy, BusError: see `SerialLink.open`.
        """
        with self._lock:
            self._link.open()

    def close(self) -> None:
        """Close the port; torque stays as it is. Never raises and may be called twice."""
        with self._lock:
            self._link.close()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def patient(self, retries: int = 6, budget_s: float = 0.6) -> Iterator[None]:
        """Within it, more retries: for setting up, where nobody waits for the next tick."""
        with self._lock:
            before = self._retries, self._retry_budget_s
            self._retries, self._retry_budget_s = retries, budget_s
            try:
                yield
            finally:
                self._retries, self._retry_budget_s = before

    # -- transactions --------------------------------------------------------------------------
    # All of them raise Unplugged when the port is gone, BusTimeout when a servo does not answer
    # after all retries, and BadChecksum when every answer was corrupt.

    def ping(self, servo_id: int) -> ServoError:
        """The error bits of a servo that answers."""
        with self._lock:
            if self._may_come((servo_id,), 0):
                # A late acknowledgement looks like the answer to a ping: ask for bytes instead.
                self.read_bytes(servo_id, REGISTERS["ID"].address, 1)
            else:
                self._ask(lambda _: packet.encode_ping(servo_id), (servo_id,), 0, 0)
            return self.faults[servo_id]

    def read(self, servo_id: int, register: str | Register) -> int:
        """One register of one servo, decoded, in the register's own steps."""
        register = _register(register)
        return register.decode(self.read_bytes(servo_id, register.address, register.size))

    def read_bytes(self, servo_id: int, address: int, size: int) -> bytes:
        """``size`` bytes from ``address`` on."""
        replies = self._ask(
            lambda asked: packet.encode_read(servo_id, address, asked), (servo_id,), address, size
        )
        return replies[servo_id].params[:size]

    def sync_read(self, register: str | Register, servo_ids: Sequence[int]) -> dict[int, int]:
        """One register of several servos, decoded, by id; all of them or an exception."""
        register = _register(register)
        replies = self.sync_read_bytes(register.address, register.size, servo_ids)
        return {servo_id: register.decode(data) for servo_id, data in replies.items()}

    def sync_read_bytes(
        self, address: int, size: int, servo_ids: Sequence[int]
    ) -> dict[int, bytes]:
        """``size`` bytes from ``address`` on of several servos; all of them or an exception.

        A servo that stays mute is named in the exception's ``servo_ids``.
        """
        replies = self._sync_read(address, size, servo_ids)
        return {servo_id: replies[servo_id].params[:size] for servo_id in servo_ids}

    def read_telemetry(self, servo_ids: Sequence[int]) -> dict[int, Telemetry]:
        """Position and health of several servos in one exchange (15 bytes 56..70 each)."""
        replies = self._sync_read(TELEMETRY_ADDRESS, TELEMETRY_SIZE, servo_ids)
        telemetry = {servo_id: Telemetry.from_status(replies[servo_id]) for servo_id in servo_ids}
        for servo_id, values in telemetry.items():
            self.faults[servo_id] = values.error
        return telemetry

    def write(self, servo_id: int, register: str | Register, value: int) -> ServoError:
        """Write one register of one servo and see it acknowledged; returns its error bits.

        Raises:
            ValueError: ``value`` does not fit the register.
        """
        register = _register(register)
        data = register.encode(value)
        frame = packet.encode_write(servo_id, register.address, data)
        with self._lock:
            for _ in self._attempts():
                if self._may_come((servo_id,), 0):
                    if self._write_and_read_back(servo_id, frame, register, data):
                        return self.faults[servo_id]
                elif self._exchange(frame, (servo_id,), 0):
                    return self.faults[servo_id]
        raise self._no_answer((servo_id,), f"a write of {register.name}")

    def sync_write(self, register: str | Register, values: Mapping[int, int]) -> None:
        """Write one register of several servos in one frame; nobody acknowledges it.

        Raises:
            ValueError: a value does not fit the register.
        """
        register = _register(register)
        data = {servo_id: register.encode(value) for servo_id, value in values.items()}
        with self._lock:
            self._stats.requests += 1
            self._link.write(packet.encode_sync_write(register.address, data), _WRITE_TIMEOUT_S)

    # -- how an exchange goes ------------------------------------------------------------------

    def _sync_read(
        self, address: int, size: int, servo_ids: Sequence[int]
    ) -> dict[int, StatusPacket]:
        ids = tuple(servo_ids)
        return self._ask(
            lambda asked: packet.encode_sync_read(address, asked, ids), ids, address, size
        )

    def _ask(
        self, frame: Callable[[int], bytes], ids: tuple[int, ...], address: int, size: int
    ) -> dict[int, StatusPacket]:
        missing = ids
        with self._lock:
            corrupt_before = self._parser.bad_checksums
            for _ in self._attempts():
                asked = self._distinct_size(ids, address, size) if size else 0
                replies = self._exchange(frame(asked), ids, asked)
                if len(replies) == len(ids):
                    return replies
                missing = tuple(servo_id for servo_id in ids if servo_id not in replies)
            corrupt = self._parser.bad_checksums > corrupt_before
        raise self._no_answer(missing, "a read", corrupt=corrupt)

    def _attempts(self) -> Iterator[int]:
        began_s = self._clock()
        for attempt in range(1 + self._retries):
            if attempt:
                if self._clock() - began_s >= self._retry_budget_s:
                    return
                self._stats.retries += 1
            yield attempt

    def _exchange(self, frame: bytes, ids: tuple[int, ...], size: int) -> dict[int, StatusPacket]:
        """One attempt: answers of ``size`` params by id, perhaps not from all of ``ids``."""
        self._send(frame)
        awaited_bytes = len(ids) * (size + FRAME_OVERHEAD_BYTES)
        wire_s = (len(frame) + awaited_bytes) * _BITS_PER_BYTE / self._link.baudrate
        deadline_s = self._clock() + wire_s + self._reply_timeout_s
        replies: dict[int, StatusPacket] = {}
        while True:
            data = self._link.read(deadline_s - self._clock())
            awaited_bytes -= len(data)
            for status in self._parser.feed(data):
                if status.servo_id in ids and len(status.params) == size:
                    replies[status.servo_id] = status
                    self.faults[status.servo_id] = ServoError(status.error)
                else:
                    self._stats.late_replies += 1
                    awaited_bytes += len(status.params) + FRAME_OVERHEAD_BYTES
            if len(replies) == len(ids):
                return replies
            # Either all bytes have come and some were corrupt, or the time is over.
            if awaited_bytes <= 0 or self._clock() >= deadline_s:
                break
        self._stats.timeouts += 1
        until_s = self._clock() + self._late_window_s
        for servo_id in ids:
            if servo_id not in replies:
                self._overdue[servo_id, size] = until_s
        return replies

    def _send(self, frame: bytes) -> None:
        self._stats.requests += 1
        self._stats.flushed_bytes += self._link.flush_input()
        self._parser.reset()
        self._link.write(frame, _WRITE_TIMEOUT_S)

    def _write_and_read_back(
        self, servo_id: int, frame: bytes, register: Register, data: bytes
    ) -> bool:
        self._send(frame)
        self._stats.read_backs += 1
        self._overdue[servo_id, 0] = self._clock() + self._late_window_s
        asked = self._distinct_size((servo_id,), register.address, register.size)
        replies = self._exchange(
            packet.encode_read(servo_id, register.address, asked), (servo_id,), asked
        )
        return servo_id in replies and replies[servo_id].params[: register.size] == data

    def _may_come(self, ids: Sequence[int], size: int) -> bool:
        """True while an answer of ``size`` params to an older request may still come."""
        if not self._overdue:
            return False
        now_s = self._clock()
        self._overdue = {key: until for key, until in self._overdue.items() if until > now_s}
        return any((servo_id, size) in self._overdue for servo_id in ids)

    def _distinct_size(self, ids: Sequence[int], address: int, size: int) -> int:
        """The least size from ``size`` on that no overdue answer has."""
        while True:
            for asked in range(size, max(size, _TABLE_END - address) + 1):
                if not self._may_come(ids, asked):
                    return asked
            # Every length may still come: only time tells them apart.
            time.sleep(self._late_window_s / 10)

    def _no_answer(self, ids: Sequence[int], what: str, *, corrupt: bool = False) -> BusError:
        named = ", ".join(
            f"{servo_id} ({self.names[servo_id]})" if servo_id in self.names else str(servo_id)
            for servo_id in ids
        )
        if corrupt:
            return BadChecksum(
                f"servo {named} on {self.port} answered {what} with corrupt bytes, again and "
                "again: check the cable, its length and the baud rate",
                ids,
            )
        return BusTimeout(
            f"servo {named} on {self.port} did not answer {what}: "
            "check its cable, its power and its id",
            ids,
        )


def _register(register: str | Register) -> Register:
    return REGISTERS[register] if isinstance(register, str) else register
