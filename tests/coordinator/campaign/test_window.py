"""The rules of one window, each of them, and all mixtures of answers and times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.campaign.window import (
    AnswerRefusal,
    Refusal,
    WindowPhase,
    WindowRules,
    WindowState,
)
from protocol.eligibility import Ineligible, Terms
from protocol.messages import Answer, Envelope

WINDOW = "1" * 32
OPENS, JOIN_BY, CLOSES = 100.0, 102.0, 120.0
NEW, OLD, ANCIENT, STRANGE = "a" * 64, "b" * 64, "c" * 64, "d" * 64
MEMBERS = ("arm-1", "arm-2", "arm-3")


TERMS = Terms(bases=(NEW, OLD, ANCIENT), max_staleness=1, min_steps=10)


def make(expected: tuple[str, ...] = MEMBERS, terms: Terms = TERMS, **rules) -> WindowState:
    fields = {
        "min_agents": 2,
        "members": frozenset(MEMBERS),
        "terms": terms,
    }
    return WindowState(
        WINDOW, OPENS, JOIN_BY, CLOSES, WindowRules(**{**fields, **rules}), frozenset(expected)
    )


def answer(
    agent: str = "arm-1", decision: str = "join", base: str | None = NEW, steps: int = 50,
    window: str = WINDOW,
) -> Answer:  # fmt: skip
    return Answer(
        envelope=Envelope(session="0" * 32, sequence=1, issued_unix_s=1.0, expires_unix_s=None),
        agent_id=agent,
        window_id=window,
        decision=decision,
        base_digest=base,
        steps=steps,
    )


@pytest.mark.parametrize(
    ("given_answer", "now", "verdict"),
    [
        (answer(), 101.0, None),
        (answer(base=OLD), 101.0, None),
        (answer(decision="decline"), 101.0, None),
        (answer(), JOIN_BY, None),
        (answer(), JOIN_BY + 0.001, AnswerRefusal.LATE),
        (answer(), OPENS - 0.001, AnswerRefusal.NOT_OPEN),
        (answer(window="2" * 32), 101.0, AnswerRefusal.OTHER_WINDOW),
        (answer(agent="arm-9"), 101.0, AnswerRefusal.STRANGER),
        (answer(base=ANCIENT), 101.0, Ineligible.STALE),
        (answer(base=STRANGE), 101.0, Ineligible.UNKNOWN_BASE),
        (answer(base=None), 101.0, Ineligible.UNKNOWN_BASE),
        (answer(steps=9), 101.0, Ineligible.NOTHING_GAINED),
        (answer(steps=0), 101.0, Ineligible.NOTHING_GAINED),
    ],
)
def test_each_rule(given_answer: Answer, now: float, verdict: Refusal | None) -> None:
    window = make()
    assert window.answer(given_answer, now) is verdict
    assert (given_answer.agent_id in window.joined) == (
        verdict is None and given_answer.decision == "join"
    )


def test_the_first_answer_stands() -> None:
    window = make()
    assert window.answer(answer(decision="decline"), 101.0) is None
    assert window.answer(answer(), 101.1) is AnswerRefusal.ANSWERED
    assert not window.joined


def test_a_window_of_synchronous_work_takes_its_own_base_only_and_needs_no_steps() -> None:
    window = make(terms=Terms(bases=TERMS.bases, local_work="window"))
    assert window.answer(answer("arm-1", steps=0), 101.0) is None
    assert window.answer(answer("arm-2", base=OLD), 101.0) is Ineligible.STALE


def test_work_that_was_merged_already_does_not_count_again() -> None:
    window = make(merged_bases={"arm-1": OLD})
    assert window.answer(answer("arm-1", base=OLD), 101.0) is Ineligible.MERGED
    assert window.answer(answer("arm-2", base=OLD), 101.0) is None


def test_nobody_is_waited_for_once_all_have_answered() -> None:
    window = make()
    for agent in MEMBERS:
        assert window.tick(100.5) is WindowPhase.JOINING
        window.answer(answer(agent), 100.5)
    assert window.tick(100.6) is WindowPhase.COLLECTING


def test_a_refused_answer_is_an_answer_too() -> None:
    window = make()
    window.answer(answer("arm-1"), 100.5)
    window.answer(answer("arm-2"), 100.5)
    window.answer(answer("arm-3", steps=0), 100.5)
    assert window.tick(100.6) is WindowPhase.COLLECTING
    assert window.refused == {"arm-3": Ineligible.NOTHING_GAINED}


def test_a_silent_robot_costs_the_joining_time_and_no_more() -> None:
    window = make()
    window.answer(answer("arm-1"), 100.5)
    window.answer(answer("arm-2"), 100.5)
    assert window.tick(JOIN_BY) is WindowPhase.JOINING
    assert window.tick(JOIN_BY + 0.001) is WindowPhase.COLLECTING


def test_too_few_joins_close_the_window_without_a_round() -> None:
    window = make()
    window.answer(answer("arm-1"), 100.5)
    assert window.tick(JOIN_BY + 0.1) is WindowPhase.CLOSED
    assert window.outcome == "1 of 2 agents joined"


def test_an_answer_after_the_joining_phase_ended_early_is_late() -> None:
    window = make(expected=("arm-1", "arm-2"))
    window.answer(answer("arm-1"), 100.5)
    window.answer(answer("arm-2"), 100.5)
    window.tick(100.6)
    assert window.answer(answer("arm-3"), 100.7) is AnswerRefusal.LATE
    assert set(window.joined) == {"arm-1", "arm-2"}


def test_collecting_ends_with_its_time() -> None:
    window = make(expected=("arm-1", "arm-2"))
    window.answer(answer("arm-1"), 100.5)
    window.answer(answer("arm-2"), 100.5)
    window.tick(100.6)
    assert window.tick(CLOSES) is WindowPhase.COLLECTING
    assert window.tick(CLOSES + 0.001) is WindowPhase.CLOSED
    assert window.outcome == "time is over"


answers = st.builds(
    answer,
    agent=st.sampled_from((*MEMBERS, "arm-9")),
    decision=st.sampled_from(("join", "decline")),
    base=st.sampled_from((NEW, OLD, ANCIENT, STRANGE, None)),
    steps=st.integers(0, 30),
    window=st.sampled_from((WINDOW, "2" * 32)),
)


@given(st.lists(st.tuples(st.floats(99.0, 125.0), answers | st.none()), max_size=30))
def test_whatever_comes_in_whatever_order(events: list[tuple[float, Answer | None]]) -> None:
    window = make()
    rank = [WindowPhase.JOINING, WindowPhase.COLLECTING, WindowPhase.CLOSED]
    phase, members = WindowPhase.JOINING, None
    for now, message in sorted(events, key=lambda event: event[0]):
        if message is not None:
            before = dict(window.joined)
            refusal = window.answer(message, now)
            assert (window.joined == before) or (refusal is None and message.decision == "join")
        after = window.tick(now)
        assert rank.index(after) >= rank.index(phase), "a window never goes back"
        phase = after
        if phase is WindowPhase.COLLECTING:
            members = members or set(window.joined)
            assert set(window.joined) == members, "who joined is fixed once collecting begins"
            assert len(members) >= 2
        for agent, joined in window.joined.items():
            assert agent in MEMBERS and joined.steps >= 10
            assert joined.base_digest in (NEW, OLD)
    assert not window.joined.keys() & window.declined.keys()
    final = window.tick(1000.0)
    assert final is WindowPhase.CLOSED and window.outcome is not None
