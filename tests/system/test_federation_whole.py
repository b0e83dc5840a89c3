"""Two robots without arms through a whole campaign: real broker, SuperLink, SuperNodes, HTTPS.

The trainers are this test: it fills each robot's exchange folder as a trainer would.
"""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from held_out_reports import report

from agent.training.exchange import (
    TrainingExchange,
    TrainingProgress,
)
from policy.statistics import Component, FeatureSketch, Sketch
from protocol.contribution import Contribution

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin")
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
NAMES = tuple(f"{joint}.pos" for joint in JOINTS)
CUBE = ("cube.x_m", "cube.y_m")

CAMPAIGN = """
[campaign]
rounds = 1
min_agents = 2
min_episodes = 2
join_s = 3.0
close_s = 40.0
interval_s = 60.0
gather_s = 5.0
open_when = "ready"
max_local_steps = 100
evaluation_wait_s = 30.0

[policy]
chunk_size = 16
dim_model = 16
n_heads = 2
dim_feedforward = 32
n_encoder_layers = 1
"""


class Site:
    """Processes of one coordinator and its robots, all ended by `close`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.coordinator = folder / "c"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def command(self, *arguments: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "coordinator.cli", *arguments],
            cwd=ROOT, check=True, capture_output=True, text=True, timeout=60,
        ).stdout  # fmt: skip

    def init(self) -> None:
        with ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
            for each in sockets:
                each.bind(("127.0.0.1", 0))
            mqtt, superlink, https = (str(each.getsockname()[1]) for each in sockets)
        self.command(
            "init", "--dir", str(self.coordinator), "--mqtt-port", mqtt,
            "--superlink-port", superlink, "--https-port", https,
        )  # fmt: skip
        path = self.coordinator / "coordinator.toml"
        head = path.read_text().split("[campaign]")[0]
        path.write_text(head + CAMPAIGN)

    def start(self, name: str, command: list[str]) -> None:
        log = (self.folder / f"{name}.log").open("ab")
        self._processes[name] = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )

    def start_server(self) -> None:
        assert MOSQUITTO is not None
        self.start(
            "mosquitto", [MOSQUITTO, "-c", str(self.coordinator / "mosquitto/mosquitto.conf")]
        )
        python = [sys.executable, "-m", "coordinator.cli"]
        self.start("superlink", [*python, "superlink", "--dir", str(self.coordinator)])
        self.start_coordinator()

    def start_coordinator(self) -> None:
        python = [sys.executable, "-m", "coordinator.cli"]
        self.start("coordinator", [*python, "run", "--dir", str(self.coordinator)])

    def kill(self, name: str) -> None:
        process = self._processes.pop(name)
        process.kill()
        process.wait()

    def status(self) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "coordinator.cli", "status", "--dir", str(self.coordinator),
             "--json"],
            cwd=ROOT, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        return json.loads(done.stdout) if done.returncode == 0 else {}

    def wait(
        self, what: str, check: Callable[[dict[str, Any]], bool], timeout_s: float
    ) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        status: dict[str, Any] = {}
        while time.monotonic() < deadline:
            for name, process in self._processes.items():
                assert process.poll() is None, f"{name} died: {self.log(name)}"
            status = self.status()
            if status and check(status):
                return status
            time.sleep(0.3)
        pytest.fail(f"{what} did not come: {json.dumps(status)[:3000]}\n{self.log('coordinator')}")

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()[-3000:]

    def close(self) -> None:
        for process in reversed(self._processes.values()):
            process.send_signal(signal.SIGTERM)
        for process in self._processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Robot:
    """A federation process, and this test in the place of its ingest and trainer."""

    def __init__(self, site: Site, name: str, seed: int) -> None:
        self.name = name
        self.folder = site.folder / name
        self.site = site
        self.random = np.random.default_rng(seed)
        bundle = self.folder / "bundle"
        site.command("enrol", name, "--dir", str(site.coordinator), "--out", str(bundle))
        self.config = self.folder / "agent.toml"
        self.config.write_text(
            f"""
