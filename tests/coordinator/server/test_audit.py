"""The audit log: every change to what was written is found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.errors import AuditBroken
from coordinator.server.audit import AuditLog, verify


def write(path: Path, count: int = 5) -> list[str]:
    log = AuditLog(path, lambda: 1.0)
    heads = [log.append("thing", {"number": number}) for number in range(count)]
    log.close()
    return heads


def test_a_log_continues_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    write(path, 3)
    write(path, 2)
    assert verify(path) == 5


def test_a_changed_field_is_found_at_its_line(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    write(path)
    path.write_bytes(path.read_bytes().replace(b'"number": 2', b'"number": 7'))
    with pytest.raises(AuditBroken, match=r"audit\.jsonl:3: was changed"):
        verify(path)


def test_a_removed_line_is_found(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    write(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:1] + lines[2:]))
    with pytest.raises(AuditBroken, match=":2: does not follow"):
        verify(path)


def test_a_log_cut_off_at_its_end_is_found_by_the_head_seen_before(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    heads = write(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    assert verify(path) == 4
    with pytest.raises(AuditBroken, match="the end is missing"):
        verify(path, must_contain=heads[-1])


def test_a_line_half_written_at_a_power_cut_is_dropped_and_the_log_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    write(path)
    with path.open("ab") as stream:
        stream.write(b'{"sequence": 5, "unix')
    write(path, 1)
    assert verify(path) == 6


def test_a_broken_log_is_not_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    write(path)
    path.write_bytes(path.read_bytes().replace(b"thing", b"think", 1))
    with pytest.raises(AuditBroken):
        AuditLog(path, lambda: 2.0)


@settings(max_examples=60)
@given(st.data())
def test_any_changed_byte_is_found_or_changes_no_meaning(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    write(path, 3)
    good = path.read_bytes()
    meaning = [json.loads(line) for line in good.splitlines()]
    content = bytearray(good)
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    try:
        verify(path)
    except AuditBroken:
        return
    assert [json.loads(line) for line in path.read_bytes().splitlines()] == meaning
