"""The robot's place on the broker: guarded messages in, status, answers and events out.

A window's clock is the coordinator's. `CoordinatorClock` learns how far this host's clock is from
it out of each message's issue time and of what the broker left of its expiry, and everything this
robot stamps or judges is in that time. Nothing that comes in here can move the arm.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from protocol.bundle import Bundle
from protocol.connection import Connection, Inbound, TlsFiles, Will
from protocol.errors import BadTopic, MalformedMessage
from protocol.messages import (
    AgentEvent,
    AgentStatus,
    Answer,
    Command,
    Drop,
    Envelope,
    Message,
    ReleaseNotice,
    ReplayGuard,
    Window,
    decode,
)
from protocol.topics import COORDINATOR_IDENTITY, Kind, Topics

STATUS_LIFETIME_S = 60.0
ANSWER_LIFETIME_S = 60.0
EVENT_LIFETIME_S = 86_400.0
# Events that wait for the broker to come back.
MAX_WAITING_EVENTS = 100

FromCoordinator = Window | ReleaseNotice | Command

_MODELS: dict[Kind, type[Window] | type[ReleaseNotice] | type[Command]] = {
    Kind.WINDOW: Window,
    Kind.RELEASE: ReleaseNotice,
    Kind.COMMAND: Command,
}


class CoordinatorClock:
    """The coordinator's unix time, as far as this robot knows it. `wall` is its own clock.

    A live message is as old as its way here. A retained one is as old as what the broker took off
    its expiry, in whole seconds, so it counts only until a live one comes. Without any, the clocks
    are taken to agree.
    """

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._offset_s = 0.0
        self._live = False

    def now(self) -> float:
        """Unix seconds."""
        return self._wall() + self._offset_s

    def observe(self, envelope: Envelope, inbound: Inbound) -> None:
        """Learn from a message of the coordinator."""
        if not inbound.retained:
            self._offset_s = envelope.issued_unix_s - inbound.received_unix_s
            self._live = True
        elif (
            not self._live
            and envelope.expires_unix_s is not None
            and inbound.remaining_s is not None
        ):
            self._offset_s = envelope.expires_unix_s - inbound.remaining_s - inbound.received_unix_s


class AgentInbox:
    """Decodes and guards; pure. Everything dropped is counted."""

    def __init__(self, fleet: str, agent_id: str, clock: CoordinatorClock) -> None:
        self._topics = Topics(fleet)
        self._agent_id = agent_id
        self._clock = clock
        self.guard = ReplayGuard()

    def take(self, inbound: Inbound) -> FromCoordinator | None:
        """The message, or None when it was dropped."""
        try:
            address = self._topics.parse(inbound.topic)
            model = _MODELS.get(address.kind)
            if model is None:
                raise BadTopic(f"topic {inbound.topic!r} is not the coordinator's to write")
            message = decode(model, inbound.payload)
        except (BadTopic, MalformedMessage):
            self.guard.count(Drop.MALFORMED)
            return None
        if isinstance(message, Command) and message.agent_id != self._agent_id:
            self.guard.count(Drop.WRONG_IDENTITY)
            return None
        self._clock.observe(message.envelope, inbound)
        # The broker lets the coordinator alone write these topics.
        drop = self.guard.admit(
            message,
            sender=COORDINATOR_IDENTITY,
            claimed=COORDINATOR_IDENTITY,
            now_unix_s=self._clock.now(),
        )
        return message if drop is None else None


@dataclass(frozen=True)
class PendingEvent:
    """An event that was not handed to the broker yet."""

    name: str
    detail: str
    version: int | None


class AgentLink:
    """The connection of one robot. Messages wait in `take()`; `wake` is called for each."""

    def __init__(
        self,
        bundle: Bundle,
        build_status: Callable[[Envelope, bool], AgentStatus],
        wake: Callable[[], None],
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`build_status(envelope, online)` also makes the will, when it is false."""
        self._agent_id = bundle.agent_id
        self._topics = Topics(bundle.info.fleet)
        self._build_status = build_status
        self._wake = wake
        self.clock = CoordinatorClock(wall)
        self._inbox = AgentInbox(bundle.info.fleet, bundle.agent_id, self.clock)
        self._messages: queue.SimpleQueue[FromCoordinator] = queue.SimpleQueue()
        self._events: deque[PendingEvent] = deque(maxlen=MAX_WAITING_EVENTS)
        self._events_lock = threading.Lock()
        self._reconnected = threading.Event()
        topics = self._topics
        self._connection = Connection(
            bundle.info.mqtt,
            TlsFiles(bundle.ca, bundle.certificate, bundle.key),
            bundle.agent_id,
            [topics.window(), topics.release(), topics.command(bundle.agent_id)],
            self._received,
            self._connected,
            will=Will(
                topics.status(bundle.agent_id), lambda envelope: build_status(envelope, False)
            ),
            wall=wall,
            stamp=self.clock.now,
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
        """Leave the broker; it then publishes the will."""
        self._connection.stop()

    def take(self) -> FromCoordinator | None:
        """The next guarded message, if there is one."""
        try:
            return self._messages.get_nowait()
        except queue.Empty:
            return None

    def take_reconnected(self) -> bool:
        """True once after each connect: the status must be said again."""
        was = self._reconnected.is_set()
        self._reconnected.clear()
        return was

    def send_status(self) -> bool:
        """Publish the status, retained; False without a connection."""
        return self._send(
            Kind.STATUS,
            lambda envelope: self._build_status(envelope, True),
            STATUS_LIFETIME_S,
            retain=True,
        )

    def send_answer(self, build: Callable[[Envelope], Answer]) -> bool:
        """Publish an answer; False without a connection (a late one would not count)."""
        return self._send(Kind.ANSWER, build, ANSWER_LIFETIME_S)

    def add_event(self, name: str, detail: str = "", version: int | None = None) -> None:
        """Publish an event now, or when the broker is back."""
        with self._events_lock:
            self._events.append(PendingEvent(name, detail[:300], version))
        self.flush_events()

    def flush_events(self) -> None:
        """Publish what waits, as far as there is a connection."""
        with self._events_lock:
            while self._events:
                build = partial(_build_event, self._events[0], self._agent_id)
                sent = self._send(Kind.EVENT, build, EVENT_LIFETIME_S)
                if not sent:
                    return
                self._events.popleft()

    def _send(
        self,
        kind: Kind,
        build: Callable[[Envelope], Message],
        lifetime_s: float,
        *,
        retain: bool = False,
    ) -> bool:
        topic = self._topics.of_agent(self._agent_id, kind)
        sent = self._connection.send(topic, build, lifetime_s=lifetime_s, retain=retain)
        return sent is not None

    def _received(self, inbound: Inbound) -> None:
        message = self._inbox.take(inbound)
        if message is not None:
            self._messages.put(message)
            self._wake()

    def _connected(self) -> None:
        self._reconnected.set()
        self._wake()


def _build_event(event: PendingEvent, agent_id: str, envelope: Envelope) -> AgentEvent:
    return AgentEvent(
        envelope=envelope,
        agent_id=agent_id,
        name=event.name,
        detail=event.detail,
        version=event.version,
    )
