"""Reports of closed-loop trials, as `armada trials` writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from protocol.trials import TrialRecord, TrialsReport, success_rate


def trials_report(succeeded: Sequence[bool], **changes: Any) -> TrialsReport:
    """One trial for each, at places that follow from its number."""
    trials = tuple(
        TrialRecord(
            number=number, seed=number, sector="left", x_m=0.001 * number, y_m=0.1, yaw_rad=0.0,
            words="lift the cube", succeeded=success, seconds=3.0, held_ticks=0,
        )
        for number, success in enumerate(succeeded)
    )  # fmt: skip
    rate = success_rate(trials)
    return TrialsReport.model_validate(
        {
            "policy_version": 1, "policy_digest": "ab" * 32, "task": "lift", "seed": 1,
            "robot_seed": None, "latency_ms": 0.0, "control_hz": 30.0, "overall": rate,
            "sectors": {"left": rate}, "trials": trials,
        }
        | changes
    )  # fmt: skip
