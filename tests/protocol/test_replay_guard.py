"""Each message once, in order, from its own identity, in its time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protocol.messages import AgentEvent, Answer, Drop, Envelope, Message, ReplayGuard

NOW = 1000.0


def event(
    session: int = 1, sequence: int = 1, issued: float = NOW, expires: float | None = NOW + 60
):
    return AgentEvent(
        envelope=Envelope(
            session=f"{session:032x}",
            sequence=sequence,
            issued_unix_s=issued,
            expires_unix_s=expires,
        ),
        agent_id="arm-1",
        name="x",
    )


def admit(guard: ReplayGuard, message: Message, now: float = NOW, sender: str = "arm-1"):
    return guard.admit(message, sender=sender, claimed="arm-1", now_unix_s=now)


def test_a_message_counts_once() -> None:
    guard = ReplayGuard()
    assert admit(guard, event()) is None
    assert admit(guard, event()) is Drop.REPLAYED
    assert guard.dropped == {"replayed": 1}


def test_an_older_sequence_is_refused_and_a_newer_one_is_not() -> None:
    guard = ReplayGuard()
    assert admit(guard, event(sequence=5)) is None
    assert admit(guard, event(sequence=4)) is Drop.REPLAYED
    assert admit(guard, event(sequence=6)) is None


def test_a_session_that_was_superseded_stays_out() -> None:
    guard = ReplayGuard()
    assert admit(guard, event(session=1, sequence=9)) is None
    assert admit(guard, event(session=2, sequence=1)) is None
    assert admit(guard, event(session=1, sequence=10)) is Drop.REPLAYED


def test_the_wrong_identity_is_refused_and_does_not_disturb_the_right_one() -> None:
    guard = ReplayGuard()
    assert admit(guard, event(sequence=7), sender="arm-2") is Drop.WRONG_IDENTITY
    assert admit(guard, event(sequence=1)) is None


def test_what_expired_is_late_and_what_is_from_the_future_is_early() -> None:
    guard = ReplayGuard(skew_s=5.0)
    assert admit(guard, event(expires=NOW - 6)) is Drop.LATE
    assert admit(guard, event(issued=NOW + 6)) is Drop.EARLY
    assert admit(guard, event(expires=NOW - 4, issued=NOW + 4)) is None


def test_a_message_without_expiry_is_never_late() -> None:
    assert admit(ReplayGuard(), event(expires=None), now=NOW + 1e8) is None


def test_kinds_have_their_own_sequence() -> None:
    guard = ReplayGuard()
    answer = Answer(
        envelope=event(sequence=1).envelope,
        agent_id="arm-1",
        window_id="0" * 32,
        decision="decline",
    )
    assert admit(guard, event(sequence=5)) is None
    assert admit(guard, answer) is None


def test_memory_of_old_sessions_is_bounded() -> None:
    guard = ReplayGuard()
    for session in range(1000):
        assert admit(guard, event(session=session)) is None
    (retired,) = guard._retired.values()
    assert len(retired) == ReplayGuard.MAX_RETIRED


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=40))
def test_whatever_the_order_no_message_is_admitted_twice(order: list[tuple[int, int]]) -> None:
    guard = ReplayGuard()
    admitted = [pair for pair in order if admit(guard, event(*pair)) is None]
    assert len(admitted) == len(set(admitted))
    for session in {session for session, _ in admitted}:
        sequences = [sequence for each, sequence in admitted if each == session]
        assert sequences == sorted(sequences)
