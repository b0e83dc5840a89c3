"""What the SuperNode's process tells of its connection, out of the errors of Flower's calls."""

from __future__ import annotations

import ssl
from contextlib import contextmanager

import httpx
import pytest

from agent.federation import supernode_process
from agent.federation.supernode_process import Reporter, attentive, trouble_of, watched


def answered(status, body=""):
    request = httpx.Request("POST", "https://superlink/v1/fleet")
    response = httpx.Response(status, text=body, request=request)
    return httpx.HTTPStatusError(f"{status}", request=request, response=response)


def caused(error, cause):
    """As httpx raises it: from httpcore's error, which came from the socket's."""
    middle = RuntimeError("httpcore")
    middle.__cause__ = cause
    error.__cause__ = middle
    return error


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (httpx.ConnectError("refused"), "silence"),
        (httpx.ReadTimeout("late"), "silence"),
        (answered(502), "silence"),
        (answered(503), "silence"),
        (caused(httpx.ConnectError("tls"), ssl.SSLCertVerificationError("self-signed")),
         "certificate"),
        (caused(httpx.ConnectError("tls"), ssl.SSLError("alert")), "tls"),
        (answered(401), "unknown"),
        (answered(412), "unknown"),
        (answered(409), "refused"),
        (answered(403), None),
        (RuntimeError("heartbeat"), "refused"),
    ],
)  # fmt: skip
def test_each_error_is_one_kind_of_trouble(error, trouble):
    assert trouble_of(error) == trouble


class Told(list):
    def send(self, kind, **fields):
        self.append({"kind": kind, **fields})


class Invoker:
    """As Flower's RetryInvoker: two of its hooks."""

    def __init__(self):
        self.should_giveup = lambda error: isinstance(error, httpx.HTTPStatusError)
        self.on_success = lambda state: None


def test_a_loss_is_told_once_and_so_is_its_end():
    told = Told()
    invoker = watched(Invoker, Reporter(told.send))()
    invoker.on_success(None)
    assert told == [], "nothing was lost"
    assert invoker.should_giveup(httpx.ConnectError("refused")) is False
    assert invoker.should_giveup(httpx.ConnectError("refused")) is False
    invoker.on_success(None)
    invoker.on_success(None)
    assert [message["kind"] for message in told] == ["trouble", "well"]


def test_flowers_own_judgement_of_an_error_stands():
    told = Told()
    invoker = watched(Invoker, Reporter(told.send))()
    assert invoker.should_giveup(answered(409, "node exists\nalready")) is True
    assert told[0]["detail"] == "HTTP 409 node exists already"


def connect_to(messages):
    inbox = iter(messages)

    @contextmanager
    def connect(address):
        yield 7, lambda: next(inbox), "send"

    return connect


def test_the_node_is_told_and_a_message_is_waited_for(monkeypatch):
    told = Told()
    pauses = []
    monkeypatch.setattr(supernode_process.time, "sleep", pauses.append)
    connection = attentive(connect_to([None, None, "message"]), Reporter(told.send))
    with connection("superlink:1") as (node_id, receive, *others):
        assert (node_id, receive(), others) == (7, "message", ["send"])
    assert told == [{"kind": "connected", "node_id": 7}]
    assert pauses == [supernode_process.PULL_PERIOD_S] * 2


def test_why_flower_left_before_it_was_connected_is_told():
    @contextmanager
    def connect():
        try:
            raise RuntimeError("something new\nand more")
        except RuntimeError:
            raise SystemExit(1)  # noqa: B904  as Flower does
        yield

    told = Told()
    with pytest.raises(SystemExit), attentive(connect, Reporter(told.send))():
        pass
    assert told == [{"kind": "trouble", "trouble": "refused", "detail": "something new and more"}]
