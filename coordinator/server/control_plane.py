"""The coordinator's place on the broker: what comes in is checked here, before anybody sees it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from coordinator.config import CoordinatorConfig
from coordinator.identity.layout import Layout
from protocol.bundle import Endpoint
from protocol.connection import Connection, Inbound, TlsFiles
from protocol.errors import BadTopic, MalformedMessage
from protocol.messages import (
    AgentEvent,
    AgentStatus,
    Answer,
    Command,
    Drop,
    Envelope,
    ReleaseNotice,
    ReplayGuard,
    Window,
    decode,
)
from protocol.topics import COORDINATOR_IDENTITY, Kind, Topics

log = logging.getLogger(__name__)

FromAgent = AgentStatus | Answer | AgentEvent
COMMAND_LIFETIME_S = 3600.0
# After it closed, a window's last word stays for those who reconnect.
CLOSED_WINDOW_LIFETIME_S = 60.0

_MODELS: dict[Kind, type[AgentStatus] | type[Answer] | type[AgentEvent]] = {
    Kind.STATUS: AgentStatus,
    Kind.ANSWER: Answer,
    Kind.EVENT: AgentEvent,
}


class FleetInbox:
    """Decodes and guards; pure. Everything dropped is counted."""

    def __init__(self, fleet: str) -> None:
        self._topics = Topics(fleet)
        self.guard = ReplayGuard()

    def take(self, inbound: Inbound) -> FromAgent | None:
        """The message, or None when it was dropped."""
        try:
            address = self._topics.parse(inbound.topic)
            model = _MODELS.get(address.kind)
            if model is None or address.agent_id is None:
                raise BadTopic(f"topic {inbound.topic!r} is not an agent's to write")
            message = decode(model, inbound.payload)
        except (BadTopic, MalformedMessage) as error:
            log.info("dropped: %s", error)
            self.guard.count(Drop.MALFORMED)
            return None
        drop = self.guard.admit(
            message,
            sender=address.agent_id,
            claimed=message.agent_id,
            now_unix_s=inbound.received_unix_s,
        )
        if drop is not None:
            log.info("dropped %s of %s: %s", address.kind, address.agent_id, drop)
            return None
        return message


class FleetLink:
    """Publishes windows, releases and commands; hands guarded messages to `on_message`."""

    def __init__(
        self,
        layout: Layout,
        config: CoordinatorConfig,
        on_message: Callable[[FromAgent, float], None],
        on_connected: Callable[[], None],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._topics = Topics(config.fleet)
        self._inbox = FleetInbox(config.fleet)
        self._on_message = on_message
        self._connection = Connection(
            Endpoint(host=config.host, port=config.ports.mqtt),
            TlsFiles(layout.ca_certificate, layout.identity_certificate, layout.identity_key),
            COORDINATOR_IDENTITY,
            [self._topics.of_every_agent(kind) for kind in _MODELS],
            self._received,
            on_connected,
            wall=wall,
        )

    @property
    def connected(self) -> bool:
        """Whether the broker has us."""
        return self._connection.connected

    @property
    def error(self) -> str | None:
        """What is wrong with the connection, in one line."""
        return self._connection.error

    @property
    def dropped(self) -> dict[str, int]:
        """Messages dropped, by reason."""
        return dict(self._inbox.guard.dropped)

    def start(self) -> None:
        """Begin connecting."""
        self._connection.start()

    def stop(self) -> None:
        """Leave the broker."""
        self._connection.stop()

    def announce(self, build: Callable[[Envelope], Window], lifetime_s: float) -> bool:
        """Publish a window, retained; False without a connection."""
        topic = self._topics.window()
        return self._connection.send(topic, build, lifetime_s=lifetime_s, retain=True) is not None

    def release(self, build: Callable[[Envelope], ReleaseNotice]) -> bool:
        """Publish the newest release, retained until it is replaced."""
        topic = self._topics.release()
        return self._connection.send(topic, build, lifetime_s=None, retain=True) is not None

    def command(self, agent_id: str, build: Callable[[Envelope], Command]) -> bool:
        """Publish a command; the broker keeps it for a robot that is away."""
        topic = self._topics.command(agent_id)
        return self._connection.send(topic, build, lifetime_s=COMMAND_LIFETIME_S) is not None

    def _received(self, inbound: Inbound) -> None:
        message = self._inbox.take(inbound)
        if message is not None:
            self._on_message(message, inbound.received_unix_s)
