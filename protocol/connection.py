"""One MQTT v5 connection over TLS with a client certificate, that keeps coming back.

Both sides use it. Each connection attempt has a new session (32 hex digits) whose sequence starts
at 0, so that the other side's ReplayGuard can tell a reconnect from a replay. Nothing is queued
while the broker is away: after each connect `on_connected` runs, and what still holds is said
again. What is wrong with a connection is one line in `error`, logged once, not at every retry.
"""

from __future__ import annotations

import logging
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from host.threads import guarded, spawn
from protocol.bundle import Endpoint
from protocol.messages import Envelope, Message

log = logging.getLogger(__name__)

KEEPALIVE_S = 15
CONNECT_TIMEOUT_S = 10.0
FIRST_BACKOFF_S = 0.5
LAST_BACKOFF_S = 15.0
# Commands to a robot that is away wait on the broker as long.
SESSION_EXPIRY_S = 3600
# A will is the last word of its session.
WILL_SEQUENCE = 2**53


@dataclass(frozen=True)
class TlsFiles:
    """PEM files: the authority, and this side's client certificate with its key."""

    ca: Path
    certificate: Path
    key: Path


@dataclass(frozen=True)
class Inbound:
    """One message as it arrived. `remaining_s` is what the broker left of its expiry."""

    topic: str
    payload: bytes
    retained: bool
    remaining_s: int | None
    received_unix_s: float


@dataclass(frozen=True)
class Will:
    """What the broker says when the connection is lost without a goodbye."""

    topic: str
    build: Callable[[Envelope], Message]


