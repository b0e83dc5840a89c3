"""The Feetech STS wire protocol: bytes <-> packets. Pure, no I/O, no clock.

Both directions share one frame (Feetech "Serial bus smart control protocol manual")::

    FF FF | id | length | code | params ... | checksum

``length`` counts code, params and checksum, so it is ``len(params) + 2``. ``code`` is the
instruction on the way to a servo and the error byte on the way back. ``checksum`` is
``~(id + length + code + sum(params)) & 0xFF``. A servo answers a sync read with a status packet
of its own, in the order in which the request named it. Multi-byte values are little-endian on
the STS series.

Ours, because the makers' SDK takes a late answer for the next one and throws error bits away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

HEADER = b"\xff\xff"
BROADCAST_ID = 0xFE
MAX_SERVO_ID = 0xFD
# The length byte also counts code and checksum; 0xFF never stands as a length on this bus.
MAX_PARAMS = 0xFE - 2
# Bytes of a frame beyond its params: FF FF id length code checksum.
FRAME_OVERHEAD_BYTES = 6


class Instruction(IntEnum):
    """Instruction codes that an STS3215 understands."""

    PING = 0x01
    READ = 0x02
    WRITE = 0x03
    REG_WRITE = 0x04
    ACTION = 0x05
    FACTORY_RESET = 0x06
    SYNC_READ = 0x82
    SYNC_WRITE = 0x83


@dataclass(frozen=True, slots=True)
class InstructionPacket:
    """Host to servo. ``instruction`` stays an int, because a corrupt byte may be no instruction."""

    servo_id: int
    instruction: int
    params: bytes


@dataclass(frozen=True, slots=True)
class StatusPacket:
    """Servo to host. ``error`` is the raw error byte (see ``sts3215.ServoError``)."""

    servo_id: int
    error: int
    params: bytes

    def encode(self) -> bytes:
        """The frame's bytes."""
        return encode_frame(self.servo_id, self.error, self.params)


def checksum(body: bytes) -> int:
    """Checksum of everything between the header and the checksum byte itself."""
    return ~sum(body) & 0xFF


def encode_frame(servo_id: int, code: int, params: bytes = b"") -> bytes:
    """One frame.

    Raises:
        ValueError: an id, a code or a number of params that the frame cannot carry.
    """
    if not 0 <= servo_id <= BROADCAST_ID:
        raise ValueError(f"servo id {servo_id} is not within 0..{BROADCAST_ID}")
    if not 0 <= code <= 0xFF:
        raise ValueError(f"code {code} does not fit a byte")
    if len(params) > MAX_PARAMS:
        raise ValueError(f"{len(params)} params do not fit a frame, at most {MAX_PARAMS} do")
    body = bytes((servo_id, len(params) + 2, code)) + params
    return HEADER + body + bytes((checksum(body),))


def encode_ping(servo_id: int) -> bytes:
    """Ask one servo (or, by ``BROADCAST_ID``, all) for an empty status packet."""
    return encode_frame(servo_id, Instruction.PING)


def encode_read(servo_id: int, address: int, size: int) -> bytes:
    """Ask one servo for ``size`` bytes from ``address`` on."""
    return encode_frame(servo_id, Instruction.READ, bytes((address, size)))


def encode_write(servo_id: int, address: int, data: bytes) -> bytes:
    """Write ``data`` from ``address`` on; answered unless sent to ``BROADCAST_ID``."""
    return encode_frame(servo_id, Instruction.WRITE, bytes((address,)) + data)


def encode_sync_read(address: int, size: int, servo_ids: Sequence[int]) -> bytes:
    """Ask several servos for the same span; each answers with its own status packet.

    Raises:
        ValueError: no id, an id twice, or an id that no servo can have.
    """
    _check_ids(servo_ids)
    return encode_frame(
        BROADCAST_ID, Instruction.SYNC_READ, bytes((address, size)) + bytes(servo_ids)
    )


def encode_sync_write(address: int, data: Mapping[int, bytes]) -> bytes:
    """Write the same span of several servos in one frame; nobody answers.

    Raises:
        ValueError: no servo, an id that no servo can have, or data of different sizes.
    """
    _check_ids(tuple(data))
    sizes = {len(value) for value in data.values()}
    if len(sizes) != 1:
        raise ValueError(f"a sync write needs data of one size, got {sorted(sizes)}")
    params = bytearray((address, sizes.pop()))
    for servo_id, value in data.items():
        params.append(servo_id)
        params += value
    return encode_frame(BROADCAST_ID, Instruction.SYNC_WRITE, bytes(params))


def _check_ids(servo_ids: Sequence[int]) -> None:
    if not servo_ids:
        raise ValueError("a sync instruction needs at least one servo id")
    if len(set(servo_ids)) != len(servo_ids):
        raise ValueError(f"servo ids {list(servo_ids)} name one servo twice")
    wrong = [servo_id for servo_id in servo_ids if not 0 <= servo_id <= MAX_SERVO_ID]
    if wrong:
        raise ValueError(f"servo ids {wrong} are not within 0..{MAX_SERVO_ID}")


class PacketParser[PacketT: (InstructionPacket, StatusPacket)]:
    """Frames out of a byte stream that may be cut anywhere and may carry noise.

    ``PacketParser(StatusPacket)`` reads what servos say, ``PacketParser(InstructionPacket)`` what
    the host says. After a wrong checksum it steps one byte on, not a whole frame, so that a good
    frame behind (or inside) a broken one is still found.

    ``max_params`` bounds how long a frame may claim to be: a corrupt length byte above it is
    noise at once, instead of swallowing what follows.

    Counters: ``bad_checksums`` frames refused, ``noise_bytes`` bytes that belonged to no frame.
    """

    def __init__(self, kind: type[PacketT], max_params: int = MAX_PARAMS) -> None:
        self._kind: type[PacketT] = kind
        self._max_length = max_params + 2
        self._buffer = bytearray()
        self.bad_checksums = 0
        self.noise_bytes = 0

    @property
    def pending_bytes(self) -> int:
        """Bytes kept because the rest of their frame has not come yet."""
        return len(self._buffer)

    def reset(self) -> None:
        """Forget a frame that has begun; the counters stay."""
        self._buffer.clear()

    def feed(self, data: bytes | bytearray | memoryview) -> list[PacketT]:
        """All frames that ``data`` completes, in the order in which they came."""
        buffer = self._buffer
        buffer += data
        packets: list[PacketT] = []
        at = 0
        while True:
            start = buffer.find(HEADER, at)
            if start < 0:
                # A last FF may be the first half of the next header.
                start = len(buffer) - int(buffer.endswith(b"\xff", at))
                self.noise_bytes += start - at
                at = start
                break
            self.noise_bytes += start - at
            at = start
            if len(buffer) < at + 4:
                break
            length = buffer[at + 3]
            # FF FF FF: the third FF is no id, so the header begins one later.
            if buffer[at + 2] == 0xFF or not 2 <= length <= self._max_length:
                at += 1
                self.noise_bytes += 1
                continue
            end = at + 4 + length
            if len(buffer) < end:
                break
            if sum(memoryview(buffer)[at + 2 : end]) & 0xFF != 0xFF:
                self.bad_checksums += 1
                self.noise_bytes += 1
                at += 1
                continue
            packets.append(
                self._kind(buffer[at + 2], buffer[at + 4], bytes(buffer[at + 5 : end - 1]))
            )
            at = end
        del buffer[:at]
        return packets
