"""Whatever the order of offers, faults, kills and commands: the promises of the release book."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from agent.config import TrialConfig
from agent.policies.errors import NoSuchPolicy
from agent.policies.release_book import MAX_RELEASES, OfferAnswer, ReleaseBook, RobotRelease
from agent.policies.release_states import (
    TRANSITIONS,
    ReleaseEvent,
    ReleaseState,
    next_state,
)

S, E = ReleaseState, ReleaseEvent
RULES = TrialConfig(shadow_s=1.0, canary_episodes=2)


def digest(version: int, build: int = 0) -> str:
    return hashlib.sha256(f"{version}/{build}".encode()).hexdigest()


def empty() -> ReleaseBook:
    return ReleaseBook(active=None, previous=None)


def test_a_barred_release_leaves_its_state_by_the_operators_word_alone() -> None:
    out = {(state, event) for state, event in TRANSITIONS if state.barred}
    assert out == {(S.ROLLED_BACK, E.USE)}


def test_nothing_gets_the_arm_but_through_the_marker_or_the_operator() -> None:
    into = {state for (state, event), after in TRANSITIONS.items() if after is S.DRIVING}
    assert into == {S.CANARY}
    trusted = {pair for pair, after in TRANSITIONS.items() if after is S.ACTIVE}
    assert {state for state, event in trusted if event is E.TRUST} == {
        S.QUALIFYING,  # where no trial is asked for
        S.SHADOW,  # where no canary is asked for
        S.DRIVING,
    }
    assert {event for _, event in trusted} == {E.TRUST, E.USE, E.RETURN}


def test_a_marker_that_is_found_at_boot_is_a_rollback() -> None:
    assert next_state(S.DRIVING, E.AGENT_STARTED) is S.ROLLED_BACK
    assert [s for s in S if next_state(s, E.AGENT_STARTED) is not s] == [S.DRIVING]


@pytest.mark.parametrize("state", S)
def test_every_state_can_be_left_or_is_an_end(state: ReleaseState) -> None:
    assert state is S.REFUSED or any(before is state for before, _ in TRANSITIONS)


def test_what_is_forgotten_is_barred_by_its_version() -> None:
    book = empty()
    for version in range(1, MAX_RELEASES + 40):
        assert book.offer(digest(version), version)[0] is OfferAnswer.TAKE
        book.advance(digest(version), E.FETCH)
        book.advance(digest(version), E.BAD_CONTENT, "wrong")
    assert len(book.releases) == MAX_RELEASES
    assert digest(1) not in book.releases
    assert book.answer(digest(1), 1)[0] is OfferAnswer.LEAVE


def test_a_coordinator_does_not_lift_the_operators_pin() -> None:
    book = empty()
    book.use("3")
    book.use("4")
    with pytest.raises(NoSuchPolicy, match="version 4 is pinned by the operator"):
        book.roll_back("the coordinator's word", by_operator=False)
    assert book.roll_back("the operator's word") == "3" and not book.pinned


class Robot(RuleBasedStateMachine):
    """Offers, faults, kills and commands in any order, on one robot."""

    versions = st.integers(1, 6)
    builds = st.integers(0, 1)

    @initialize(shadow=st.booleans(), canary=st.integers(0, 2))
    def begin(self, shadow: bool, canary: int) -> None:
        self.rules = TrialConfig(shadow_s=float(shadow), canary_episodes=canary)
        self.book = empty()
        self.installed: set[str] = set()
        self.barred: set[str] = set()
        self.was: str | None = None
        self.may_go_down = False  # a rollback, or the operator's word

    def at(self, *states: ReleaseState) -> list[tuple[str, RobotRelease]]:
        return [(d, r) for d, r in self.book.releases.items() if r.state in states]

    @rule(version=versions, build=builds)
    def offered(self, version: int, build: int) -> None:
        name = digest(version, build)
        before = self.book.releases.get(name)
        barred = before is not None and before.state.barred
        answer, why = self.book.offer(name, version)
        if barred:
            assert answer is OfferAnswer.LEAVE
        assert why or answer in (OfferAnswer.TAKE, OfferAnswer.HERE)

    @rule(fate=st.sampled_from([E.INTERRUPTED, E.DAMAGED, E.BAD_CONTENT, E.FETCHED]))
    def downloaded(self, fate: ReleaseEvent) -> None:
        for name, _ in self.at(S.OFFERED):
            self.book.advance(name, E.FETCH)
            self.book.advance(name, fate, "it came so")

    @rule(fate=st.sampled_from([E.TOO_BUSY, E.DAMAGED, E.BAD_CONTENT, None]))
    def qualified(self, fate: ReleaseEvent | None) -> None:
        for name, record in self.at(S.VERIFIED, S.WAITING_FOR_IDLE):
            self.book.advance(name, E.QUALIFY)
            if fate is not None:
                self.book.advance(name, fate, "it ran so")
            elif str(record.version) not in self.installed:
                self.installed.add(str(record.version))
                self.book.promote(name, self.rules)
            else:
                self.book.advance(name, E.BAD_CONTENT, "another is installed as that version")

    @rule(well=st.booleans())
    def shadowed(self, well: bool) -> None:
        for name, _ in self.at(S.SHADOW):
            if well:
                self.book.promote(name, self.rules)
            else:
                self.book.advance(name, E.FAULT, "not a number")

    @rule(fate=st.sampled_from(["passed", E.FAULT, E.NOT_COUNTED, None]))
    def drove(self, fate: str | ReleaseEvent | None) -> None:
        for name, _ in self.at(S.CANARY):
            self.book.advance(name, E.DRIVE)
            if fate == "passed":
                self.book.episode_passed(name, self.rules)
            elif isinstance(fate, ReleaseEvent):
                self.book.advance(name, fate, "so it went")  # None: the marker stays

    @rule(event=st.sampled_from([E.AGENT_STARTED, E.FETCHER_STARTED]))
    def killed(self, event: ReleaseEvent) -> None:
        self.book = ReleaseBook.model_validate_json(self.book.model_dump_json())
        self.book.started(event, "killed")

    @rule(data=st.data())
    def used(self, data: st.DataObject) -> None:
        if not self.installed:
            return
        name = data.draw(st.sampled_from(sorted(self.installed)))
        chosen = self.book.of_version(name)
        if chosen is not None:
            self.barred.discard(chosen[0])
        self.book.use(name)
        self.may_go_down = True
        assert (self.book.active, self.book.pinned) == (name, True)
        assert self.book.to_drive() == name

    @rule()
    def followed(self) -> None:
        self.book.follow()
        self.may_go_down = True
        assert not self.book.pinned

    @rule(by_operator=st.booleans())
    def rolled_back(self, by_operator: bool) -> None:
        trial = self.book.on_trial()
        try:
            self.book.roll_back("a person's word", by_operator=by_operator)
        except NoSuchPolicy:
            return
        if trial is None:
            self.may_go_down = True

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "book"):
            return
        active = self.book.active
        if active != self.was and not self.may_go_down:
            assert active is not None and int(active) > int(self.was or 0)
            assert not self.book.pinned
        self.was, self.may_go_down = active, False
        assert len(self.at(S.SHADOW, S.CANARY, S.DRIVING)) <= 1
        assert len(self.at(S.ACTIVE)) == (active is not None)
        assert all(str(record.version) == active for _, record in self.at(S.ACTIVE))
        assert self.book.previous != active or active is None
        now = {d for d, r in self.book.releases.items() if r.state.barred}
        assert self.barred <= now, "a barred release came back by itself"
        self.barred = now
        if self.book.to_drive() is not None:
            row = self.book.of_version(self.book.to_drive() or "")
            assert row is not None and not row[1].state.barred


TestRobot = Robot.TestCase
TestRobot.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
