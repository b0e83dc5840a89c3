"""One robot of the local fleet: a twin, an agent, and the person who works with them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.client import AgentClient
from agent.policies.store import PolicyStore
from agent.rollout_operator import RolloutOperator
from deploy.local_fleet.errors import Interrupted, LocalFleetError
from deploy.local_fleet.plan import TASK, Placement, RobotPlan, Trial
from deploy.local_fleet.processes import ARMADA, Process, ProcessGroup
from deploy.local_fleet.report import TrialResult
from deploy.local_fleet.status_reader import Seen, seen_in
from deploy.local_fleet.twin_control import TwinControl

CONTROL_HZ = 30
LIFTED_M = 0.05
POLL_S = 0.1
ATTEMPTS = 2  # a demonstration that drops the cube is thrown away and done again
# With the cube this far out of the arm's way, a park or a calibration cannot touch it.
AWAY_M = (0.30, 0.0)

AGENT_CONFIG = """\
[robot]
type = "so101_follower"
port = "{twin[follower_port]}"
id = "{robot_id}"
park_pose = {park_pose}

[teleop]
type = "so101_leader"
port = "{twin[leader_port]}"
id = "{robot_id}-leader"

[cameras.overhead]
source = "{camera[url]}"
width = {camera[width]}
height = {camera[height]}
fps = {camera[fps]}

[control]
fps = {fps}

[training]
threads = 1
baseline_steps = {baseline_steps}

# The policies are compared on the same placements: all of them with the same limits.
[trial]
canary_episodes = 0

[federation]
bundle = "{bundle}"
local_work = "anytime"

