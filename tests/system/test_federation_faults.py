"""The federation process alone, with everything outside wrong: it says so once, and lives on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent.child.link import LINK_FD, ParentLink
from coordinator.cli import main as coordinator

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

ROOT = Path(__file__).resolve().parents[2]
MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin")
# A hundredth of a core would be 0.08 s; the bound leaves room for a busy machine's caches.
OBSERVED_S = 8.0
MOST_CPU_S = 0.8


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


class Process:
    """A federation process under a supervisor's link held by the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.status: dict[str, Any] = {}
        self.events: list[dict[str, Any]] = []
        self.beats = 0
        config = folder / "agent.toml"
        config.write_text(
            f'[robot]\nport = "/dev/null"\n[federation]\nbundle = "{folder / "bundle"}"\n'
            '[paths]\nstate_dir = "state"\n'
        )
        (folder / "state").mkdir()
        self.link = ParentLink()
        self.log = folder / "federation.log"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "agent.federation.process", "--config", str(config)],
                cwd=ROOT,
                env=os.environ | {LINK_FD: str(self.link.child_fd())},
                pass_fds=(self.link.child_fd(),),
                stderr=output,
            )
        self.link.close_child_end()

    def listen(self) -> None:
        for message in self.link.receive_all():
            match message.pop("kind"):
                case "status":
                    self.status = message
                case "event":
                    self.events.append(message)
                case "heartbeat":
                    self.beats += 1

    def until(self, check: Callable[[], bool], timeout_s: float = 60.0) -> bool:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self.listen()
            if check():
                return True
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)
        return False

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.link.close()


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "c"
    ports = [
        "--mqtt-port",
        free_port(),
        "--superlink-port",
        free_port(),
        "--https-port",
        free_port(),
    ]
    assert coordinator(["init", "--dir", str(folder), *ports]) == 0
    out = str(tmp_path / "bundle")
    assert coordinator(["enrol", "arm-1", "--dir", str(folder), "--out", out]) == 0
    return folder


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Process]]:
    made: list[Process] = []

    def begin() -> Process:
        made.append(Process(tmp_path))
        return made[-1]

    yield begin
    for process in made:
        process.close()


def test_without_a_broker_it_says_so_once_costs_nothing_and_holds_no_torch(
    site: Path, start: Callable[[], Process]
) -> None:
    process = start()
    assert process.until(lambda: "no broker at" in (process.status.get("error") or ""))
    assert "is mosquitto running there?" in process.status["error"]
    assert process.status["connected"] is False
    watched = psutil.Process(process.process.pid)
    before, beats = watched.cpu_times(), process.beats
    time.sleep(OBSERVED_S)
    after = watched.cpu_times()
    process.listen()
    assert process.beats > beats, "the supervisor still hears its heart"
    assert after.user + after.system - before.user - before.system < MOST_CPU_S
    assert not any("libtorch" in each.path for each in watched.memory_maps())
    lines = process.log.read_text().splitlines()
    assert sum("no broker at" in line for line in lines) == 1


def test_a_broker_of_another_authority_is_named_and_what_to_do(
    site: Path, start: Callable[[], Process], tmp_path: Path
) -> None:
    assert MOSQUITTO is not None
    other = tmp_path / "other"
    port = json.loads((tmp_path / "bundle/bundle.json").read_text())["mqtt"]["port"]
    assert coordinator(["init", "--dir", str(other), "--mqtt-port", str(port)]) == 0
    broker = subprocess.Popen(
        [MOSQUITTO, "-c", str(other / "mosquitto/mosquitto.conf")], stderr=subprocess.DEVNULL
    )
    try:
        process = start()
        assert process.until(lambda: "does not vouch for" in (process.status.get("error") or ""))
        assert "enrol this robot with that coordinator" in process.status["error"]
        assert "\n" not in process.status["error"]
    finally:
        broker.kill()
        broker.wait()


def test_without_a_bundle_it_waits_and_joins_when_the_bundle_comes(
    site: Path, start: Callable[[], Process], tmp_path: Path
) -> None:
    (tmp_path / "bundle").rename(tmp_path / "elsewhere")
    process = start()
    assert process.until(lambda: "lacks ca.pem" in (process.status.get("error") or ""))
    (tmp_path / "elsewhere").rename(tmp_path / "bundle")
    assert process.until(lambda: process.status.get("agent_id") == "arm-1")


def test_it_ends_when_its_supervisor_is_gone(site: Path, start: Callable[[], Process]) -> None:
    process = start()
    assert process.until(lambda: bool(process.status))
    process.link.close()
    assert process.process.wait(20) == 0
