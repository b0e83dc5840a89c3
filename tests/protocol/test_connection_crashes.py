"""A bug in what is done with a message, or in the connection's thread, is told in its error."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path

import pytest
from paho.mqtt import client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from coordinator.config import CoordinatorConfig
from coordinator.identity.enrolment import Authority, create_identities
from coordinator.identity.layout import Layout
from protocol.bundle import Endpoint
from protocol.connection import Connection, TlsFiles


def bug(*_: object) -> None:
    raise TypeError("a bug")


def nothing(*_: object) -> None:
    """Expected to be called."""


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Connection]:
    layout = Layout(tmp_path / "c")
    layout.root.mkdir()
    authority = Authority.create("armada", lambda: datetime.datetime.now(datetime.UTC))
    create_identities(layout, CoordinatorConfig(), authority)
    tls = TlsFiles(layout.ca_certificate, layout.identity_certificate, layout.identity_key)

    def connection(
        on_message: Callable[..., None] = nothing, on_connected: Callable[..., None] = nothing
    ) -> Connection:
        where = Endpoint(host="127.0.0.1", port=1)
        return Connection(where, tls, "arm-1", [], on_message, on_connected)

    return connection


def message(topic: str = "a/b") -> mqtt.MQTTMessage:
    made = mqtt.MQTTMessage(topic=topic.encode())
    made.payload = b"{}"
    return made


def test_a_message_that_meets_a_bug_is_lost_and_the_next_one_is_heard(
    make: Callable[..., Connection],
) -> None:
    heard: list[str] = []

    def take(inbound) -> None:
        heard.append(inbound.topic)
        if inbound.topic == "bad":
            bug()

    connection = make(on_message=take)
    client = connection._new_client()
    client.on_message(client, None, message("bad"))
    assert connection.error == "mqtt's on_message died: TypeError: a bug"
    client.on_message(client, None, message("good"))
    assert heard == ["bad", "good"]
    assert not connection._ended.is_set()


def test_a_bug_after_the_connect_ends_the_attempt_instead_of_hanging(
    make: Callable[..., Connection],
) -> None:
    connection = make(on_connected=bug)
    client = connection._new_client()
    reason = ReasonCode(PacketTypes.CONNACK, "Success")
    client.on_connect(client, None, mqtt.ConnectFlags(session_present=False), reason, None)
    assert connection._settled.is_set() and connection._ended.is_set()
    assert connection._why_it_ended(True) == "mqtt's on_connect died: TypeError: a bug"


def test_a_bug_in_the_connections_thread_is_its_last_word(
    make: Callable[..., Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = make()
    monkeypatch.setattr(connection, "_attempt", bug)
    connection.start()
    assert connection._thread is not None
    connection._thread.join(5.0)
    assert connection.error == "thread mqtt died: TypeError: a bug"
    assert not connection.connected
