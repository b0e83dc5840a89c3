"""Pacing by absolute deadline, under a clock that the test turns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.control.pacer import Pacer, RateMeter

PERIOD_S = 1 / 32  # exact in binary: sums do not drift


class Clock:
    """Time that passes when somebody sleeps or works."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept = 0

    def __call__(self) -> float:
        return self.now_s

    def work(self, seconds: float) -> None:
        self.now_s += seconds

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept += 1
        self.now_s += seconds


def test_a_late_tick_does_not_move_those_after_it() -> None:
    clock = Clock()
    pacer = Pacer(PERIOD_S, clock, clock.sleep)
    ends = []
    for work_s in (0.25 * PERIOD_S, 0.75 * PERIOD_S, 1.5 * PERIOD_S, 0.25 * PERIOD_S):
        clock.work(work_s)
        pacer.wait()
        ends.append(clock.now_s / PERIOD_S)
    assert ends == [1.0, 2.0, 3.5, 4.0]
    assert pacer.missed == 1


def test_deadlines_that_passed_unused_are_counted_and_not_made_up_for() -> None:
    clock = Clock()
    pacer = Pacer(PERIOD_S, clock, clock.sleep)
    clock.work(4.5 * PERIOD_S)
    pacer.wait()
    assert pacer.missed == 4
    for _ in range(3):
        pacer.wait()
    assert clock.slept == 3
    assert clock.now_s == 7.0 * PERIOD_S
    assert pacer.missed == 4


def test_restart_forgets_the_time_in_between_and_not_the_count() -> None:
    clock = Clock()
    pacer = Pacer(PERIOD_S, clock, clock.sleep)
    clock.work(1.5 * PERIOD_S)
    pacer.wait()
    clock.work(100.0)
    pacer.restart()
    pacer.wait()
    assert pacer.missed == 1
    assert clock.slept == 1


@given(st.lists(st.floats(0.0, 5.0), min_size=1, max_size=60))
def test_every_deadline_is_either_kept_or_counted(works: list[float]) -> None:
    clock = Clock()
    pacer = Pacer(PERIOD_S, clock, clock.sleep)
    kept = 0
    for work in works:
        clock.work(work * PERIOD_S)
        before = clock.slept
        pacer.wait()
        kept += clock.slept - before
    passed = clock.now_s / PERIOD_S
    assert abs(kept + pacer.missed - passed) <= 1.0


def test_the_rate_is_that_of_the_session() -> None:
    meter = RateMeter()
    assert meter.rate_hz is None
    for tick in range(31):
        meter.tick(10.0 + tick / 30)
    assert meter.rate_hz == pytest.approx(30.0)
    meter.restart()
    assert meter.rate_hz is None