class Connection:
    """See the module. `on_message` and `on_connected` run on the connection's thread."""

    def __init__(
        self,
        endpoint: Endpoint,
        tls: TlsFiles,
        identity: str,
        subscriptions: Sequence[str],
        on_message: Callable[[Inbound], None],
        on_connected: Callable[[], None],
        will: Will | None = None,
        wall: Callable[[], float] = time.time,
        stamp: Callable[[], float] | None = None,
    ) -> None:
        """`wall` times what arrives; `stamp` (default: the same) is written into what is sent."""
        self._endpoint = endpoint
        self._tls = tls
        self._identity = identity
        self._subscriptions = tuple(subscriptions)
        self._on_message = on_message
        self._on_connected = on_connected
        self._will = will
        self._wall = wall
        self._stamp = wall if stamp is None else stamp
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._settled = threading.Event()  # accepted, or over
        self._ended = threading.Event()
        self._accepted_once = False
        self._thread: threading.Thread | None = None
        self._client: mqtt.Client | None = None
        self._session = uuid4().hex
        self._sequence = 0
        self._connected = False
        self._refused_publishes = 0
        self._failure: str | None = None
        self.error: str | None = None

    @property
    def connected(self) -> bool:
        """Whether the broker accepted this connection and it still stands."""
        return self._connected

    @property
    def refused_publishes(self) -> int:
        """Publishes that the broker's access list turned away."""
        return self._refused_publishes

    def start(self) -> None:
        """Begin connecting; returns at once."""
        self._thread = spawn("mqtt", self._run, self._died)

    def stop(self, timeout_s: float = 3.0) -> None:
        """Say goodbye in a way that the broker sends the will, and end the thread."""
        self._stopping.set()
        client = self._client
        if client is not None:
            client.disconnect(
                reasoncode=ReasonCode(PacketTypes.DISCONNECT, "Disconnect with will message")
            )
        if self._thread is not None:
            self._thread.join(timeout_s)

    def send(
        self,
        topic: str,
        build: Callable[[Envelope], Message],
        *,
        lifetime_s: float | None,
        retain: bool = False,
    ) -> Message | None:
        """Build a message with the next envelope and publish it with QoS 1.

        Returns it, or None when there is no connection. `lifetime_s` is also the broker's message
        expiry; None holds until replaced.
        """
        with self._lock:
            client = self._client
            if not self._connected or client is None:
                return None
            now = self._stamp()
            self._sequence += 1
            message = build(
                Envelope(
                    session=self._session,
                    sequence=self._sequence,
                    issued_unix_s=now,
                    expires_unix_s=None if lifetime_s is None else now + lifetime_s,
                )
            )
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            if lifetime_s is not None:
                properties.MessageExpiryInterval = max(1, round(lifetime_s))
            # Inside the lock: the order on the wire is the order of the sequence.
            info = client.publish(
                topic, message.encode(), qos=1, retain=retain, properties=properties
            )
        return message if info.rc == MQTTErrorCode.MQTT_ERR_SUCCESS else None

    def _run(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        while not self._stopping.is_set():
            was_connected = self._attempt()
            backoff_s = FIRST_BACKOFF_S if was_connected else min(backoff_s * 2, LAST_BACKOFF_S)
            # Jitter: a fleet does not come back in one beat after a broker's restart.
            self._stopping.wait(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311

    def _attempt(self) -> bool:
        """One connection from beginning to end; True when the broker accepted it."""
        where = self._endpoint.address
        try:
            client = self._new_client()
            client.connect(
                self._endpoint.host,
                self._endpoint.port,
                keepalive=KEEPALIVE_S,
                clean_start=False,
                properties=_session_properties(),
            )
        except (OSError, ValueError) as error:
            self._report(_explain(error, where, self._tls))
            return False
        self._failure = None
        # paho's own thread, so that a publish from another thread wakes it at once.
        client.loop_start()
        try:
            accepted = self._settled.wait(CONNECT_TIMEOUT_S) and self._accepted_once
            if accepted:
                self._ended.wait()
            elif not self._ended.is_set():
                self._failure = f"broker {where} does not answer; check the network"
                client.disconnect()
        finally:
            with self._lock:
                self._connected = False
                self._client = None
            client.loop_stop()
        if not self._stopping.is_set():
            self._report(self._why_it_ended(accepted))
        return accepted

    def _why_it_ended(self, accepted: bool) -> str:
        where = self._endpoint.address
        if self._failure is not None:
            return self._failure
        if accepted:
            return f"broker {where} ended the connection; trying again"
        return (
            f"broker {where} refused the certificate {self._tls.certificate} of "
            f"{self._identity!r}; is it enrolled with this coordinator?"
        )

    def _new_client(self) -> mqtt.Client:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(self._tls.ca))
        context.load_cert_chain(self._tls.certificate, self._tls.key)
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._identity,
            protocol=MQTTProtocolVersion.MQTTv5,
            reconnect_on_failure=False,
        )
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.tls_set_context(context)
        # An exception would end paho's thread, and with it the connection, without a word.
        client.on_connect = guarded("mqtt's on_connect", self._accepted, self._give_up)
        client.on_disconnect = guarded("mqtt's on_disconnect", self._lost, self._give_up)
        client.on_message = guarded("mqtt's on_message", self._received, self._died)
        client.on_publish = guarded("mqtt's on_publish", self._published, self._died)
        self._settled.clear()
        self._ended.clear()
        self._accepted_once = False
        with self._lock:
            self._session = uuid4().hex
            self._sequence = 0
            self._client = client
        if self._will is not None:
            last_word = Envelope(
                session=self._session,
                sequence=WILL_SEQUENCE,
                issued_unix_s=self._stamp(),
                expires_unix_s=None,
            )
            client.will_set(
                self._will.topic, self._will.build(last_word).encode(), qos=1, retain=True
            )
        return client

    def _accepted(
        self,
        client: mqtt.Client,
        _userdata: Any,
        _flags: mqtt.ConnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            self._failure = f"broker {self._endpoint.address} refused the connection: {reason}"
            return
        if self._subscriptions:
            options = SubscribeOptions(qos=1)
            client.subscribe([(topic, options) for topic in self._subscriptions])
        with self._lock:
            self._connected = True
        if self.error is not None:
            log.info("connected to broker %s again", self._endpoint.address)
        self.error = None
        self._accepted_once = True
        self._settled.set()
        self._on_connected()

    def _lost(
        self,
        _client: mqtt.Client,
        _userdata: Any,
        _flags: mqtt.DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        with self._lock:
            self._connected = False
        if str(reason) == "Session taken over":
            self._failure = (
                f"another process connected to {self._endpoint.address} as {self._identity!r}; "
                "each robot needs its own bundle"
            )
        self._ended.set()
        self._settled.set()

    def _received(self, _client: mqtt.Client, _userdata: Any, message: mqtt.MQTTMessage) -> None:
        remaining = getattr(message.properties, "MessageExpiryInterval", None)
        self._on_message(
            Inbound(message.topic, bytes(message.payload), message.retain, remaining, self._wall())
        )

    def _published(
        self,
        _client: mqtt.Client,
        _userdata: Any,
        _mid: int,
        reason: ReasonCode,
        _properties: Properties,
    ) -> None:
        if reason.is_failure:
            self._refused_publishes += 1
            log.warning("the broker refused a publish of %s: %s", self._identity, reason)

    def _died(self, line: str) -> None:
        """What was in work is lost (a message, or the thread); the status says so."""
        self.error = line

    def _give_up(self, line: str) -> None:
        """End this attempt; another one follows."""
        self._failure = line
        self._ended.set()
        self._settled.set()

    def _report(self, line: str) -> None:
        if line != self.error:
            log.warning("%s", line)
        self.error = line


def _session_properties() -> Properties:
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = SESSION_EXPIRY_S
    return properties


def _explain(error: OSError | ValueError, where: str, tls: TlsFiles) -> str:
    """One line on a failed connect: what, where, and how to mend it."""
    match error:
        case ssl.SSLCertVerificationError():
            return (
                f"broker {where} shows a certificate that {tls.ca} does not vouch for "
                f"({error.verify_message}); enrol this robot with that coordinator"
            )
        case ssl.SSLError():
            return (
                f"TLS with broker {where} failed ({error.reason or error}); check {tls.certificate}"
            )
        case socket.gaierror():
            return f"broker host of {where} is not known; check the address in the bundle"
        case ConnectionRefusedError():
            return f"no broker at {where} (connection refused); is mosquitto running there?"
        case TimeoutError():
            return f"broker {where} does not answer; check the network and the firewall"
        case FileNotFoundError():
            return f"a key or certificate is missing: {tls.certificate}, {tls.key} or {tls.ca}"
        case _:
            return f"broker {where} cannot be reached: {error}"
