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
    used = sum(len(frame.params) + packet.FRAME_OVERHEAD_BYTES for frame in found)
    assert used + parser.noise_bytes + parser.pending_bytes == len(garbage)


def test_known_bytes_of_the_protocol_manual():
    # Feetech's protocol manual: ping of servo 1, and a read of two bytes at 0x38 from it.
    assert packet.encode_ping(1).hex(" ") == "ff ff 01 02 01 fb"
    assert packet.encode_read(1, 0x38, 2).hex(" ") == "ff ff 01 04 02 38 02 be"
    assert packet.encode_sync_read(0x38, 2, [1, 2]).hex(" ") == "ff ff fe 06 82 38 02 01 02 3c"
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


@pytest.mark.parametrize("bit", range(8))
def test_a_checksum_counts_with_each_of_its_eight_bits(bit: int):
    spoilt = bytearray(StatusPacket(1, 0, b"\x18\x05").encode())
    spoilt[-1] ^= 1 << bit
    parser = PacketParser(StatusPacket)
    assert parser.feed(spoilt) == []
    assert parser.bad_checksums == 1


@given(
    st.lists(frames | st.binary(max_size=12) | st.sampled_from([b"\xff", b"\xff\xff"]), max_size=8)
)
def test_cuts_of_a_noisy_stream_change_neither_what_is_found_nor_what_is_counted(pieces):
    stream = b"".join(
        piece.encode() if isinstance(piece, StatusPacket) else piece for piece in pieces
    )
    whole, cut = PacketParser(StatusPacket), PacketParser(StatusPacket)
    found = whole.feed(stream)
    assert [frame for at in range(len(stream)) for frame in cut.feed(stream[at : at + 1])] == found
    assert cut.noise_bytes == whole.noise_bytes
    assert cut.bad_checksums == whole.bad_checksums
    assert cut.pending_bytes == whole.pending_bytes


def test_good_frames_behind_and_inside_a_broken_one_are_found_in_the_same_read():
    good = StatusPacket(1, 0, b"\x01\x02")
    broken = bytearray(StatusPacket(2, 0, good.encode()).encode())
    broken[-1] ^= 0xFF
    parser = PacketParser(StatusPacket)
    assert parser.feed(broken + broken + good.encode()) == [good, good, good]
    assert parser.bad_checksums == 2
    assert parser.noise_bytes == 2 * packet.FRAME_OVERHEAD_BYTES


@pytest.mark.parametrize("rest", [b"\x00", b"\x01", b"\xff\x00"])
def test_a_length_that_no_frame_has_is_noise_at_once(rest: bytes):
    parser = PacketParser(StatusPacket)
    assert parser.feed(b"\xff\xff\x01" + rest) == []
    assert (parser.noise_bytes, parser.pending_bytes) == (3 + len(rest), 0)


def test_the_longest_frame_is_carried_and_one_byte_more_is_noise():
    longest = StatusPacket(1, 0xFF, bytes(packet.MAX_PARAMS))
    assert PacketParser(StatusPacket).feed(longest.encode()) == [longest]
    three = StatusPacket(1, 0, b"\x01\x02\x03")
    assert PacketParser(StatusPacket, max_params=3).feed(three.encode()) == [three]
    assert PacketParser(StatusPacket, max_params=2).feed(three.encode()) == []


def test_a_frame_half_received_is_forgotten_at_a_reset_and_the_counters_stay():
    good = StatusPacket(1, 0, b"\x01")
    parser = PacketParser(StatusPacket)
    parser.feed(b"\x00\xff\xff\x01\xf0")
    parser.reset()
    assert parser.feed(good.encode()) == [good]
    assert (parser.noise_bytes, parser.pending_bytes) == (1, 0)


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
    assert parser.feed(b"\xff" + good.encode()) == [good]
    assert (parser.noise_bytes, parser.bad_checksums) == (2, 0)
    assert parser.feed(b"\xff\xff\xff\x02\x00\xfe") == []  # its checksum would be right


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: packet.encode_ping(255), "servo id 255"),
        (lambda: packet.encode_sync_read(56, 2, []), "at least one"),
        (lambda: packet.encode_sync_read(56, 2, [1, 1]), "twice"),
        (lambda: packet.encode_sync_read(56, 2, [254]), "254"),
        (lambda: packet.encode_sync_write(42, {1: b"a", 2: b"ab"}), "one size"),
        (lambda: packet.encode_sync_write(42, {254: b"a"}), "254"),
        (lambda: packet.encode_write(1, 0, bytes(252)), "params"),
        (lambda: packet.encode_frame(1, 256), "code 256"),
        (lambda: packet.encode_frame(1, -1), "code -1"),
    ],
)
def test_what_no_frame_can_carry_is_refused(call, said: str):
    with pytest.raises(ValueError, match=said):
        call()
