"""Reads the agents' and the coordinator's status documents: pure, and the only place that knows
their keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deploy.local_fleet.report import RobotReport


@dataclass(frozen=True)
class Seen:
    """What one agent said last, as far as the demo shows it."""

    steps: int = 0
    phase: str = "-"
    waiting: str = ""
    local_steps: int = 0
    local_held_out: float | None = None
    policy: int | None = None
    rate_hz: float | None = None


def seen_in(status: dict[str, Any], before: Seen) -> Seen:
    """The newest facts of an agent's status; what it does not say now is kept from before."""
    trainer = status.get("trainer") or {}
    baseline = trainer.get("baseline") or {}
    rate_hz = status.get("rate_hz")
    return Seen(
        steps=max(before.steps, int(trainer.get("steps_total", 0))),
        phase=str(trainer.get("phase", before.phase)),
        waiting=next((e["text"] for e in status["waiting"] if e["about"] == "training"), ""),
        local_steps=max(before.local_steps, int(baseline.get("steps", 0))),
        local_held_out=baseline.get("held_out_mae", before.local_held_out),
        policy=status.get("policy"),
        rate_hz=before.rate_hz if rate_hz is None else float(rate_hz),
    )


def held_out_of(fleet: dict[str, Any], robot_id: str) -> list[tuple[int, float]]:
    """(round, mean action error) that this robot reported for each global base, oldest first."""
    return sorted(
        (int(number), float(reports[robot_id]["action_mae"]))
        for number, reports in fleet.get("held_out", {}).items()
        if robot_id in reports
    )


def rounds_of(fleet: dict[str, Any]) -> list[dict[str, Any]]:
    """The training rounds that gave a new base."""
    return [each for each in fleet["rounds"] if each["kind"] == "train" and not each["error"]]


def robot_report(
    robot_id: str, sector: str, recorded: dict[str, Any], seen: Seen, fleet: dict[str, Any]
) -> RobotReport:
    """One robot's line of the report.

    `recorded` is what the agent said at the end of the demonstrations: its `recording` table with
    the loop's `rate_hz` and `missed_deadlines`, and the `bytes` of its journals.
    """
    replies = [
        (int(each["round"]), reply)
        for each in rounds_of(fleet)
        for reply in each["replies"]
        if reply["agent_id"] == robot_id and reply["accepted"]
    ]
    losses = [(number, float(r["loss"])) for number, r in replies if r["loss"] is not None]
    held_out = held_out_of(fleet, robot_id)
    bytes_down = sum(
        each["bytes_down"] // max(1, len(each["members"]))
        for each in fleet["rounds"]
        if robot_id in each["members"]
    )
    return RobotReport(
        robot_id=robot_id,
        sector=sector,
        episodes=int(recorded["episodes"]),
        frames=int(recorded["frames"]),
        rate_hz=float(recorded["rate_hz"]),
        missed_deadlines=int(recorded["missed_deadlines"]),
        steps=sum(int(reply["steps"]) for _, reply in replies),
        local_steps=seen.local_steps,
        bytes_up=sum(int(reply["bytes_up"]) for _, reply in replies),
        bytes_down=bytes_down,
        held_out_before=held_out[0][1] if held_out else None,
        held_out_local=seen.local_held_out,
        held_out_after=held_out[-1][1] if len(held_out) > 1 else None,
        bytes_kept=int(recorded["bytes"]),
        held_out=tuple(held_out),
        losses=tuple(losses),
    )
