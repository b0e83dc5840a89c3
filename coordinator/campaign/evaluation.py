"""What each robot measured of each base: the matrix of rounds and robots, and its summaries. Pure.

A robot has seen a base's data when a contribution of its own is in that base or in one before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from pydantic import BaseModel, ConfigDict

from coordinator.campaign.reply import merged_bases
from coordinator.campaign.state import CampaignState
from protocol.messages import HeldOutReport


class RobotAccuracy(BaseModel):
    """One robot's mean absolute action error on episodes it kept aside, raw joint units.

    `joints`: by the name of the action, degrees (gripper 0..100); empty where it told none.
    """

    model_config = ConfigDict(frozen=True)

    action_mae: float
    frames: int
    joints: dict[str, float]
    seen: bool


class RoundEvaluation(BaseModel):
    """One row of the matrix.

    mean: over the robots, one as much as another: over the tasks, where each robot has its own.
    joints: the same of each joint. generalisation: error on robots that are seen, as a share of the
    error on those that are not; 1 is as good elsewhere as at home, None: all are seen, or none.
    """

    model_config = ConfigDict(frozen=True)

    round: int
    robots: dict[str, RobotAccuracy]
    mean: float
    joints: dict[str, float]
    generalisation: float | None


def evaluate_rounds(state: CampaignState, newest: int) -> list[RoundEvaluation]:
    """The matrix, oldest round first; of the newest so many bases that anybody reported on."""
    names = [str(name) for name in (state.spec or {}).get("action_names", ())]
    contributed = _first_contributions(state)
    rows = []
    for base in state.bases:
        reports = {
            agent: each
            for agent, each in state.held_out.get(base.digest, {}).items()
            if each.frames
        }
        if reports:
            seen = {
                agent for agent in reports if contributed.get(agent, base.round + 1) <= base.round
            }
            rows.append(_row(base.round, reports, seen, names))
    return rows[-newest:]


def _first_contributions(state: CampaignState) -> dict[str, int]:
    """Agent -> the first base that its work is in."""
    first: dict[str, int] = {}
    for summary in state.rounds:
        if summary.kind == "train":
            for agent in merged_bases(summary.replies):
                first.setdefault(agent, summary.round)
    return first


def _row(
    number: int, reports: Mapping[str, HeldOutReport], seen: set[str], names: Sequence[str]
) -> RoundEvaluation:
    robots = {
        agent: RobotAccuracy(
            action_mae=each.action_mae,
            frames=each.frames,
            joints=dict(zip(names, each.joints, strict=True))
            if len(each.joints) == len(names)
            else {},
            seen=agent in seen,
        )
        for agent, each in sorted(reports.items())
    }
    at_home = _mean(robot.action_mae for robot in robots.values() if robot.seen)
    elsewhere = _mean(robot.action_mae for robot in robots.values() if not robot.seen)
    told = [robot.joints for robot in robots.values() if robot.joints]
    return RoundEvaluation(
        round=number,
        robots=robots,
        mean=fmean(robot.action_mae for robot in robots.values()),
        joints={name: fmean(joints[name] for joints in told) for name in names} if told else {},
        generalisation=at_home / elsewhere if at_home is not None and elsewhere else None,
    )


def _mean(values: Iterable[float]) -> float | None:
    listed = list(values)
    return fmean(listed) if listed else None
