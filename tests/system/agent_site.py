"""A robot host for system tests: a twin, an agent, and the person beside them."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.client import AgentClient
from agent.errors import AgentClientError, RequestFailed

HERE = Path(__file__).parent
CONFIG = """\
[robot]
port = "{twin[follower_port]}"
id = "arm"
park_pose = {park_pose}

[teleop]
port = "{twin[leader_port]}"
id = "arm-leader"

[cameras.overhead]
source = "{camera[url]}"
width = {camera[width]}
height = {camera[height]}
fps = {camera[fps]}

[tracker]
camera = "overhead"
hue_min_deg = 340
hue_max_deg = 20
homography = {camera[table_homography]}

[recording]
min_free_mb = 1

[training]
enabled = {training}

[paths]
state_dir = "state"
"""


def wait_for[T](what: str, probe: Callable[[], T | None], timeout_s: float = 30.0) -> T:
    """The first result of `probe` that is neither None nor False."""
    until_s = time.monotonic() + timeout_s
    while time.monotonic() < until_s:
        result = probe()
        if result is not None and result is not False:
            return result
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come within {timeout_s:.0f} s")


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, then SIGKILL."""
    process.terminate()
    try:
        process.wait(25.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Person:
    """The hands and eyes beside the twin."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(60.0)
        self._socket.connect(address)
        self._file = self._socket.makefile("rwb")

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """One request; fails the test when it is refused."""
        self._file.write(json.dumps({"op": op, **fields}).encode() + b"\n")
        self._file.flush()
        reply: dict[str, Any] = json.loads(self._file.readline())
        assert reply.pop("ok"), reply
        return reply

    def close(self) -> None:
        """Hang up."""
        self._file.close()
        self._socket.close()


class Site:
    """One twin and one agent in `folder`."""

    def __init__(self, folder: Path, seed: int = 3) -> None:
        self.folder = folder
        self.config_path = folder / "agent.toml"
        self.state_dir = folder / "state"
        self._seed = seed
        self._processes: list[subprocess.Popen[bytes]] = []
        self.twin: dict[str, Any] = {}
        self.agent: subprocess.Popen[bytes] | None = None

    def start_twin(self) -> Person:
        """Start the twin, wait until it is up."""
        command = [sys.executable, "-m", "robot_io.twin.cli", "run"]
        folder = self.folder / "twin"
        self._start("twin", [*command, "--dir", str(folder), "--seed", str(self._seed)])
        path = folder / "twin.json"
        wait_for("the twin", lambda: path.exists() or None, 60.0)
        self.twin = json.loads(path.read_text())
        return Person(self.twin["control"])

    def write_config(self, *, training: bool = False, extra: str = "") -> None:
        """The configuration of this twin's robot."""
        middle = [(low + high) / 2 for low, high in self.twin["joint_range_rad"]]
        rest = self.twin["rest_joints_rad"]
        low, high = self.twin["joint_range_rad"][-1]
        pose = [round(math.degrees(a - b), 2) for a, b in zip(rest, middle, strict=True)][:5]
        text = CONFIG.format(
            twin=self.twin,
            camera=self.twin["cameras"]["overhead"],
            park_pose=[*pose, round(100 * (rest[-1] - low) / (high - low), 2)],
            training=str(training).lower(),
        )
        self.config_path.write_text(text + extra)

    def start_agent(self, rows: str = "control", trainer: str | None = None) -> AgentClient:
        """Start the agent with these rows; wait until its API answers."""
        command = [sys.executable, str(HERE / "agent_host.py"), str(self.config_path), rows]
        environment = os.environ | {"PYTHONPATH": f"{HERE}:{HERE.parents[1]}"}
        self.agent = self._start("agent", command + ([trainer] if trainer else []), environment)
        client = AgentClient(self.state_dir / "run" / "agent.sock")

        def answers() -> bool | None:
            try:
                return bool(client.status()["control"]) or None
            except AgentClientError:
                return None

        wait_for("the agent", answers, 60.0)
        return client

    def calibrate(self, person: Person, client: AgentClient) -> None:
        """Both arms, as a person does; then both lie in the rest pose."""
        middle = [(low + high) / 2 for low, high in self.twin["joint_range_rad"]]
        person.ask("place", object="cube", x_m=0.30, y_m=0.0, yaw_rad=0.0)
        for arm in ("follower", "leader"):
            person.ask("hand", arm=arm, joints_rad=middle)
            client.calibrate(arm, "homing")
            client.calibrate(arm, "range_start")
            person.ask("sweep", arm=arm)
            client.calibrate(arm, "range_finish")
            person.ask("rest", arm=arm)
        person.ask("hand", arm="follower", joints_rad=None)
        wait_for("readiness", lambda: client.status()["ready"] or None)

    def stop_agent(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = 25.0) -> int:
        """End the agent; its exit code."""
        assert self.agent is not None
        self.agent.send_signal(number)
        return self.agent.wait(timeout_s)

    def end_agent(self) -> None:
        """End an agent that is still there, whatever it takes."""
        if self.agent is not None and self.agent.poll() is None:
            end(self.agent)

    def log(self, name: str) -> str:
        """What a process has said, for a failed test."""
        path = self.state_dir / "log" / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def keep_calibration(self, folder: Path) -> None:
        """Copy what the arms' EEPROM and the agent's files hold of the calibration."""
        shutil.copytree(self.state_dir / "calibration", folder / "calibration")
        (folder / "twin").mkdir()
        for path in (self.folder / "twin").glob("*.json"):
            if path.name != "twin.json":
                shutil.copy(path, folder / "twin" / path.name)

    def use_calibration(self, folder: Path) -> None:
        """Begin with arms that were calibrated before."""
        shutil.copytree(folder / "calibration", self.state_dir / "calibration")
        shutil.copytree(folder / "twin", self.folder / "twin")

    def close(self) -> None:
        """End all that was started, the agent first."""
        for process in reversed(self._processes):
            if process.poll() is None:
                end(process)

    def _start(
        self, name: str, command: list[str], environment: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.out").open("ab") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        self._processes.append(process)
        return process


Robot = tuple[Site, Person, AgentClient]
TASK = "Pick up the red cube"
REST_TOLERANCE_RAD = 0.15
_calibrated: list[Path] = []  # once a run: calibrating takes half a minute


def calibrated_site(folder: Path) -> tuple[Site, Person]:
    """A twin whose arms an agent has calibrated, in this run or just now; no agent runs."""
    site = Site(folder)
    try:
        if _calibrated:
            site.use_calibration(_calibrated[0])
            person = site.start_twin()
            site.write_config()
            return site, person
        person = site.start_twin()
        site.write_config()
        with site.start_agent() as client:
            site.calibrate(person, client)
        assert site.stop_agent() == 0
        kept = folder / "kept"
        kept.mkdir()
        site.keep_calibration(kept)
        _calibrated.append(kept)
    except BaseException:
        site.close()
        raise
    return site, person


def settle(site: Site, person: Person) -> None:
    """No faults, the leader at rest, the cube on the table."""
    person.ask("clear_faults")
    for arm in ("follower", "leader"):
        person.ask("fault", arm=arm, kind="replug")
    person.ask("rest")
    person.ask("place", object="cube", x_m=0.2, y_m=0.04, yaw_rad=0.0)


def prepare(site: Site, person: Person) -> None:
    """No agent, all as `settle` has it, the state folder empty but for the calibration."""
    site.end_agent()
    settle(site, person)
    for name in ("journal", "log", "run"):
        shutil.rmtree(site.state_dir / name, ignore_errors=True)
    site.write_config()


def ready_robot(site: Site, person: Person) -> AgentClient:
    """A robot that is idle and ready; the last test's agent if it can be brought to that."""
    if site.agent is not None and site.agent.poll() is None:
        settle(site, person)
        client = AgentClient(site.state_dir / "run" / "agent.sock")
        try:
            if client.status()["state"] in ("teleop", "rollout"):
                client.park()
            wait_for("the reset", lambda: try_reset(client), 10.0)
            wait_for("no faults", lambda: client.status()["faults"] == [], 10.0)
            wait_ready(client)
        except (AgentClientError, AssertionError):
            client.close()
        else:
            return client
    prepare(site, person)
    client = site.start_agent()
    wait_ready(client)
    return client


def seen(client: AgentClient) -> bool:
    """True once the tracker has a place for the cube."""
    return client.status()["control"]["environment"].get("cube.x_m") is not None


def wait_ready(client: AgentClient) -> None:
    """Arms connected, cube in sight."""
    wait_for("readiness", lambda: client.status()["ready"])
    wait_for("sight of the cube", lambda: seen(client))


def try_reset(client: AgentClient) -> bool:
    """True when the agent left its fault."""
    try:
        client.reset()
    except RequestFailed:
        return False
    return True


def torque(person: Person) -> list[bool]:
    """Of the follower's six servos, as the servos see it."""
    return list(person.ask("truth")["torque"]["follower"])


def follower_rad(person: Person) -> NDArray[np.float64]:
    """The follower's joints, radians [6]."""
    return np.array(person.ask("truth")["joints_rad"]["follower"])


def at_rest(site: Site, person: Person) -> bool:
    """True when the follower lies in its park pose."""
    off = np.abs(follower_rad(person) - site.twin["rest_joints_rad"])
    return bool(off.max() < REST_TOLERANCE_RAD)


def lead_away(person: Person) -> None:
    """The person takes the leader out of the rest pose; a follower in teleoperation follows."""
    person.ask("hand", arm="leader", joints_rad=[0.3, -1.2, 1.0, 1.2, 0.2, 0.6])


def record_one(client: AgentClient, seconds: float = 0.6) -> dict[str, Any]:
    """A short episode; teleoperation stays on."""
    client.record_start(TASK)
    time.sleep(seconds)
    return client.record_finish()