[robot]
port = "/dev/null"
id = "{name}"
[cameras.overhead]
source = "http://127.0.0.1:9/none.mjpg"
width = 128
height = 96
[tracker]
camera = "overhead"
hue_min_deg = 350
hue_max_deg = 10
homography = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
[control]
fps = 30
[trial]
canary_episodes = 0
[federation]
bundle = "bundle"
[paths]
state_dir = "state"
"""
        )
        self.state = self.folder / "state"
        self.exchange = TrainingExchange(self.state / "training")
        self.exchange.folder.mkdir(parents=True)
        self.sequence = 0

    def start(self) -> None:
        self.site.start(
            self.name,
            [sys.executable, "-m", "agent.federation.process", "--config", str(self.config)],
        )

    def record(self, episodes: int) -> None:
        frames = 100 * episodes
        info = self.state / "dataset" / "meta" / "info.json"
        info.parent.mkdir(parents=True)
        info.write_text(json.dumps({"total_episodes": episodes, "total_frames": frames}))
        joints = tuple(Component(name, -180.0, 180.0) for name in NAMES)
        cube = tuple(Component(name, -0.5, 0.5) for name in CUBE)
        self.exchange.publish_sketch(
            Sketch(
                {
                    "observation.state": FeatureSketch.measure(
                        joints, self.random.normal(0, 20, (frames, 6))
                    ),
                    "observation.environment_state": FeatureSketch.measure(
                        cube, self.random.normal(0, 0.1, (frames, 2))
                    ),
                    "action": FeatureSketch.measure(joints, self.random.normal(0, 20, (frames, 6))),
                }
            )
        )

    def train(self, steps: int, error: float) -> None:
        """Judge the installed base, then gain something from it."""
        loaded = self.exchange.base()
        assert loaded is not None
        info, weights = loaded
        self.judge(error)
        delta = {
            name: self.random.normal(0, 0.01, array.shape).astype(array.dtype)
            for name, array in weights.items()
        }
        self.sequence += 1
        self.exchange.publish_contribution(
            delta,
            Contribution(
                base_digest=info.digest,
                base_round=info.round,
                steps=steps,
                examples=180,
                loss=0.5,
                sequence=self.sequence,
            ),
        )
        self.exchange.publish_progress(
            TrainingProgress(
                steps_total=steps,
                base_digest=info.digest,
                base_round=info.round,
                steps_since_base=steps,
                loss=0.5,
                phase="training",
            )
        )

    def judge(self, error: float) -> None:
        info = self.exchange.base_info()
        assert info is not None
        self.exchange.publish_held_out(
            info.digest, report(error, base_round=info.round, episodes=2)
        )

    def base_round(self) -> int | None:
        info = self.exchange.base_info()
        return None if info is None else info.round

    def active(self) -> str | None:
        path = self.state / "policies" / "active.json"
        return json.loads(path.read_text())["active"] if path.exists() else None


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    assert MOSQUITTO is not None, "mosquitto is not installed"
    made = Site(tmp_path)
    made.init()
    try:
        yield made
    finally:
        made.close()


def test_two_robots_get_from_statistics_to_an_active_release(site: Site) -> None:
    robots = [Robot(site, "arm-1", 1), Robot(site, "arm-2", 2)]
    site.start_server()
    for robot in robots:
        robot.record(3)
        robot.start()
    site.wait("base 0", lambda status: status["campaign"]["phase"] == "waiting", 200)
    assert [robot.base_round() for robot in robots] == [0, 0]
    infos = [robot.exchange.base_info() for robot in robots]
    assert infos[0] == infos[1] is not None

    # The coordinator dies between two windows and comes back: the fleet goes on from base 0.
    site.kill("coordinator")
    site.start_coordinator()
    for robot in robots:
        robot.train(steps=60, error=5.0)
    status = site.wait("round 1", lambda status: status["campaign"]["round"] == 1, 90)
    window = next(each for each in status["windows"] if each["outcome"] == "aggregated")
    assert sorted(window["joined"]) == ["arm-1", "arm-2"]
    train = next(each for each in status["rounds"] if each["kind"] == "train")
    assert train["bytes_up"] > 0 and train["bytes_down"] > 0
    assert all(reply["accepted"] and reply["steps"] == 60 for reply in train["replies"])
    assert [robot.base_round() for robot in robots] == [1, 1]

    for robot in robots:
        robot.judge(4.0)
    status = site.wait("release 1", lambda status: status["campaign"]["phase"] == "finished", 120)
    (release,) = status["releases"]
    assert release["evaluation"]["action_mae"] == 4.0
    assert release["evaluation"]["complete"]
    assert release["contributors"] == ["arm-1", "arm-2"]
    status = site.wait(
        "qualification",
        lambda status: all(
            status["agents"][robot.name]["status"]["policy"] == 1 for robot in robots
        ),
        60,
    )
    assert [robot.active() for robot in robots] == ["1", "1"]
    events = {(event["agent_id"], event["name"]) for event in status["events"]}
    assert {("arm-1", "release_active"), ("arm-2", "release_active")} <= events
    assert "unbroken" in site.command("audit", "--dir", str(site.coordinator))
