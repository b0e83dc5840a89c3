"""What the demo found out: pure, from what robots and coordinator said, to a table and to JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group
from rich.table import Table

from deploy.local_fleet.plan import Placement
from deploy.local_fleet.timeline import Span

NAMES = {"local": "local only", "active": "global"}


@dataclass(frozen=True)
class TrialResult:
    """How one closed-loop attempt ended."""

    robot_id: str
    own_sector: str
    policy: str
    version: int
    placement: Placement
    lifted: bool
    highest_m: float
    seconds: float
    holds: int


@dataclass(frozen=True)
class RobotReport:
    """One robot's line: what it recorded and how its policy error changed."""

    robot_id: str
    sector: str
    episodes: int
    frames: int
    rate_hz: float
    missed_deadlines: int
    steps: int
    local_steps: int
    bytes_up: int
    bytes_down: int
    held_out_before: float | None
    held_out_local: float | None
    held_out_after: float | None
    bytes_kept: int  # of the recorded episodes, which never leave the robot
    held_out: tuple[tuple[int, float], ...]  # (round, error) of each global base
    losses: tuple[tuple[int, float], ...]  # (round, training loss) of each contribution

    @property
    def training_loss_first(self) -> float | None:
        """Of its first contribution."""
        return self.losses[0][1] if self.losses else None

    @property
    def training_loss_last(self) -> float | None:
        """Of its last contribution."""
        return self.losses[-1][1] if self.losses else None


@dataclass(frozen=True)
class Success:
    """Closed-loop successes of one policy in one kind of place."""

    policy: str
    where: str
    lifted: int
    trials: int


@dataclass(frozen=True)
class Report:
    """The whole of it; `walks` names each walk and whether it completed."""

    walks: dict[str, bool]
    seconds: dict[str, float]
    windows: int
    rounds: int
    releases: int
    robots: tuple[RobotReport, ...]
    trials: tuple[TrialResult, ...]
    policy: str
    seed: int
    spans: tuple[Span, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every walk completed."""
        return all(self.walks.values())

    def as_json(self) -> dict[str, Any]:
        """The same as the table, and every trial by itself."""
        return {
            **asdict(self),
            "complete": self.complete,
            "success": [asdict(each) for each in successes(self.trials)],
        }


def successes(trials: Sequence[TrialResult]) -> list[Success]:
    """Count lifts by policy, in the sector that the robot demonstrated and in the others."""
    found = []
    for policy in sorted({trial.policy for trial in trials}, reverse=True):
        for where, own in (("own sector", True), ("other sectors", False)):
            chosen = [
                trial
                for trial in trials
                if trial.policy == policy and (trial.placement.sector == trial.own_sector) is own
            ]
            if chosen:
                found.append(
                    Success(policy, where, sum(trial.lifted for trial in chosen), len(chosen))
                )
    return found


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def as_table(report: Report) -> Group:
    """The closing table, for a terminal."""
    robots = Table(title="What each robot did", title_justify="left", padding=(0, 0))
    for heading in (
        "robot", "sector", "episodes", "frames", "Hz held", "missed", "steps", "MB up", "MB down",
    ):  # fmt: skip
        robots.add_column(
            heading, no_wrap=True, justify="left" if heading in {"robot", "sector"} else "right"
        )
    for each in report.robots:
        robots.add_row(
            each.robot_id, each.sector, str(each.episodes), str(each.frames),
            f"{each.rate_hz:.2f}", str(each.missed_deadlines), str(each.steps),
            f"{each.bytes_up / 1e6:.2f}", f"{each.bytes_down / 1e6:.2f}",
        )  # fmt: skip

    learning = Table(
        title="Held-out error: mean |action error| in joint units",
        title_justify="left",
    )
    for heading in ("robot", "before", "local only", "global", "training loss"):
        learning.add_column(heading, justify="left" if heading == "robot" else "right")
    for each in report.robots:
        learning.add_row(
            each.robot_id, _number(each.held_out_before), _number(each.held_out_local),
            _number(each.held_out_after),
            f"{_number(each.training_loss_first, 3)} -> {_number(each.training_loss_last, 3)}",
        )  # fmt: skip

    loop = Table(title="Cube lifted, on placements that nobody demonstrated", title_justify="left")
    for heading in ("policy", "where", "lifted", "trials", "rate"):
        loop.add_column(heading, justify="left" if heading in {"policy", "where"} else "right")
    for success in successes(report.trials):
        loop.add_row(
            NAMES.get(success.policy, success.policy), success.where, str(success.lifted),
            str(success.trials), f"{100 * success.lifted / success.trials:.0f} %",
        )  # fmt: skip

    walks = Table(
        title=f"{report.seconds['total']:.0f} s in all",
        caption=f"{report.windows} windows, {report.rounds} rounds, {report.releases} releases",
        title_justify="left",
        caption_justify="left",
        min_width=44,
    )
    walks.add_column("walk")
    walks.add_column("completed")
    for walk, done in report.walks.items():
        walks.add_row(walk, "yes" if done else "NO")
    return Group(robots, learning, loop, walks)
