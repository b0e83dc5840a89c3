"""A real mosquitto with the files that `init` writes: what each certificate may do, and not do.

Also what a robot is told when the broker is away, or is not the one that it was enrolled with.
"""

from __future__ import annotations

import datetime
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from coordinator.config import CoordinatorConfig, Ports
from coordinator.identity.enrolment import Authority, create_identities, enrol
from coordinator.identity.layout import Layout
from coordinator.identity.mosquitto import write_broker_files
from protocol.bundle import Endpoint
from protocol.connection import Connection, Inbound, TlsFiles, Will
from protocol.messages import AgentEvent, Envelope
from protocol.topics import COORDINATOR_IDENTITY, Topics

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin")
TOPICS = Topics("armada")


def wall() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(check: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if check():
            return True
        time.sleep(0.02)
    return False


class Site:
    """An authority, a broker and the certificates of arm-1 and arm-2."""

    def __init__(self, folder: Path, port: int) -> None:
        self.layout = Layout(folder)
        self.port = port
        self.config = CoordinatorConfig(ports=Ports(mqtt=port))
        authority = Authority.create("armada", wall)
        folder.mkdir(parents=True)
        create_identities(self.layout, self.config, authority)
        self.file = write_broker_files(self.layout, self.config)
        for name in ("arm-1", "arm-2"):
            enrol(self.layout, self.config, name, folder / name, authority, time.time())
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert MOSQUITTO is not None
        self.process = subprocess.Popen(
            [MOSQUITTO, "-c", str(self.file)], stderr=subprocess.DEVNULL
        )
        assert until(self._listens), "mosquitto does not listen"

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def tls(self, name: str) -> TlsFiles:
        layout = self.layout
        if name == COORDINATOR_IDENTITY:
            return TlsFiles(layout.ca_certificate, layout.identity_certificate, layout.identity_key)
        folder = layout.root / name
        return TlsFiles(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")


@dataclass
class Peer:
    """A client with one certificate that notes all that it hears."""

    site: Site
    name: str
    subscriptions: list[str]
    claims: str | None = None
    tls: TlsFiles | None = None
    will: Will | None = None
    heard: list[Inbound] = field(default_factory=list)
    connects: int = 0

    def __post_init__(self) -> None:
        self.connection = Connection(
            Endpoint(host="127.0.0.1", port=self.site.port),
            self.tls or self.site.tls(self.name),
            self.claims or self.name,
            self.subscriptions,
            self.heard.append,
            self._connected,
            will=self.will,
        )
        self.connection.start()

    def _connected(self) -> None:
        self.connects += 1

    def up(self) -> Peer:
        assert until(lambda: self.connection.connected), self.connection.error
        return self

    def say(self, topic: str, text: str, *, retain: bool = False) -> None:
        sent = self.connection.send(
            topic, lambda envelope: event(envelope, self.name, text), lifetime_s=60, retain=retain
        )
        assert sent is not None

    def texts(self) -> list[str]:
        return [AgentEvent.model_validate_json(each.payload).detail for each in self.heard]


def event(envelope: Envelope, agent_id: str, text: str) -> AgentEvent:
    return AgentEvent(envelope=envelope, agent_id=agent_id, name="test", detail=text)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "c", free_port())
    made.start()
    yield made
    made.stop()


@pytest.fixture
def peers() -> Iterator[list[Peer]]:
    made: list[Peer] = []
    yield made
    for peer in made:
        peer.connection.stop()


def test_a_robot_writes_its_own_topics_and_no_others(site: Site, peers: list[Peer]) -> None:
    coordinator = Peer(
        site, COORDINATOR_IDENTITY, [TOPICS.base + "/agents/+/" + kind for kind in
                                     ("status", "answer", "event")] + [TOPICS.window()],
    ).up()  # fmt: skip
    robot = Peer(site, "arm-1", []).up()
    peers += [coordinator, robot]
    for topic in (
        TOPICS.status("arm-2"), TOPICS.answer("arm-2"), TOPICS.event("arm-2"),
        TOPICS.command("arm-1"), TOPICS.command("arm-2"), TOPICS.window(), TOPICS.release(),
        "armada/v1/other/agents/arm-1/status",
    ):  # fmt: skip
        robot.say(topic, "forged", retain=True)
    for topic in (TOPICS.status("arm-1"), TOPICS.answer("arm-1"), TOPICS.event("arm-1")):
        robot.say(topic, "own")
    assert until(lambda: len(coordinator.heard) == 3)
    assert coordinator.texts() == ["own"] * 3
    assert until(lambda: robot.connection.refused_publishes == 8)


def test_a_robot_reads_window_release_and_its_own_commands_alone(
    site: Site, peers: list[Peer]
) -> None:
    curious = Peer(site, "arm-1", ["#", "armada/v1/armada/agents/+/status"]).up()
    other = Peer(site, "arm-2", []).up()
    coordinator = Peer(site, COORDINATOR_IDENTITY, []).up()
    peers += [curious, other, coordinator]
    for topic in (TOPICS.status("arm-2"), TOPICS.answer("arm-2"), TOPICS.event("arm-2")):
        other.say(topic, "private", retain=True)
    coordinator.say(TOPICS.command("arm-2"), "not yours")
    coordinator.say(TOPICS.command("arm-1"), "command")
    coordinator.say(TOPICS.window(), "window")
    coordinator.say(TOPICS.release(), "release")
    assert until(lambda: {"command", "window", "release"} <= set(curious.texts()))
    time.sleep(0.3)
    assert set(curious.texts()) == {"command", "window", "release"}
    late = Peer(site, "arm-1", []).up()
    peers.append(late)


def test_a_certificate_cannot_take_over_another_robots_session(
    site: Site, peers: list[Peer]
) -> None:
    victim = Peer(site, "arm-1", [TOPICS.command("arm-1")]).up()
    thief = Peer(
        site, "arm-2", [TOPICS.command("arm-1")], claims="arm-1", tls=site.tls("arm-2")
    ).up()
    coordinator = Peer(site, COORDINATOR_IDENTITY, []).up()
    peers += [victim, thief, coordinator]
    coordinator.say(TOPICS.command("arm-1"), "for arm-1")
    assert until(lambda: victim.texts() == ["for arm-1"])
    time.sleep(0.3)
    assert victim.connects == 1 and not thief.heard


def test_a_will_speaks_for_a_robot_that_vanished(site: Site, peers: list[Peer]) -> None:
    coordinator = Peer(site, COORDINATOR_IDENTITY, [TOPICS.status("arm-1")]).up()
    robot = Peer(
        site, "arm-1", [],
        will=Will(TOPICS.status("arm-1"), lambda envelope: event(envelope, "arm-1", "gone")),
    ).up()  # fmt: skip
    peers.append(coordinator)
    robot.connection.stop()
    assert until(lambda: coordinator.texts() == ["gone"])


def test_a_robot_comes_back_by_itself_after_the_broker_was_away(
    site: Site, peers: list[Peer]
) -> None:
    robot = Peer(site, "arm-1", [TOPICS.window()]).up()
    peers.append(robot)
    site.stop()
    assert until(lambda: "no broker at" in (robot.connection.error or ""))
    assert (
        robot.connection.send(
            TOPICS.event("arm-1"), lambda envelope: event(envelope, "arm-1", "x"), lifetime_s=1
        )
        is None
    )
    site.start()
    assert until(lambda: robot.connects == 2)
    assert robot.connection.error is None


def test_another_fleets_broker_is_one_clear_line_said_once(
    site: Site, peers: list[Peer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = Site(tmp_path / "other", site.port)
    with caplog.at_level("WARNING"):
        robot = Peer(site, "arm-1", [], tls=stranger.tls("arm-1"))
        peers.append(robot)
        assert until(lambda: robot.connection.error is not None)
        time.sleep(2.5)
    assert robot.connection.error is not None
    assert "does not vouch for" in robot.connection.error
    assert "enrol this robot with that coordinator" in robot.connection.error
    lines = [each for each in caplog.records if each.name == "protocol.connection"]
    assert len(lines) == 1, "retries repeat nothing"


def test_a_certificate_that_the_broker_does_not_know_is_one_clear_line(
    site: Site, peers: list[Peer], tmp_path: Path
) -> None:
    stranger = Site(tmp_path / "other", site.port)
    mixed = TlsFiles(site.layout.ca_certificate, stranger.tls("arm-1").certificate,
                     stranger.tls("arm-1").key)  # fmt: skip
    robot = Peer(site, "arm-1", [], tls=mixed)
    peers.append(robot)
    assert until(lambda: robot.connection.error is not None)
    assert "refused the certificate" in (robot.connection.error or "")
    assert not robot.connection.connected


def test_the_servers_own_certificate_is_no_client(site: Site, peers: list[Peer]) -> None:
    layout = site.layout
    server = TlsFiles(layout.ca_certificate, layout.server_certificate, layout.server_key)
    peer = Peer(site, "arm-1", [], tls=server)
    peers.append(peer)
    assert until(lambda: peer.connection.error is not None)
    assert not peer.connection.connected
