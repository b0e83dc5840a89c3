"""What a robot makes of what comes from the broker, without a broker."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.federation.control_plane import AgentInbox, CoordinatorClock
from agent.federation.participation import Readiness, decide
from agent.training.exchange import BaseInfo
from protocol.connection import Inbound
from protocol.contribution import Contribution
from protocol.eligibility import Terms
from protocol.messages import Command, Envelope, Window
from protocol.topics import Topics

TOPICS = Topics("armada")
BASE, OLD, OLDEST = "a" * 64, "b" * 64, "c" * 64
TERMS = Terms(bases=(BASE, OLD, OLDEST), max_staleness=1)
NOW = 5000.0


def envelope(issued: float = NOW, lifetime: float | None = 20.0, sequence: int = 1) -> Envelope:
    return Envelope(
        session="0" * 32,
        sequence=sequence,
        issued_unix_s=issued,
        expires_unix_s=None if lifetime is None else issued + lifetime,
    )


def window(opens: float = NOW, **changes) -> Window:
    fields = {
        "envelope": envelope(opens), "window_id": "1" * 32, "round": 3, "terms": TERMS,
        "opens_unix_s": opens, "join_by_unix_s": opens + 2, "closes_unix_s": opens + 20,
    }  # fmt: skip
    return Window.model_validate({**fields, **changes})


def arrive(message, topic: str = TOPICS.window(), at: float = NOW, retained=False, remaining=None):
    return Inbound(topic, message.encode(), retained, remaining, at)


def inbox(own_clock: float = NOW) -> tuple[AgentInbox, CoordinatorClock]:
    clock = CoordinatorClock(lambda: own_clock)
    return AgentInbox("armada", "arm-1", clock), clock


def test_a_robot_whose_clock_is_an_hour_off_still_judges_by_the_coordinators() -> None:
    box, clock = inbox(own_clock=NOW + 3600)
    assert box.take(arrive(window(), at=NOW + 3600)) is not None
    assert clock.now() == pytest.approx(NOW)


def test_a_retained_window_is_as_old_as_the_broker_says() -> None:
    box, clock = inbox(own_clock=NOW + 3600)
    old = window(opens=NOW - 12)
    assert box.take(arrive(old, at=NOW + 3600, retained=True, remaining=8)) is not None
    assert clock.now() == pytest.approx(NOW)


def test_a_retained_message_does_not_correct_a_live_one() -> None:
    box, clock = inbox(own_clock=NOW)
    box.take(arrive(window(opens=NOW - 0.25)))
    before = clock.now()
    box.take(arrive(window(opens=NOW - 9, envelope=envelope(NOW - 9, sequence=2)), retained=True,
                    remaining=10))  # fmt: skip
    assert clock.now() == before


def test_a_command_for_another_robot_is_dropped_and_counted() -> None:
    box, _ = inbox()
    command = Command(envelope=envelope(), agent_id="arm-2", command="pause")
    assert box.take(arrive(command, TOPICS.command("arm-1"))) is None
    assert box.guard.dropped == {"wrong_identity": 1}


def test_a_window_said_twice_counts_once() -> None:
    box, _ = inbox()
    assert box.take(arrive(window())) is not None
    assert box.take(arrive(window())) is None
    assert box.guard.dropped == {"replayed": 1}


@given(
    st.sampled_from([TOPICS.window(), TOPICS.release(), TOPICS.command("arm-1"), "x/y", "armada"]),
    st.binary(max_size=200),
)
def test_nothing_that_arrives_can_make_it_fail(topic: str, payload: bytes) -> None:
    box, _ = inbox()
    assert box.take(Inbound(topic, payload, False, None, NOW)) is None
    assert box.guard.dropped == {"malformed": 1}


def base(digest: str = BASE, number: int = 2) -> BaseInfo:
    return BaseInfo(digest=digest, round=number, spec={}, normalizer={}, normalizer_digest=BASE)


def work(steps: int = 40, digest: str = BASE, number: int = 2) -> Contribution:
    return Contribution(
        base_digest=digest, base_round=number, steps=steps, examples=9, loss=0.5, sequence=1
    )


def ready(**changes) -> Readiness:
    fields = {
        "base": base(), "contribution": work(), "merged_base": None, "local_work": "anytime",
        "paused": False, "in_use": False, "data_plane": True,
    }  # fmt: skip
    return Readiness(**{**fields, **changes})


SYNCHRONOUS = {"terms": Terms(bases=(BASE, OLD), local_work="window")}


@pytest.mark.parametrize(
    ("changes", "asked", "decision", "reason"),
    [
        ({}, {}, "join", None),
        ({"paused": True}, {}, "decline", "paused by the coordinator"),
        ({"base": None}, {}, "decline", "no base yet"),
        ({"data_plane": False}, {}, "decline", "the SuperNode is not connected"),
        ({"contribution": None}, {}, "decline", "nothing gained yet"),
        ({"contribution": work(0)}, {}, "decline", "nothing gained yet"),
        ({"contribution": work(9, OLD, 1)}, {}, "join", None),
        ({"contribution": work(9, OLD, 1), "merged_base": OLD}, {}, "decline", "its work from"),
        ({"merged_base": BASE}, {}, "join", None),
        ({"contribution": work(9, OLDEST, 0)}, {}, "decline", "its base is 2 bases old"),
        ({"contribution": work(9, "f" * 64, 2)}, {}, "decline", "its base ffffffffffff is not"),
        (
            {"contribution": work(9)},
            {"terms": Terms(bases=(BASE,), min_steps=10)},
            "decline",
            "nothing gained yet: 9 steps since its base, of at least 10",
        ),
        ({"in_use": True}, {}, "join", None),
        ({"local_work": "window"}, SYNCHRONOUS, "join", None),
        ({"local_work": "window", "in_use": True}, SYNCHRONOUS, "decline", "the robot is in use"),
        ({"local_work": "window", "base": base(OLD)}, SYNCHRONOUS, "decline", "its base is 1"),
        ({}, SYNCHRONOUS, "decline", "this robot works anytime"),
    ],
)
def test_join_or_decline_with_a_reason(changes, asked, decision, reason) -> None:
    answer = decide(window(**asked), ready(**changes), NOW)
    assert answer is not None
    assert answer.decision == decision
    assert (answer.reason or "").startswith(reason or "")
    assert (answer.reason is None) == (reason is None)


def test_a_join_says_what_was_gained_and_from_which_base() -> None:
    answer = decide(window(), ready(contribution=work(9, OLD, 1)), NOW)
    assert answer is not None
    assert (answer.base_digest, answer.steps) == (OLD, 9)


def test_a_closed_or_past_window_is_not_answered() -> None:
    assert decide(window(closed=True), ready(), NOW) is None
    assert decide(window(), ready(), NOW + 2.1) is None
