"""A candidate must do its task as often as its predecessor did at the same places."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trial_reports import trials_report

from coordinator.campaign.trials_gate import judge_trials, non_inferior, same_placements
from coordinator.config import ReleaseGateConfig

RULES = ReleaseGateConfig()


def outcomes(successes: int, of: int = 100) -> list[bool]:
    return [index < successes for index in range(of)]


def test_a_first_release_that_does_nothing_is_no_better_than_holding_still() -> None:
    for successes in (0, 4):
        verdict = judge_trials(trials_report(outcomes(successes, of=10)), None, RULES)
        assert not verdict.passed and "no better than holding still" in verdict.line


def test_a_first_release_must_reach_the_least_rate() -> None:
    verdict = judge_trials(trials_report(outcomes(19)), None, RULES)
    assert not verdict.passed and verdict.line.endswith("a first release needs 20%")
    verdict = judge_trials(trials_report(outcomes(20)), None, RULES)
    assert verdict.passed and verdict.line == "closed loop: 20 of 100 trials of lift (20%)"


def test_the_same_policy_again_passes_and_one_that_forgot_half_is_refused() -> None:
    last = trials_report(outcomes(80))
    assert judge_trials(trials_report(outcomes(80)), last, RULES).passed
    worse = judge_trials(trials_report(outcomes(40)), last, RULES)
    assert not worse.passed
    assert worse.line == (
        "closed loop: 40 of 100 trials of lift (40%) against 80 of 100 trials of lift (80%) of the "
        "last release at the same places (0 gained, 40 lost); not within 10% of it with 95% "
        "confidence"
    )


def test_a_better_candidate_passes_though_it_loses_some_places() -> None:
    old = [index >= 20 for index in range(100)]
    new = [index < 95 for index in range(100)]
    assert judge_trials(trials_report(new), trials_report(old), RULES).passed


def test_few_trials_prove_nothing() -> None:
    report = trials_report(outcomes(10, of=10))
    assert not judge_trials(report, report, RULES).passed


@pytest.mark.parametrize("change", [{"seed": 2}, {"task": "stack"}, {"robot_seed": 3}])
def test_trials_at_other_places_are_never_compared(change: dict[str, object]) -> None:
    last = trials_report(outcomes(100), **change)
    verdict = judge_trials(trials_report(outcomes(100)), last, RULES)
    assert not verdict.passed and "not tried at the same places" in verdict.line
    assert not same_placements(trials_report(outcomes(9, of=9)), trials_report(outcomes(9, of=10)))


@pytest.mark.parametrize(("gained", "lost", "pairs"), [(5, 1, 44), (0, 3, 50), (9, 12, 200)])
def test_the_score_uses_the_likeliest_shares_under_the_margin(
    gained: int, lost: int, pairs: int
) -> None:
    margin = 0.1
    share = np.linspace(margin + 1e-6, (1 + margin) / 2 - 1e-6, 200_001)  # lost, were it exact
    likelihood = lost * np.log(share) + (pairs - gained - lost) * np.log(1 - 2 * share + margin)
    likelihood += gained * np.log(share - margin)
    best = share[likelihood.argmax()]
    variance = pairs * (2 * best - margin - margin**2)
    z = (gained - lost + pairs * margin) / math.sqrt(variance)
    sure = non_inferior(gained, lost, pairs, margin)
    assert NormalDist().inv_cdf(sure) == pytest.approx(z, abs=1e-3)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 100), st.floats(0.01, 0.5))
def test_confidence_is_a_share_that_gains_raise_and_losses_lower(
    gained: int, lost: int, same: int, margin: float
) -> None:
    pairs = gained + lost + same + 1
    sure = non_inferior(gained, lost, pairs, margin)
    assert 0.0 <= sure <= 1.0 and math.isfinite(sure)
    assert non_inferior(gained + 1, lost, pairs, margin) >= sure - 1e-9
    assert non_inferior(gained, lost + 1, pairs, margin) <= sure + 1e-9
