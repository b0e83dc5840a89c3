"""A real twin, and the smallest host that can speak with it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from robot_io import packet
from robot_io.packet import PacketParser, StatusPacket
from robot_io.sts3215 import REGISTERS, TELEMETRY_ADDRESS, TELEMETRY_SIZE

IDS = (1, 2, 3, 4, 5, 6)


class Host:
    """One open port: frames out, status packets in."""

    def __init__(self, port: str) -> None:
        self.descriptor = os.open(port, os.O_RDWR | os.O_NOCTTY)
        self.parser = PacketParser(StatusPacket)

    def close(self) -> None:
        os.close(self.descriptor)

    def forget(self) -> None:
        """Drop what is in the input buffer."""
        termios.tcflush(self.descriptor, termios.TCIFLUSH)
        self.parser.reset()

    def send(self, frame: bytes) -> None:
        os.write(self.descriptor, frame)

    def hear(self, count: int, timeout_s: float = 2.0) -> list[StatusPacket]:
        """Up to ``count`` packets; fewer when time runs out."""
        packets: list[StatusPacket] = []
        end_s = time.monotonic() + timeout_s
        while len(packets) < count:
            wait_s = end_s - time.monotonic()
            if wait_s <= 0 or not select.select([self.descriptor], [], [], wait_s)[0]:
                break
            packets += self.parser.feed(os.read(self.descriptor, 4096))
        return packets

    def ask(self, frame: bytes, count: int = 1, timeout_s: float = 2.0) -> list[StatusPacket]:
        self.send(frame)
        return self.hear(count, timeout_s)

    def read(self, servo_id: int, name: str) -> int:
        register = REGISTERS[name]
        (status,) = self.ask(packet.encode_read(servo_id, register.address, register.size))
        return register.decode(status.params)

    def write(self, servo_id: int, name: str, value: int) -> StatusPacket:
        register = REGISTERS[name]
        (status,) = self.ask(
            packet.encode_write(servo_id, register.address, register.encode(value))
        )
        return status

    def positions(self) -> list[int]:
        register = REGISTERS["Present_Position"]
        frame = packet.encode_sync_read(register.address, register.size, IDS)
        return [register.decode(status.params) for status in self.ask(frame, 6)]

    def telemetry(self, timeout_s: float = 2.0) -> list[StatusPacket]:
        frame = packet.encode_sync_read(TELEMETRY_ADDRESS, TELEMETRY_SIZE, IDS)
        return self.ask(frame, 6, timeout_s)

    def command(self, goals: list[int]) -> None:
        register = REGISTERS["Goal_Position"]
        data = {i: register.encode(goal) for i, goal in zip(IDS, goals, strict=True)}
        self.send(packet.encode_sync_write(register.address, data))


class TwinRun:
    """A twin as a process of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "robot_io.twin.cli", "run", "--dir", str(folder), *arguments],
            stderr=subprocess.PIPE,
            text=True,
        )
        end_s = time.monotonic() + 90
        while not (folder / "twin.json").exists():
            if self.process.poll() is not None or time.monotonic() > end_s:
                self.process.kill()
                raise RuntimeError(f"the twin did not start: {self.process.communicate()[1]}")
            time.sleep(0.05)
        self.info: dict[str, Any] = json.loads((folder / "twin.json").read_text())

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """One request over a connection of its own."""
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(60)
            link.connect(self.info["control"])
            link.sendall(json.dumps({"op": op, **fields}).encode() + b"\n")
            with link.makefile() as lines:
                answer: dict[str, Any] = json.loads(lines.readline())
        return answer

    def do(self, op: str, **fields: Any) -> dict[str, Any]:
        """As ``ask``; a refusal fails the test."""
        answer = self.ask(op, **fields)
        assert answer["ok"], answer
        return answer

    @contextlib.contextmanager
    def host(self, arm: str) -> Iterator[Host]:
        host = Host(self.info[f"{arm}_port"])
        try:
            yield host
        finally:
            with contextlib.suppress(OSError):
                host.close()

    def end(self, with_signal: int = signal.SIGTERM) -> tuple[int, str]:
        """End it; its exit status and what it said on stderr."""
        if self.process.poll() is None:
            self.process.send_signal(with_signal)
        _, said = self.process.communicate(timeout=30)
        return self.process.returncode, said


def home(twin: TwinRun, host: Host, arm: str) -> None:
    """Homing by hand as LeRobot does it: the middle pose becomes 2047 on every servo."""
    for servo_id in IDS:
        host.write(servo_id, "Torque_Enable", 0)
        host.write(servo_id, "Lock", 0)
        host.write(servo_id, "Return_Delay_Time", 0)
        host.write(servo_id, "Homing_Offset", 0)
    middle = [(low + high) / 2 for low, high in twin.info["joint_range_rad"]]
    twin.do("hand", arm=arm, joints_rad=middle)
    for servo_id, position in zip(IDS, host.positions(), strict=True):
        host.write(servo_id, "Homing_Offset", position - 2047)
    twin.do("rest", arm=arm)
    twin.do("hand", arm=arm, joints_rad=None)


def energise(host: Host) -> None:
    """LeRobot's settings for the follower, goal = present, torque on."""
    for servo_id in IDS:
        host.write(servo_id, "P_Coefficient", 16)
        host.write(servo_id, "Acceleration", 254)
    for name, value in {
        "Max_Torque_Limit": 500,
        "Protection_Current": 250,
        "Overload_Torque": 25,
    }.items():
        host.write(6, name, value)
    host.command(host.positions())
    for servo_id in IDS:
        host.write(servo_id, "Torque_Enable", 1)


class Teleoperation:
    """Copies leader to follower at 30 Hz over the two ports, as the simplest agent would."""

    def __init__(self, twin: TwinRun) -> None:
        self._twin = twin
        self._stop = threading.Event()
        self.errors: set[tuple[int, int]] = set()
        self.goals: list[list[int]] = []  # what the leader read, a row a tick
        self.ticks = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Teleoperation:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with self._twin.host("leader") as leader, self._twin.host("follower") as follower:
            energise(follower)
            due_s = time.monotonic()
            while not self._stop.is_set():
                goals = leader.positions()
                for status in follower.telemetry():
                    if status.error:
                        self.errors.add((status.servo_id, status.error))
                if len(goals) == len(IDS):
                    follower.command(goals)
                    self.goals.append(goals)
                due_s += 1 / 30
                time.sleep(max(0.0, due_s - time.monotonic()))
            for servo_id in IDS:
                follower.write(servo_id, "Torque_Enable", 0)


@pytest.fixture
def start_twin(tmp_path: Path) -> Iterator[Callable[..., TwinRun]]:
    """Starts twins in folders of their own (or in ``folder``) and ends them after the test."""
    running: list[TwinRun] = []

    def start(*arguments: str, folder: str = "twin") -> TwinRun:
        twin = TwinRun(tmp_path / folder, *arguments)
        running.append(twin)
        return twin

    yield start
    for twin in running:
        twin.end()


@pytest.fixture(scope="session", name="twin_run")
def _twin_run() -> type[TwinRun]:
    return TwinRun


@pytest.fixture(scope="session", name="teleoperation")
def _teleoperation() -> type[Teleoperation]:
    return Teleoperation


@pytest.fixture(scope="session", name="home")
def _home() -> Callable[[TwinRun, Host, str], None]:
    return home
