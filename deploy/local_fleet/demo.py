"""The story of the demo: a demonstration, a contribution and a release, on a whole local fleet."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from agent.errors import AgentClientError
from deploy.local_fleet.coordinator_site import CoordinatorSite
from deploy.local_fleet.errors import Interrupted, LocalFleetError
from deploy.local_fleet.plan import make_plan
from deploy.local_fleet.processes import ProcessGroup
from deploy.local_fleet.replay import ReplayClip, replay_pair
from deploy.local_fleet.report import Report
from deploy.local_fleet.robot import RobotSite
from deploy.local_fleet.status_reader import robot_report, rounds_of
from deploy.local_fleet.timeline import Span, audit_entries, coordinator_spans, robot_spans

Sight = Literal["pictures", "state"]
WALKS = ("demonstration", "contribution", "release")
AGENT_GRACE_S = 15.0  # time to park before torque-off
GRACE_S = 5.0
# Of the overhead camera: what the policy sees, or what the tracker needs. Width, height.
CAMERA_PX: dict[Sight, tuple[int, int]] = {"pictures": (64, 48), "state": (128, 96)}
POLL_S = 0.25


@dataclass(frozen=True)
class DemoSettings:
    """Size of the demo. The policy is small enough to learn on two cores in minutes."""

    robots: int = 3
    episodes: int = 16
    rounds: int = 12
    steps_per_round: int = 100
    trials_per_sector: int = 2
    trial_s: float = 6.0
    seed: int = 7
    policy: Sight = "pictures"

    @property
    def local_steps(self) -> int:
        """The local-only baseline trains for as many steps as a robot does over all rounds."""
        return self.rounds * self.steps_per_round

    @property
    def fewest_episodes(self) -> int:
        """The expert may fail now and then, as people do."""
        return max(2, self.episodes - 2)

    def coordinator(self) -> dict[str, dict[str, Any]]:
        """Values for the coordinator's configuration."""
        return {
            "campaign": {
                "rounds": self.rounds,
                "min_agents": self.robots,
                "min_episodes": self.fewest_episodes,
                "strategy": "fedavg",
                "join_s": 1.0,
                "close_s": 40.0,
                "interval_s": 40.0,
                "gather_s": 20.0,
                "open_when": "ready",
                "min_local_steps": self.steps_per_round,
                "max_local_steps": self.steps_per_round,
                "release_every_rounds": max(1, self.rounds // 2),
            },
            # Many short rounds with a rate that falls from one to the next: a few long ones did not
            # get there on sectors that the robots do not share.
            "policy": {"learning_rate": 1e-3, "round_decay": 0.85, **self._sees()},
        }

    def _sees(self) -> dict[str, Any]:
        """ACT's own trunk of keypoints was trained on pictures of this size, and is frozen."""
        if self.policy == "state":
            return {}
        width, height = CAMERA_PX[self.policy]
        camera = {"name": "overhead", "width": width, "height": height}
        return {"cameras": [camera], "batch_size": 16}


@dataclass
class Demo:
    """A running demo. `view` is what a progress display may show at any time."""

    settings: DemoSettings
    folder: Path
    say: Callable[[str], None]
    stopping: threading.Event = field(default_factory=threading.Event)
    robots: list[RobotSite] = field(default_factory=list)
    walks: dict[str, bool] = field(default_factory=lambda: dict.fromkeys(WALKS, False))
    seconds: dict[str, float] = field(default_factory=dict)
    phase: str = "starting"
    fleet_status: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._start_s = time.monotonic()
        self.group = ProcessGroup(self.folder / "log")
        self.coordinator = CoordinatorSite(
            self.folder / "coordinator", self.group, self.settings.coordinator()
        )

    def run(self) -> Report:
        """All three walks, then the report. Every process has ended when this returns or raises.

        Raises:
            LocalFleetError: a walk could not be completed; says where.
        """
        try:
            self._start()
            self._phase("demonstration", self._demonstrate)
            self._phase("contribution", self._contribute)
            self._phase("release", self._release)
            return self._report()
        finally:
            self._stop()

    def _phase(self, walk: str, step: Callable[[], None]) -> None:
        self.phase = walk
        before_s = time.monotonic()
        step()
        self.seconds[walk] = time.monotonic() - before_s
        self.walks[walk] = True

    def _start(self) -> None:
        before_s = time.monotonic()
        settings = self.settings
        for plan in make_plan(
            settings.robots, settings.episodes, settings.trials_per_sector, ("local", "active"),
            settings.seed,
        ):  # fmt: skip
            self.robots.append(
                RobotSite(
                    plan, self.folder / plan.robot_id, self.group, self.stopping.is_set,
                    settings.local_steps, CAMERA_PX[settings.policy],
                    tracker=settings.policy == "state",
                )
            )  # fmt: skip
        for robot in self.robots:
            robot.start_twin()
        self.coordinator.prepare({robot.robot_id: robot.bundle for robot in self.robots})
        self.coordinator.start()
        for robot in self.robots:
            self._wait(f"{robot.robot_id}'s twin", robot.twin_ready, 60.0)
            robot.start_agent()
        for robot in self.robots:
            self._wait(f"{robot.robot_id}'s agent", partial(_up, robot), 60.0)
        self.seconds["start"] = time.monotonic() - before_s

    def _demonstrate(self) -> None:
        self.say("calibrating, then recording: leader -> agent -> follower")
        self._together(RobotSite.calibrate)
        self._together(RobotSite.record)
        for robot in self.robots:
            if robot.recorded < self.settings.fewest_episodes:
                raise LocalFleetError(
                    f"{robot.robot_id} recorded {robot.recorded} of {self.settings.episodes} "
                    "demonstrations: the others did not lift the cube"
                )

    def _contribute(self) -> None:
        self.say("training while idle; windows and Flower rounds")

        def finished() -> bool | None:
            self.fleet_status = self.coordinator.status()
            for robot in self.robots:
                robot.watch()
                robot.begin(robot.seen.phase)
            return True if self.fleet_status["campaign"]["phase"] == "finished" else None

        # Each look costs a core some milliseconds that the trainers could have.
        self._wait("the campaign", finished, 420.0, period_s=1.0)
        done = len(rounds_of(self.fleet_status))
        if done < self.settings.rounds:
            raise LocalFleetError(f"{done} of {self.settings.rounds} rounds gave a new base")

    def _release(self) -> None:
        if not self.fleet_status["releases"]:
            refused = "; ".join(each["reason"] for each in self.fleet_status["refused"])
            raise LocalFleetError(f"nothing was released: {refused or 'no candidate'}")
        newest = self.fleet_status["releases"][-1]["version"]
        self.say(f"release {newest}: every robot qualifies it, then drives its arm with it")
        for robot in self.robots:
            self._wait(
                f"{robot.robot_id} to qualify release {newest}",
                partial(_uses, robot, newest),
                60.0,
            )
        self._together(lambda robot: robot.try_policies(self.settings.trial_s))

    def _together(self, step: Callable[[RobotSite], Any]) -> None:
        """One person a robot, all at once; the first failure stops the others and is raised."""
        failed = threading.Event()
        for robot in self.robots:
            robot.stopping = lambda: self.stopping.is_set() or failed.is_set()

        def work(robot: RobotSite) -> None:
            try:
                step(robot)
            except (LocalFleetError, AgentClientError):
                failed.set()
                raise

        with ThreadPoolExecutor(len(self.robots)) as people:
            futures = [people.submit(work, robot) for robot in self.robots]
            try:
                while not all(future.done() for future in futures):
                    self.group.check()
                    time.sleep(POLL_S)
            except BaseException:
                failed.set()
                raise
        errors = [error for future in futures if (error := future.exception()) is not None]
        self._stop_if_asked()
        for error in sorted(errors, key=lambda each: isinstance(each, Interrupted)):
            raise error

    def _wait[T](
        self, what: str, ready: Callable[[], T | None], timeout_s: float, period_s: float = POLL_S
    ) -> T:
        def look() -> T | None:
            self._stop_if_asked()
            return ready()

        return self.group.wait_until(what, look, timeout_s, period_s)

    def _stop_if_asked(self) -> None:
        if self.stopping.is_set():
            raise Interrupted("stopped on request")

    def _report(self) -> Report:
        self.fleet_status = self.coordinator.status()
        self.seconds["total"] = time.monotonic() - self._start_s
        return Report(
            walks=dict(self.walks),
            seconds={name: round(value, 1) for name, value in self.seconds.items()},
            windows=len(self.fleet_status["windows"]),
            rounds=len(rounds_of(self.fleet_status)),
            releases=len(self.fleet_status["releases"]),
            robots=tuple(
                robot_report(
                    robot.robot_id,
                    robot.plan.sector.name,
                    robot.recording,
                    robot.seen,
                    self.fleet_status,
                )
                for robot in self.robots
            ),
            trials=tuple(trial for robot in self.robots for trial in robot.trials),
            policy=self.settings.policy,
            seed=self.settings.seed,
            spans=self._spans(),
        )

    def _spans(self) -> tuple[Span, ...]:
        now_s = time.time()
        start_s = now_s - self.seconds["total"]
        robots = [
            span
            for robot in self.robots
            for span in robot_spans(robot.robot_id, robot.notes, start_s, now_s)
        ]
        return (*robots, *coordinator_spans(audit_entries(self.coordinator.audit_log()), start_s))

    def replay(self) -> list[ReplayClip]:
        """Both policies of each robot once more, on its first placement outside its own sector."""
        self.phase = "pictures for the report"
        clips: list[ReplayClip] = []
        for robot in self.robots:
            places = [trial.placement for trial in robot.plan.trials]
            elsewhere = [place for place in places if place.sector != robot.plan.sector.name]
            if elsewhere:
                folders = robot.policy_folders()
                clips += replay_pair(robot.robot_id, folders, elsewhere[0], self.settings.trial_s)
        return clips

    def _stop(self) -> None:
        self.phase = "stopping"
        agents = [r.agent_process for r in self.robots if r.agent_process is not None]
        killed = self.group.stop(agents, AGENT_GRACE_S) + self.group.stop_all(GRACE_S)
        if killed:
            self.say(f"had to be killed: {', '.join(killed)}")


def _up(robot: RobotSite) -> bool | None:
    if not (robot.state_dir / "run" / "agent.sock").exists():
        return None
    with robot.client() as client:
        try:
            client.status()
        except AgentClientError:
            return None
    return True


def _uses(robot: RobotSite, version: int) -> bool | None:
    return True if robot.watch()["policy"] == version else None


def write_json(report: Report, path: Path) -> None:
    """Write the report as JSON."""
    path.write_text(json.dumps(report.as_json(), indent=2) + "\n")
