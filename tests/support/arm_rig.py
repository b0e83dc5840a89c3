"""A whole arm controller on two fake arms: real bytes, a clock in the test's hand, no thread."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fake_servos import IDS, FakeServos

from agent.config import AgentConfig
from agent.control.arm_controller import ArmController
from agent.control.arms import ArmName, Arms
from agent.control.cameras import Cameras
from agent.control.loop import Tick
from agent.control.observation import Observation, SourceAction, Vector
from robot_io.bus import ServoBus
from robot_io.calibration import JOINTS, Calibration, JointCalibration
from robot_io.sts3215 import REGISTERS

PERIOD_S = 0.1
REPLY_TIMEOUT_S = 0.2  # a fake servo is a thread on a machine that may be busy
LOW, HIGH = 1000, 3000
GOAL = REGISTERS["Goal_Position"].address
ENERGISED = [True] * 6
RELEASED = [False] * 6


class Clock:
    """Monotonic seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Script:
    """A source that wants what the test says; `goal` None holds."""

    def __init__(self, goal: Vector | None = None) -> None:
        self.goal = goal
        self.fault: str | None = None
        self.begun = self.ended = self.asked = 0

    def begin(self, observation: Observation, now_s: float) -> None:
        self.begun += 1

    def action(self, observation: Observation, now_s: float) -> SourceAction:
        self.asked += 1
        return SourceAction(self.goal, self.fault)

    def end(self) -> None:
        self.ended += 1


def calibrated(servos: FakeServos, path: Path) -> Calibration:
    """Put one calibration into the servos and into `path`."""
    calibration = Calibration(
        {name: JointCalibration(i + 1, 0, 0, LOW, HIGH) for i, name in enumerate(JOINTS)}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    calibration.save(path)
    for servo_id in IDS:
        servos.set(servo_id, "Min_Position_Limit", LOW)
        servos.set(servo_id, "Max_Position_Limit", HIGH)
    return calibration


class PatientArms(Arms):
    """The arms, with servos that may take their time."""

    def bus(self, arm: ArmName) -> ServoBus:
        port = super().bus(arm).port
        return ServoBus(port, reply_timeout_s=REPLY_TIMEOUT_S, retries=0)


class ArmRig:
    """`step` is one pass of the controller's loop, one period later."""

    def __init__(
        self, folder: Path, *, leader: bool = True, table: dict[str, Any] | None = None
    ) -> None:
        self.clock = Clock()
        self.follower = FakeServos()
        self.leader = FakeServos() if leader else None
        table = {
            "robot": {"port": self.follower.port},
            "control": {"fps": 1.0 / PERIOD_S, "realtime_priority": 0, "max_missed_reads": 2},
            "paths": {"state_dir": str(folder)},
        } | (table or {})
        if self.leader is not None:
            table["teleop"] = {"port": self.leader.port}
        self.config = AgentConfig.model_validate(table)
        self.calibration = calibrated(self.follower, self.config.follower_calibration)
        if self.leader is not None and self.config.leader_calibration is not None:
            calibrated(self.leader, self.config.leader_calibration)
        self.events: list[tuple[str, str | None]] = []
        self.ticks: list[Tick] = []
        self.crash_in_subscriber: Exception | None = None
        self.controller = self.make()

    def make(self, clock: Callable[[], float] | None = None) -> ArmController:
        """A controller, as a new process has it; its first look for the arms is its first step."""
        return ArmController(
            self.config,
            PatientArms(self.config, time.monotonic),
            Cameras(self.config),
            {"test": self._subscribe},
            self.on_event,
            clock or self.clock,
        )

    def on_event(self, name: str, reason: str | None) -> None:
        self.events.append((name, reason))

    def _subscribe(self, tick: Tick) -> None:
        if self.crash_in_subscriber is not None:
            raise self.crash_in_subscriber
        self.ticks.append(tick)

    def step(self, count: int = 1, *, dt_s: float = PERIOD_S) -> None:
        for _ in range(count):
            self.clock.now_s += dt_s
            self.controller.step()

    def obey(self) -> None:
        """From here on an energised joint is at once where its goal is."""

        def move(servo_id: int, address: int, data: bytes) -> None:
            if address == GOAL and self.follower.get(servo_id, "Torque_Enable"):
                goal = self.follower.get(servo_id, "Goal_Position")
                self.follower.set(servo_id, "Present_Position", goal)

        self.follower.on_write = move

    @property
    def torque(self) -> list[bool]:
        return [bool(self.follower.get(servo_id, "Torque_Enable")) for servo_id in IDS]

    @property
    def goals(self) -> list[int]:
        return [self.follower.get(servo_id, "Goal_Position") for servo_id in IDS]

    @property
    def positions(self) -> list[int]:
        return [self.follower.get(servo_id, "Present_Position") for servo_id in IDS]

    def here(self) -> Vector:
        """Where the follower is, in joint units."""
        return np.asarray(self.calibration.to_units(np.array(self.positions)))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.controller.arms.close()
        self.follower.unplug()
        if self.leader is not None:
            self.leader.unplug()
