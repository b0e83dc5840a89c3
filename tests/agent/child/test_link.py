"""The link between the supervisor and a child."""

from __future__ import annotations

import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.child.link import (
    LINK_FD,
    MAX_LINE_BYTES,
    MAX_OUTBOX,
    ChildLink,
    LineBuffer,
    ParentLink,
    encode_line,
)
from agent.errors import BadLinkMessage, LinkClosed

FIELDS = st.dictionaries(
    st.text(min_size=1).filter(lambda key: key != "kind"),
    st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers()),
    max_size=5,
)


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> tuple[ParentLink, ChildLink]:
    parent = ParentLink()
    monkeypatch.setenv(LINK_FD, str(os.dup(parent.child_fd())))
    parent.close_child_end()
    return parent, ChildLink.from_environment()


@given(st.lists(st.tuples(st.text(min_size=1), FIELDS), max_size=6), st.integers(1, 7))
def test_messages_survive_any_cut_of_the_stream(
    messages: list[tuple[str, dict[str, object]]], step: int
) -> None:
    stream = b"".join(encode_line(kind, fields) for kind, fields in messages)
    buffer = LineBuffer()
    got = []
    for start in range(0, len(stream), step):
        got += buffer.feed(stream[start : start + step])
    assert got == [{"kind": kind, **fields} for kind, fields in messages]


@pytest.mark.parametrize("line", [b"not json\n", b"[1]\n", b'{"a": 1}\n', b'{"kind": 3}\n'])
def test_a_bad_line_is_named(line: bytes) -> None:
    with pytest.raises(BadLinkMessage):
        LineBuffer().feed(line)


def test_an_endless_line_is_refused() -> None:
    with pytest.raises(BadLinkMessage, match="longer than"):
        LineBuffer().feed(b"x" * (MAX_LINE_BYTES + 1))


def test_a_field_that_is_no_json_is_refused_before_anything_is_sent(
    pair: tuple[ParentLink, ChildLink],
) -> None:
    parent, child = pair
    with pytest.raises(BadLinkMessage, match="'status' is not JSON"):
        child.send("status", loss=float("nan"))
    assert parent.receive_all() == []


def test_both_ends_hear_each_other(pair: tuple[ParentLink, ChildLink]) -> None:
    parent, child = pair
    child.heartbeat()
    child.send("status", steps=3)
    assert parent.receive_all() == [{"kind": "heartbeat"}, {"kind": "status", "steps": 3}]
    parent.send("command", name="park")
    assert child.receive(1.0) == {"kind": "command", "name": "park"}
    assert child.receive() is None


def test_the_address_is_taken_out_of_the_environment(pair: tuple[ParentLink, ChildLink]) -> None:
    assert LINK_FD not in os.environ


def test_a_dead_supervisor_is_noticed(pair: tuple[ParentLink, ChildLink]) -> None:
    parent, child = pair
    parent.close()
    with pytest.raises(LinkClosed):
        child.receive(1.0)
    with pytest.raises(LinkClosed):
        child.send("status")


def test_a_dead_child_is_noticed_after_its_last_words(pair: tuple[ParentLink, ChildLink]) -> None:
    parent, child = pair
    child.send("event", name="last")
    child.close()
    assert parent.receive_all() == [{"kind": "event", "name": "last"}]
    with pytest.raises(LinkClosed):
        parent.receive_all()


def test_a_frozen_child_finds_the_newest_state_when_it_goes_on(
    pair: tuple[ParentLink, ChildLink],
) -> None:
    parent, child = pair
    padding = "x" * 2000
    for number in range(2000):  # far more than the socket holds; must neither block nor grow
        parent.send("state", number=number, padding=padding)
    newest = -1
    until_s = time.monotonic() + 10.0
    while newest < 1999 and time.monotonic() < until_s:
        parent.flush()
        message = child.receive(0.1)
        if message is not None:
            assert message["number"] > newest
            newest = message["number"]
    assert newest == 1999


def test_a_child_that_reads_nothing_is_given_up(pair: tuple[ParentLink, ChildLink]) -> None:
    parent, _child = pair
    with pytest.raises(LinkClosed, match="unread"):
        for _ in range(MAX_OUTBOX + 1000):
            parent.send("command", padding="x" * 2000)


def test_a_process_started_by_hand_has_a_null_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LINK_FD, raising=False)
    link = ChildLink.from_environment()
    link.heartbeat()
    link.send("status", anything=1)
    assert not link.connected
    began_s = time.monotonic()
    assert link.receive(0.05) is None
    assert time.monotonic() - began_s >= 0.04
