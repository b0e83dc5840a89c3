"""A report of trials is read only if it is bounded and adds up."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import BadTrials
from protocol.trials import (
    MAX_REPORT_BYTES,
    TrialRecord,
    TrialsReport,
    parse_trials_report,
    success_rate,
    wilson_interval,
)


def record(number: int, sector: str, succeeded: bool, seconds: float = 3.0) -> TrialRecord:
    return TrialRecord(
        number=number,
        seed=7 + number,
        sector=sector,
        x_m=0.19,
        y_m=0.0,
        yaw_rad=0.0,
        words="lift the red cube",
        succeeded=succeeded,
        seconds=seconds,
        held_ticks=2,
    )


def report(outcomes: list[tuple[str, bool]]) -> TrialsReport:
    trials = tuple(record(number, *outcome) for number, outcome in enumerate(outcomes))
    return TrialsReport(
        policy_version=3,
        policy_digest="a" * 64,
        task="lift",
        seed=7,
        robot_seed=None,
        latency_ms=60.0,
        control_hz=30.0,
        overall=success_rate(trials),
        sectors={
            name: success_rate([trial for trial in trials if trial.sector == name])
            for name in {sector for sector, _ in outcomes}
        },
        trials=trials,
    )


OUTCOMES = st.lists(
    st.tuples(st.sampled_from(["left", "right"]), st.booleans()), min_size=1, max_size=20
)


@given(OUTCOMES)
def test_what_was_written_is_what_is_read(outcomes: list[tuple[str, bool]]) -> None:
    written = report(outcomes)
    assert parse_trials_report(written.model_dump_json().encode()) == written


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (0, 0, 0.0, 1.0),
        # Newcombe 1998, table I, "score without continuity correction"
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_interval_is_wilsons(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(0, 500), st.integers(0, 500))
def test_the_interval_holds_the_rate_and_no_more_than_all(successes: int, failures: int) -> None:
    trials = successes + failures
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= high <= 1
    if trials:
        assert low - 1e-12 <= successes / trials <= high + 1e-12


def test_more_successes_than_trials_make_no_rate() -> None:
    with pytest.raises(ValueError, match="3 successes of 2"):
        wilson_interval(3, 2)


def change(*path: Any, to: Any) -> bytes:
    document = json.loads(report([("left", True), ("right", False)]).model_dump_json())
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"", "report"),
        (b"[]", "report"),
        (change("schema_version", to=2), "schema_version"),
        (change("surprise", to=1), "surprise"),
        (change("task", to="lift\n"), "task"),
        (change("policy_digest", to="A" * 64), "policy_digest"),
        (change("latency_ms", to=1e9), "latency_ms"),
        (change("trials", 0, "x_m", to=1e300), "x_m"),
        (change("trials", 0, "seconds", to=None), "seconds"),
        (change("trials", to=[]), "trials"),
        (change("overall", "successes", to=2), "overall"),
        (change("overall", "rate", to=0.9), "rate and interval"),
        (change("overall", "low", to=0.0), "rate and interval"),
        (change("overall", "success_s", to=None), "success_s"),
        (change("sectors", "middle", to=None), "sectors"),
        (change("trials", 0, "succeeded", to=False), "overall is not what its trials say"),
        (change("trials", 0, "sector", to="right"), "sectors are"),
    ],
)
def test_a_report_that_does_not_fit_is_refused_with_the_field(content: bytes, names: str) -> None:
    with pytest.raises(BadTrials, match=names) as caught:
        parse_trials_report(content)
    assert "\n" not in str(caught.value)


def test_a_report_beyond_its_size_is_not_parsed() -> None:
    with pytest.raises(BadTrials, match="bytes"):
        parse_trials_report(b" " * (MAX_REPORT_BYTES + 1))
