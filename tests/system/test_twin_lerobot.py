"""LeRobot's own arm classes, unmodified, on the twin's two serial ports."""

from __future__ import annotations

import builtins
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lerobot.motors import motors_bus
from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig
from lerobot.teleoperators.so_leader import SO101Leader, SO101LeaderConfig
from numpy.typing import NDArray

pytestmark = pytest.mark.system

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")


class Twin:
    """A running twin and the person beside it."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "robot_io.twin.cli", "run", "--dir", str(folder), "--seed", "7"]
        )
        end_s = time.monotonic() + 90
        while not (folder / "twin.json").exists():
            assert self.process.poll() is None and time.monotonic() < end_s, "twin did not start"
            time.sleep(0.05)
        self.info = json.loads((folder / "twin.json").read_text())

    def do(self, op: str, **fields: Any) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(self.info["control"])
            link.sendall(json.dumps({"op": op, **fields}).encode() + b"\n")
            with link.makefile() as lines:
                answer: dict[str, Any] = json.loads(lines.readline())
        assert answer["ok"], answer
        return answer


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twin]:
    running = Twin(tmp_path_factory.mktemp("t") / "twin")
    yield running
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(30) == 0


class Person:
    """Does what LeRobot's prompts ask for: the middle pose at ENTER, then the whole range."""

    def __init__(self, twin: Twin, arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._twin = twin
        self._arm = arm
        self._sweep: threading.Thread | None = None
        self.prompts: list[str] = []
        monkeypatch.setattr(builtins, "input", self.answer)
        monkeypatch.setattr(motors_bus, "enter_pressed", self.has_swept)

    def answer(self, prompt: str = "") -> str:
        self.prompts.append(prompt)
        if "middle of its range" in prompt:
            middle = [sum(limits) / 2 for limits in self._twin.info["joint_range_rad"]]
            self._twin.do("hand", arm=self._arm, joints_rad=middle)
        return ""

    def has_swept(self) -> bool:
        if self._sweep is None:
            self._sweep = threading.Thread(
                target=self._twin.do, args=("sweep",), kwargs={"arm": self._arm}
            )
            self._sweep.start()
        return not self._sweep.is_alive()


def expected_degrees(info: dict[str, Any], angles_rad: list[float]) -> NDArray[np.float64]:
    """What a calibrated arm reads at these angles: degrees from the middle, gripper 0..100."""
    ranges = np.array(info["joint_range_rad"])
    degrees: NDArray[np.float64] = np.degrees(np.array(angles_rad) - ranges.mean(axis=1))
    low, high = ranges[5]
    degrees[5] = 100 * (angles_rad[5] - low) / (high - low)
    return degrees


def reading(values: dict[str, float]) -> NDArray[np.float64]:
    return np.array([values[f"{joint}.pos"] for joint in JOINTS])


def test_lerobots_follower_calibrates_reads_and_moves(
    twin: Twin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    person = Person(twin, "follower", monkeypatch)
    config = SO101FollowerConfig(
        port=twin.info["follower_port"], id="twin", calibration_dir=tmp_path / "calibration"
    )
    robot = SO101Follower(config)
    robot.connect()
    try:
        assert len(person.prompts) == 1, "a fresh arm has to be calibrated"
        before = reading(robot.get_observation())
        truth = expected_degrees(twin.info, twin.do("truth")["joints_rad"]["follower"])
        np.testing.assert_allclose(before, truth, atol=0.5)

        target = np.array([20.0, -20.0, 25.0, 30.0, -35.0, 40.0])
        steps = 40
        for step in range(1, steps + 1):
            goal = before + (target - before) * step / steps
            robot.send_action({f"{joint}.pos": float(goal[i]) for i, joint in enumerate(JOINTS)})
            time.sleep(1 / 30)
        time.sleep(0.5)
        reached = reading(robot.get_observation())
        # Weight bends the arm by some degrees at P = 16, as it does the real one.
        np.testing.assert_allclose(reached, target, atol=4.0)
        truth = expected_degrees(twin.info, twin.do("truth")["joints_rad"]["follower"])
        np.testing.assert_allclose(reached, truth, atol=1.0)
    finally:
        robot.disconnect()
    assert twin.do("truth")["torque"]["follower"] == [False] * 6


def test_lerobots_leader_calibrates_and_follows_the_hand(
    twin: Twin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    person = Person(twin, "leader", monkeypatch)
    config = SO101LeaderConfig(
        port=twin.info["leader_port"], id="twin", calibration_dir=tmp_path / "calibration"
    )
    leader = SO101Leader(config)
    leader.connect()
    try:
        assert len(person.prompts) == 1
        twin.do("rest")
        rest = expected_degrees(twin.info, twin.info["rest_joints_rad"])
        np.testing.assert_allclose(reading(leader.get_action()), rest, atol=0.5)
    finally:
        leader.disconnect()


def test_a_calibrated_arm_connects_again_without_a_question(
    twin: Twin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    person = Person(twin, "follower", monkeypatch)
    config = SO101FollowerConfig(
        port=twin.info["follower_port"], id="twin", calibration_dir=tmp_path / "calibration"
    )
    first = SO101Follower(config)
    first.connect()
    first.disconnect()
    again = SO101Follower(config)
    again.connect()
    again.disconnect()
    assert len(person.prompts) == 1
