"""When a process is started again, and when silence is death: every case, without a process."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.restarts import Backoff, RestartTimer, is_silent

BACKOFFS = st.builds(
    Backoff,
    first_s=st.floats(0.01, 5.0),
    last_s=st.floats(5.0, 100.0),
    steady_s=st.floats(0.0, 100.0),
    at_once=st.integers(0, 5),
)


def test_the_pauses_double_up_to_the_last() -> None:
    pauses = [Backoff().pause_s(deaths) for deaths in range(1, 10)]
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_the_first_deaths_may_be_followed_by_no_pause() -> None:
    backoff = Backoff(first_s=0.5, last_s=1.0, at_once=2)
    assert [backoff.pause_s(deaths) for deaths in range(1, 7)] == [0.0, 0.0, 0.5, 1.0, 1.0, 1.0]


@given(BACKOFFS, st.integers(0, 10_000))
def test_a_pause_never_shrinks_and_is_bounded(backoff: Backoff, deaths: int) -> None:
    assert backoff.pause_s(deaths) <= backoff.pause_s(deaths + 1) <= backoff.last_s
    assert (backoff.pause_s(deaths) == 0.0) == (deaths <= backoff.at_once)


def test_the_first_start_is_due_at_any_time() -> None:
    assert RestartTimer(Backoff()).due(-1e9)


def test_a_death_puts_the_next_start_off_by_the_pause() -> None:
    timer = RestartTimer(Backoff(first_s=2.0, last_s=30.0))
    assert timer.died(100.0) == 2.0
    assert not timer.due(101.999)
    assert timer.due(102.0)
    assert timer.died(102.0) == 4.0


@pytest.mark.parametrize(("lived_s", "pause_s"), [(9.999, 4.0), (10.0, 1.0), (1e6, 1.0)])
def test_a_steady_life_makes_earlier_deaths_forgotten(lived_s: float, pause_s: float) -> None:
    timer = RestartTimer(Backoff(first_s=1.0, last_s=30.0, steady_s=10.0))
    timer.died(0.0)
    timer.died(0.0)
    assert timer.died(50.0, lived_s) == pause_s


def test_an_end_that_was_asked_for_delays_nothing_and_counts_as_no_death() -> None:
    timer = RestartTimer(Backoff(first_s=1.0, last_s=30.0))
    timer.died(0.0)
    timer.died(0.0)
    timer.forget()
    assert timer.due(0.0)
    assert timer.died(0.0) == 1.0


@given(st.lists(st.floats(0.0, 20.0), max_size=60), BACKOFFS)
def test_a_process_that_keeps_dying_cannot_spin(lives_s: list[float], backoff: Backoff) -> None:
    # What may follow without a pause: the deaths "at once" after each steady life, no others.
    timer = RestartTimer(backoff)
    now_s, in_a_row = 0.0, 0
    for lived_s in lives_s:
        assert timer.due(now_s)
        now_s += lived_s
        in_a_row = 1 if lived_s >= backoff.steady_s else in_a_row + 1
        pause_s = timer.died(now_s, lived_s)
        assert pause_s == backoff.pause_s(in_a_row)
        assert timer.due(now_s) == (in_a_row <= backoff.at_once)
        now_s += pause_s


@pytest.mark.parametrize(
    ("silence_s", "frozen"), list(itertools.product([0.0, 4.999, 5.0, 5.001, 1e9], [False, True]))
)
def test_silence_is_death_past_the_limit_and_never_while_frozen(
    silence_s: float, frozen: bool
) -> None:
    assert is_silent(silence_s, 0.0, 5.0, frozen=frozen) == (silence_s > 5.0 and not frozen)


@pytest.mark.parametrize("frozen", [False, True])
def test_before_its_first_beat_a_process_is_never_silent(frozen: bool) -> None:
    assert not is_silent(1e9, None, 5.0, frozen=frozen)
