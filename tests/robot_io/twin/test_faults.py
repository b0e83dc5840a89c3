"""Injected faults do what they say, to whom they say, for as long as they say."""

from __future__ import annotations

import random

import pytest

from robot_io.packet import PacketParser, StatusPacket, encode_frame
from robot_io.sts3215 import ServoError
from robot_io.twin.errors import BadRequest
from robot_io.twin.faults import Fault, FaultKind, FaultPlan, parse_fault

FRAME = encode_frame(2, 0, b"\x01\x02\x03")


def plan(*faults: Fault) -> FaultPlan:
    made = FaultPlan(random.Random(1))
    for fault in faults:
        made.add(fault)
    return made


def received(data: bytes) -> list[StatusPacket]:
    return PacketParser(StatusPacket).feed(data)


def test_without_faults_a_frame_passes() -> None:
    sent = plan().transmit(2, FRAME)
    assert (sent.data, sent.extra_delay_s) == (FRAME, 0.0)


def test_a_mute_servo_says_nothing_and_the_others_do() -> None:
    faults = plan(Fault(FaultKind.MUTE, servo_id=2))
    assert faults.transmit(2, FRAME).data == b""
    assert faults.transmit(3, FRAME).data == FRAME


@pytest.mark.parametrize("kind", [FaultKind.BAD_CHECKSUM, FaultKind.CORRUPT, FaultKind.TRUNCATE])
def test_a_damaged_frame_is_never_accepted(kind: FaultKind) -> None:
    faults = plan(Fault(kind))
    for _ in range(200):
        data = faults.transmit(2, FRAME).data
        assert data != FRAME
        assert received(data) == []


def test_noise_precedes_a_whole_frame() -> None:
    data = plan(Fault(FaultKind.NOISE)).transmit(2, FRAME).data
    assert data.endswith(FRAME)
    assert len(data) > len(FRAME)


def test_a_late_frame_is_whole_and_late() -> None:
    sent = plan(Fault(FaultKind.LATE, delay_s=0.08)).transmit(2, FRAME)
    assert (sent.data, sent.extra_delay_s) == (FRAME, 0.08)


def test_a_counted_fault_ends_after_its_packets() -> None:
    faults = plan(Fault(FaultKind.MUTE, servo_id=2, count=2))
    assert faults.transmit(3, FRAME).data == FRAME, "another servo's packet is not counted"
    assert [faults.transmit(2, FRAME).data for _ in range(3)] == [b"", b"", FRAME]
    assert faults.expire(0.0)
    assert not faults.active


def test_a_timed_fault_ends_with_its_time() -> None:
    faults = plan(Fault(FaultKind.OVERHEAT, until_s=10.0))
    assert not faults.expire(9.9)
    assert faults.override(1).error == ServoError.OVERHEAT
    assert faults.expire(10.0)
    assert faults.override(1).error == 0


def test_servo_faults_add_up_on_the_servo_that_is_named() -> None:
    faults = plan(Fault(FaultKind.OVERHEAT, servo_id=4), Fault(FaultKind.UNDERVOLTAGE))
    assert faults.override(4).error == ServoError.OVERHEAT | ServoError.VOLTAGE
    assert faults.override(4).temperature_c == 78
    assert faults.override(5).error == ServoError.VOLTAGE
    assert faults.override(5).temperature_c is None


@pytest.mark.parametrize(
    ("request_fields", "names"),
    [
        ({"kind": "zap"}, "zap"),
        ({}, "None"),
        ({"kind": "mute", "servo": 0}, "servo"),
        ({"kind": "mute", "servo": "3"}, "servo"),
        ({"kind": "mute", "count": 0}, "count"),
        ({"kind": "late", "delay_s": -1}, "delay_s"),
        ({"kind": "late", "duration_s": "long"}, "duration_s"),
    ],
)
def test_a_senseless_request_is_refused_by_name(
    request_fields: dict[str, object], names: str
) -> None:
    with pytest.raises(BadRequest, match=names):
        parse_fault(request_fields, 0.0)


def test_a_duration_is_counted_from_now() -> None:
    fault = parse_fault({"kind": "mute", "servo": 3, "duration_s": 0.5}, 100.0)
    assert fault == Fault(FaultKind.MUTE, 3, None, 100.5)
