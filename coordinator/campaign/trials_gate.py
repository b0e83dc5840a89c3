"""Whether a candidate does its task as often as its predecessor, in closed loop. Pure.

Both policies are tried at the same placements, so each placement is a pair. That the candidate is
not worse by more than the margin is Tango's score test for paired shares (Tango 1998, Statistics
in Medicine 17): McNemar's test is its case without a margin, which an equal candidate would never
pass. A first release must beat holding still, which never does a task (McNemar's exact test: five
successes at 95 %), and reach a least success rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from coordinator.config import ReleaseGateConfig
from protocol.trials import SuccessRate, TrialRecord, TrialsReport


@dataclass(frozen=True)
class TrialsVerdict:
    """`line`: the grounds on which it passed, or why it is refused. `task`, `rate`: what it did."""

    passed: bool
    line: str
    task: str
    rate: SuccessRate


def judge_trials(
    candidate: TrialsReport, predecessor: TrialsReport | None, rules: ReleaseGateConfig
) -> TrialsVerdict:
    """The candidate's trials against its predecessor's; None: there was no release before."""
    if predecessor is None:
        passed, line = _judge_first(candidate, rules)
    else:
        passed, line = _judge_pairs(candidate, predecessor, rules)
    return TrialsVerdict(passed, f"closed loop: {line}", candidate.task, candidate.overall)


def same_placements(one: TrialsReport, other: TrialsReport) -> bool:
    """Whether trial by trial both were tried at the same task and place, in the same scene."""
    return (
        (one.task, one.seed, one.robot_seed) == (other.task, other.seed, other.robot_seed)
        and len(one.trials) == len(other.trials)
        and all(_place(a) == _place(b) for a, b in zip(one.trials, other.trials, strict=True))
    )


def non_inferior(gained: int, lost: int, pairs: int, margin: float) -> float:
    """Confidence that the success rate is not lower by `margin` or more; Tango's score test.

    `gained`, `lost`: pairs in which only the new one, only the old one succeeded.
    """
    # The share lost under the hypothesis that the rates differ by exactly the margin.
    apart = -margin
    a = 2.0 * pairs
    b = -gained - lost + (2 * pairs - gained + lost) * apart
    c = -lost * apart * (1.0 - apart)
    share = (math.sqrt(max(0.0, b * b - 4.0 * a * c)) - b) / (2.0 * a)
    variance = pairs * (2.0 * share + apart * (1.0 - apart))
    if variance <= 0.0:
        return 0.0
    return NormalDist().cdf((gained - lost + pairs * margin) / math.sqrt(variance))


def _judge_first(candidate: TrialsReport, rules: ReleaseGateConfig) -> tuple[bool, str]:
    line = _rate(candidate)
    if 0.5**candidate.overall.successes > 1.0 - rules.confidence:
        doubt = f"with {rules.confidence:.0%} confidence no better than holding still"
        return False, f"{line}, {doubt}"
    if candidate.overall.rate < rules.trials_least:
        return False, f"{line}, a first release needs {rules.trials_least:.0%}"
    return True, line


def _judge_pairs(
    candidate: TrialsReport, predecessor: TrialsReport, rules: ReleaseGateConfig
) -> tuple[bool, str]:
    if not same_placements(candidate, predecessor):
        return False, "the two policies were not tried at the same places"
    pairs = list(zip(candidate.trials, predecessor.trials, strict=True))
    gained = sum(new.succeeded and not old.succeeded for new, old in pairs)
    lost = sum(old.succeeded and not new.succeeded for new, old in pairs)
    line = (
        f"{_rate(candidate)} against {_rate(predecessor)} of the last release at the same places "
        f"({gained} gained, {lost} lost)"
    )
    if non_inferior(gained, lost, len(pairs), rules.trials_margin) >= rules.confidence:
        return True, line
    doubt = f"not within {rules.trials_margin:.0%} of it with {rules.confidence:.0%} confidence"
    return False, f"{line}; {doubt}"


def _place(trial: TrialRecord) -> tuple[object, ...]:
    return (trial.number, trial.sector, trial.x_m, trial.y_m, trial.yaw_rad, trial.words)


def _rate(report: TrialsReport) -> str:
    overall = report.overall
    return f"{overall.successes} of {overall.trials} trials of {report.task} ({overall.rate:.0%})"
