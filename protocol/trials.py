"""What closed-loop trials found out: how often a policy did a task, where, and how sure that is.

`armada trials` writes one as JSON; the coordinator's release gate reads it. The counts and
intervals of a report are those of its trials, checked when it is read, so that a reader may use
either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from host.complaints import first_complaint
from protocol.errors import BadTrials
from protocol.fields import Count, Digest, WireModel

TRIALS_SCHEMA_VERSION: Literal[1] = 1
MAX_TRIALS = 10_000
MAX_REPORT_BYTES = 8 * 1024 * 1024
CONFIDENCE_Z = 1.959964  # of a two-sided interval at 95 %
_SLACK = 1e-6  # of a share that went through JSON

TrialLabel = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}$")]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
TableMetres = Annotated[float, Field(ge=-2.0, le=2.0)]
TrialSeconds = Annotated[float, Field(ge=0.0, le=3600.0)]
TrialNumber = Annotated[int, Field(ge=0, le=MAX_TRIALS)]


def wilson_interval(successes: int, trials: int, z: float = CONFIDENCE_Z) -> tuple[float, float]:
    """Bounds of the success rate (Wilson 1927); (0, 1) where nothing was tried.

    Raises:
        ValueError: not 0 <= successes <= trials.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials make no rate")
    if trials == 0:
        return 0.0, 1.0
    rate, square = successes / trials, z * z
    middle = (rate + square / (2 * trials)) / (1 + square / trials)
    half = (
        z * math.sqrt(rate * (1 - rate) / trials + square / (4 * trials**2)) / (1 + square / trials)
    )
    return max(0.0, middle - half), min(1.0, middle + half)


class SuccessRate(WireModel):
    """`low` and `high` bound the rate at 95 %.

    `success_s`: mean seconds from the first observation to success, over the successes alone.
    """

    trials: Annotated[int, Field(ge=1, le=MAX_TRIALS)]
    successes: TrialNumber
    rate: Share
    low: Share
    high: Share
    success_s: TrialSeconds | None

    @model_validator(mode="after")
    def _adds_up(self) -> SuccessRate:
        if self.successes > self.trials:
            raise ValueError(f"{self.successes} successes of {self.trials} trials")
        told = (self.rate, self.low, self.high)
        right = (self.successes / self.trials, *wilson_interval(self.successes, self.trials))
        if any(abs(a - b) > _SLACK for a, b in zip(told, right, strict=True)):
            raise ValueError(f"rate and interval {told} are not those of its counts")
        if (self.success_s is None) != (self.successes == 0):
            raise ValueError("success_s is told exactly where something succeeded")
        return self


class TrialRecord(WireModel):
    """One attempt. `seconds`: to success, or to the end of a failure.

    x_m, y_m, yaw_rad: where the first body of the task stood, in the arm's base frame.
    held_ticks: on which the policy had no action ready, its first latency included.
    """

    number: TrialNumber
    seed: Count
    sector: TrialLabel
    x_m: TableMetres
    y_m: TableMetres
    yaw_rad: Annotated[float, Field(ge=-7.0, le=7.0)]
    words: Annotated[str, Field(min_length=1, max_length=200)]
    succeeded: bool
    seconds: TrialSeconds
    held_ticks: Count


class TrialsReport(WireModel):
    """One policy, one task, one robot: every attempt, and the rates over all and by sector.

    `policy_digest`: SHA-256 of policy.onnx. `robot_seed`: of the scene's differences (light, table,
    camera); None is the plain scene. Placements come from `seed` alone, so that two policies with
    the same task, sectors, count and seed were tried at the same places.
    """

    schema_version: Literal[1] = TRIALS_SCHEMA_VERSION
    policy_version: Count
    policy_digest: Digest
    task: TrialLabel
    seed: Count
    robot_seed: Count | None
    latency_ms: Annotated[float, Field(ge=0.0, le=5000.0)]
    control_hz: Annotated[float, Field(gt=0.0, le=1000.0)]
    overall: SuccessRate
    sectors: Annotated[dict[TrialLabel, SuccessRate], Field(min_length=1, max_length=64)]
    trials: Annotated[tuple[TrialRecord, ...], Field(min_length=1, max_length=MAX_TRIALS)]

    @model_validator(mode="after")
    def _is_of_its_trials(self) -> TrialsReport:
        if not _told_right(self.overall, self.trials):
            raise ValueError("overall is not what its trials say")
        names = {trial.sector for trial in self.trials}
        if names != set(self.sectors):
            raise ValueError(f"sectors are {sorted(self.sectors)}, its trials' {sorted(names)}")
        for name, rate in self.sectors.items():
            if not _told_right(rate, [trial for trial in self.trials if trial.sector == name]):
                raise ValueError(f"sector {name} is not what its trials say")
        return self


def success_rate(trials: Sequence[TrialRecord]) -> SuccessRate:
    """The rate of these, of which there is at least one."""
    times = [trial.seconds for trial in trials if trial.succeeded]
    low, high = wilson_interval(len(times), len(trials))
    return SuccessRate(
        trials=len(trials),
        successes=len(times),
        rate=len(times) / len(trials),
        low=low,
        high=high,
        success_s=sum(times) / len(times) if times else None,
    )


def parse_trials_report(content: bytes) -> TrialsReport:
    """The report of `armada trials --json`. Raises BadTrials with one line that names the field."""
    if len(content) > MAX_REPORT_BYTES:
        raise BadTrials(f"trials: {len(content)} bytes, at most {MAX_REPORT_BYTES} are read")
    try:
        return TrialsReport.model_validate_json(content)
    except ValidationError as error:
        raise BadTrials(f"trials: {first_complaint(error, 'report')}") from error


def _told_right(rate: SuccessRate, trials: Sequence[TrialRecord]) -> bool:
    successes = sum(trial.succeeded for trial in trials)
    return (rate.trials, rate.successes) == (len(trials), successes)
