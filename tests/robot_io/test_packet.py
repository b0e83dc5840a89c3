"""The wire format: what is encoded is decoded, whatever the cuts and the noise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robot_io import packet
from robot_io.packet import InstructionPacket, PacketParser, StatusPacket

frames = st.builds(
    StatusPacket,
    servo_id=st.integers(0, packet.MAX_SERVO_ID),
    error=st.integers(0, 255),
    params=st.binary(max_size=40),
)


@given(st.lists(frames, max_size=8), st.data())
def test_frames_survive_any_cut_of_the_stream(sent: list[StatusPacket], data: st.DataObject):
    stream = b"".join(frame.encode() for frame in sent)
    parser = PacketParser(StatusPacket)
    got = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        got += parser.feed(stream[:size])
        stream = stream[size:]
    assert got == sent
    assert (parser.bad_checksums, parser.noise_bytes, parser.pending_bytes) == (0, 0, 0)


@given(st.binary(max_size=30).filter(lambda noise: b"\xff" not in noise), frames)
def test_noise_before_a_frame_is_counted_and_the_frame_is_found(noise: bytes, frame: StatusPacket):
    parser = PacketParser(StatusPacket)
    assert parser.feed(noise + frame.encode()) == [frame]
    assert parser.noise_bytes == len(noise)


@given(frames, st.data())
def test_one_flipped_bit_never_yields_the_frame_that_was_not_sent(
    frame: StatusPacket, data: st.DataObject
):
    raw = bytearray(frame.encode())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    parser = PacketParser(StatusPacket)
    for found in parser.feed(bytes(raw) + bytes(300)):
        # Only a frame lying wholly inside the params may be found, never one as long as this.
        assert len(found.params) < len(frame.params)


@given(st.binary(max_size=400))
def test_garbage_never_raises_and_every_byte_is_accounted_for(garbage: bytes):
    parser = PacketParser(InstructionPacket)
    found = parser.feed(garbage)
    used = sum(len(frame.encode()) for frame in found)
    assert used + parser.noise_bytes + parser.pending_bytes == len(garbage)


def test_known_bytes_of_the_protocol_manual():
    # Feetech's protocol manual: ping of servo 1, and a read of two bytes at 0x38 from it.
    assert packet.encode_ping(1).hex(" ") == "ff ff 01 02 01 fb"
    assert packet.encode_read(1, 0x38, 2).hex(" ") == "ff ff 01 04 02 38 02 be"
    reply = bytes.fromhex("ff ff 01 04 00 18 05 dd")
    assert PacketParser(StatusPacket).feed(reply) == [StatusPacket(1, 0, b"\x18\x05")]


@given(
    st.integers(0, 200),
    st.dictionaries(
        st.integers(0, packet.MAX_SERVO_ID),
        st.binary(min_size=2, max_size=2),
        min_size=1,
        max_size=20,
    ),
)
def test_sync_write_carries_every_servo_once(address: int, data: dict[int, bytes]):
    (frame,) = PacketParser(InstructionPacket).feed(packet.encode_sync_write(address, data))
    assert frame.servo_id == packet.BROADCAST_ID
    assert frame.instruction == packet.Instruction.SYNC_WRITE
    assert frame.params[:2] == bytes((address, 2))
    rows = [frame.params[at : at + 3] for at in range(2, len(frame.params), 3)]
    assert {row[0]: row[1:] for row in rows} == data


def test_a_length_byte_above_the_bound_does_not_swallow_the_next_frame():
    good = StatusPacket(1, 0, b"\x01\x02")
    parser = PacketParser(StatusPacket, max_params=15)
    assert parser.feed(b"\xff\xff\x01\xf0\x00" + good.encode()) == [good]


def test_a_third_ff_is_no_servo_id():
    good = StatusPacket(2, 0, b"")
    parser = PacketParser(StatusPacket)
    assert parser.feed(b"\xff") == []
    assert parser.feed(good.encode()) == [good]
    assert parser.noise_bytes == 1


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: packet.encode_ping(255), "servo id 255"),
        (lambda: packet.encode_sync_read(56, 2, []), "at least one"),
        (lambda: packet.encode_sync_read(56, 2, [1, 1]), "twice"),
        (lambda: packet.encode_sync_read(56, 2, [254]), "254"),
        (lambda: packet.encode_sync_write(42, {1: b"a", 2: b"ab"}), "one size"),
        (lambda: packet.encode_write(1, 0, bytes(252)), "params"),
    ],
)
def test_what_no_frame_can_carry_is_refused(call, said: str):
    with pytest.raises(ValueError, match=said):
        call()