[paths]
state_dir = "{state_dir}"
"""


TRACKER_CONFIG = """
[tracker]
camera = "overhead"
object = "cube"
hue_min_deg = 340.0
hue_max_deg = 20.0
homography = {homography}
"""


@dataclass
class RobotSite:
    """A robot host: its folder, its twin, its agent."""

    plan: RobotPlan
    folder: Path
    group: ProcessGroup
    stopping: Callable[[], bool]
    baseline_steps: int
    camera_px: tuple[int, int]  # width, height of the overhead camera
    tracker: bool  # whether the cube's place is found in its pictures, for the policy
    agent_process: Process | None = None
    trials: list[TrialResult] = field(default_factory=list)
    recorded: int = 0
    recording: dict[str, Any] = field(default_factory=dict)
    step: str = "starting"
    notes: list[tuple[float, str]] = field(default_factory=list)  # (unix_s, step) of each change
    seen: Seen = field(default_factory=Seen)
    _watcher: AgentClient | None = None
    _twin: dict[str, Any] = field(default_factory=dict)

    @property
    def robot_id(self) -> str:
        """The robot's name in the fleet."""
        return self.plan.robot_id

    @property
    def bundle(self) -> Path:
        """Where the coordinator's enrolment for this robot lies."""
        return self.folder / "bundle"

    @property
    def config_path(self) -> Path:
        """The agent's configuration file."""
        return self.folder / "agent.toml"

    @property
    def state_dir(self) -> Path:
        """The agent's state folder."""
        return self.folder / "state"

    def begin(self, step: str) -> None:
        """Say what it does from now on."""
        if step != self.step:
            self.step = step
            self.notes.append((time.time(), step))

    def start_twin(self) -> None:
        """Start the twin; `twin_ready` tells when it is up."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.group.start(
            f"{self.robot_id}-twin",
            [*ARMADA, "twin", "run", "--dir", str(self.folder / "twin"), "--seed",
             str(self.plan.seed), "--bus-timing", "--camera",
             "overhead:{}x{}@30".format(*self.camera_px)],
        )  # fmt: skip

    def twin_ready(self) -> dict[str, Any] | None:
        """What the twin says of its ports and cameras, once it is up."""
        path = self.folder / "twin" / "twin.json"
        if not path.exists():
            return None
        self._twin = json.loads(path.read_text())
        return self._twin

    def start_agent(self) -> None:
        """Write the agent's configuration and start its daemon."""
        twin = self._twin
        camera = twin["cameras"]["overhead"]
        text = AGENT_CONFIG.format(
            twin=twin,
            camera=camera,
            robot_id=self.robot_id,
            park_pose=park_pose(twin["rest_joints_rad"], twin["joint_range_rad"]),
            fps=CONTROL_HZ,
            baseline_steps=self.baseline_steps,
            bundle=self.bundle,
            state_dir=self.state_dir,
        )
        if self.tracker:
            text += TRACKER_CONFIG.format(homography=camera["table_homography"])
        self.config_path.write_text(text)
        self.agent_process = self.group.start(
            f"{self.robot_id}-agent", [*ARMADA, "agent", "run", "--config", str(self.config_path)]
        )

    def policy_folders(self) -> dict[str, Path]:
        """Name -> folder of the policies that this robot tries."""
        store = PolicyStore(self.state_dir / "policies")
        return {policy: store.resolve(policy) for policy in ("local", "active")}

    def client(self) -> AgentClient:
        """A connection to the agent's Unix socket."""
        return AgentClient(self.state_dir / "run" / "agent.sock")

    def hand(self) -> TwinControl:
        """A connection to the twin's control socket."""
        return TwinControl(Path(self._twin["control"]))

    def calibrate(self) -> None:
        """Calibrate both arms as a person does: middle of the range, then every joint's ends."""
        with self.hand() as hand, self.client() as client:
            self._calibrate(hand, client)

    def _calibrate(self, hand: TwinControl, client: AgentClient) -> None:
        hand.ask("place", object="cube", x_m=AWAY_M[0], y_m=AWAY_M[1], yaw_rad=0.0)
        for arm in ("follower", "leader"):
            self._stop_if_asked()
            self.begin(f"calibrating the {arm}")
            hand.ask("hand", arm=arm, joints_rad=middle(self._twin["joint_range_rad"]))
            self._settle(hand, arm, middle(self._twin["joint_range_rad"]))
            client.calibrate(arm, "homing")
            client.calibrate(arm, "range_start")
            hand.ask("sweep", arm=arm)
            client.calibrate(arm, "range_finish")
            hand.ask("hand", arm=arm, joints_rad=self._twin["rest_joints_rad"])
            self._settle(hand, arm, self._twin["rest_joints_rad"])
        hand.ask("hand", arm="follower", joints_rad=None)

    def _settle(self, hand: TwinControl, arm: str, joints_rad: list[float]) -> None:
        deadline_s = time.monotonic() + 10.0
        while time.monotonic() < deadline_s:
            self._stop_if_asked()
            now = hand.ask("truth")["joints_rad"][arm]
            if max(abs(a - b) for a, b in zip(now, joints_rad, strict=True)) < 0.02:
                return
            time.sleep(POLL_S)
        raise LocalFleetError(f"{self.robot_id}: the {arm} did not reach the pose it was held in")

    def record(self) -> None:
        """Demonstrate every placement of the plan: leader -> agent -> follower, recorded."""
        with self.hand() as hand, self.client() as client:
            self._record(hand, client)
        self.begin("recorded")

    def _record(self, hand: TwinControl, client: AgentClient) -> None:
        rate_hz = 0.0
        for number, place in enumerate(self.plan.demonstrations, 1):
            self._stop_if_asked()
            self.begin(f"demonstrating {number}/{len(self.plan.demonstrations)}")
            for _ in range(ATTEMPTS):
                hand.ask("rest")
                _put_cube(hand, place)
                client.record_start(TASK)
                outcome = hand.ask("demonstrate", skill="pick_lift")
                rate_hz = client.status()["rate_hz"]
                if outcome["lifted"]:
                    client.record_finish()
                    self.recorded += 1
                    break
                client.record_discard()
        hand.ask("rest")
        client.teleop_stop()
        status = client.status()
        self.recording = {
            **status["recording"],
            "rate_hz": rate_hz,
            "missed_deadlines": status["missed_deadlines"],
            "bytes": sum(each.stat().st_size for each in self._journals()),
        }

    def _journals(self) -> list[Path]:
        return [each for each in (self.state_dir / "journal").rglob("*.mcap") if each.is_file()]

    def try_policies(self, seconds: float) -> None:
        """Run every trial of the plan in the closed loop and judge it by the cube."""
        with self.hand() as hand, self.client() as client, RolloutOperator(client) as operator:
            for number, trial in enumerate(self.plan.trials, 1):
                self._stop_if_asked()
                self.begin(f"trial {number}/{len(self.plan.trials)} ({trial.policy})")
                self.trials.append(self._try(hand, client, operator, trial, seconds))
            client.rollout_disarm()
        self.begin("tried")

    def _try(
        self,
        hand: TwinControl,
        client: AgentClient,
        operator: RolloutOperator,
        trial: Trial,
        seconds: float,
    ) -> TrialResult:
        _put_cube(hand, trial.placement)
        armed = operator.arm(trial.policy)
        start_s = time.monotonic()
        client.rollout_start(seconds, TASK)
        highest_m = 0.0
        while True:
            self._stop_if_asked()
            highest_m = max(highest_m, hand.ask("truth")["cube"]["z_m"])
            rollout = client.status()["rollout"]
            if not rollout["running"]:
                break
            if highest_m > LIFTED_M:
                client.rollout_stop()
            time.sleep(POLL_S)
        return TrialResult(
            self.robot_id,
            self.plan.sector.name,
            trial.policy,
            int(armed["version"]),
            trial.placement,
            highest_m > LIFTED_M,
            highest_m,
            time.monotonic() - start_s,
            int(rollout["holds"]),
        )

    def watch(self) -> dict[str, Any]:
        """Ask the agent how it is, and remember what the demo shows; returns the status."""
        if self._watcher is None:
            self._watcher = self.client()
        status = self._watcher.status()
        self.seen = seen_in(status, self.seen)
        return status

    def _stop_if_asked(self) -> None:
        if self.stopping():
            raise Interrupted(self.robot_id)


def _put_cube(hand: TwinControl, place: Placement) -> None:
    hand.ask("place", object="cube", x_m=place.x_m, y_m=place.y_m, yaw_rad=place.yaw_rad)


def middle(joint_range_rad: list[list[float]]) -> list[float]:
    """The middle of each joint's mechanical range, in radians."""
    return [(low + high) / 2 for low, high in joint_range_rad]


def park_pose(rest_joints_rad: list[float], joint_range_rad: list[list[float]]) -> list[float]:
    """The rest pose in calibrated units: degrees from the middle of the range; gripper 0..100."""
    body = [
        round(math.degrees(rest - centre), 2)
        for rest, centre in zip(rest_joints_rad, middle(joint_range_rad), strict=True)
    ]
    low, high = joint_range_rad[-1]
    return [*body[:-1], round(100 * (rest_joints_rad[-1] - low) / (high - low), 2)]
