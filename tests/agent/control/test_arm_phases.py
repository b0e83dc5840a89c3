"""The phase table: every phase at every event, and what no sequence of events may reach."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.control.arm_phases import (
    COMMANDS,
    TRANSITIONS,
    ArmEvent,
    ArmPhase,
    Effect,
    next_phase,
)
from agent.errors import Refused

P, E, F = ArmPhase, ArmEvent, Effect
PAIRS = list(itertools.product(ArmPhase, ArmEvent))
STOPS = (E.ESTOP, E.ESTOP_RELEASE)
SOURCES = (P.TELEOP, P.ROLLOUT, P.TAKEOVER)
LEASED = (P.ROLLOUT, P.TAKEOVER)

# What follows, for all of them: a phase, by its first letters; `.` nothing, `no` refused; `=` it
# stays, `=*` it stays and something is done.
MATRIX = """\
                   clos lost rese idle halt tele roll take aban park hold stop endi ende
teleop             no   no   no   tele no   no   no   no   no   no   no   no   no   no
rollout            no   no   no   roll no   no   no   no   no   no   no   no   no   no
takeover           no   no   no   no   no   no   take no   no   no   no   no   no   no
hand_back          no   no   no   no   no   no   no   roll no   no   no   no   no   no
park               no   no   no   park no   park park park park =    park no   =    no
calibrate          =    no   no   =    no   no   no   no   no   no   no   no   no   no
estop              lost =    lost halt =    stop stop stop stop stop stop =*   ende .
estop_release      lost =    lost halt =    stop stop stop stop stop stop =*   ende .
reset              rese rese .    =*   idle park park park park =*   =*   hold .    .
end                ende ende ende ende ende endi endi endi endi endi endi ende .    .
end_unparked       .    .    .    .    .    .    .    .    .    .    ende .    .    .
look               =*   .    .    =*   .    .    .    .    .    .    .    .    .    .
found              idle .    idle .    .    .    .    .    .    .    .    .    .    .
found_energised    hold .    hold .    .    .    .    .    .    .    .    .    .    .
not_found          .    .    clos .    .    .    .    .    .    .    .    .    .    .
taken              .    .    .    clos .    .    .    .    .    .    .    .    .    .
first_move_refused .    .    .    .    .    park park park .    .    .    .    .    .
lease_lost         .    .    .    .    .    .    aban aban .    .    .    .    .    .
overdue            .    .    .    .    .    park park .    park .    .    .    ende .
parked             .    .    .    .    .    .    .    .    .    =*   .    .    =*   .
released           .    .    .    .    .    .    .    .    .    idle .    halt ende .
release_failed     .    .    .    .    .    .    .    .    .    hold .    =*   ende .
fault              .    .    .    .    .    hold hold hold hold hold .    .    ende .
port_lost          .    .    .    lost lost lost lost lost lost lost lost lost ende .
crash              .    .    .    .    .    hold hold hold hold hold .    .    .    .
"""


def test_every_pair_is_what_the_matrix_says() -> None:
    header, *lines = MATRIX.splitlines()
    phases = list(ArmPhase)
    assert header.split() == [phase.value[:4] for phase in phases]
    rows = {ArmEvent(event): words for event, *words in map(str.split, lines)}
    assert list(rows) == list(ArmEvent)
    for phase, event in PAIRS:
        word = rows[event][phases.index(phase)]
        transition = TRANSITIONS.get((phase, event))
        if transition is None:
            assert word == ("no" if event in COMMANDS else "."), (phase, event)
        elif transition.phase is phase:
            assert word == ("=*" if transition.effects else "="), (phase, event)
        else:
            assert word == transition.phase.value[:4], (phase, event)


@pytest.mark.parametrize(("phase", "event"), PAIRS)
def test_every_pair_is_decided(phase: ArmPhase, event: ArmEvent) -> None:
    if (phase, event) in TRANSITIONS:
        assert next_phase(phase, event) is TRANSITIONS[phase, event]
    elif event in COMMANDS:
        with pytest.raises(Refused, match=r"^[^\n]+$"):
            next_phase(phase, event)
    else:
        following = next_phase(phase, event)
        assert (following.phase, following.effects) == (phase, ())


@pytest.mark.parametrize(("phase", "event"), PAIRS)
def test_the_effects_fit_the_phases(phase: ArmPhase, event: ArmEvent) -> None:
    """What any single transition must keep, whatever it is for."""
    if (phase, event) not in TRANSITIONS:
        return
    after, effects = TRANSITIONS[phase, event].phase, TRANSITIONS[phase, event].effects
    if after.energised and not phase.energised:
        assert effects[0] in (F.ENGAGE, F.HOLD_FOUND)
    if phase.energised and after.released:
        assert event is E.RELEASED  # which only the effect RELEASE answers
    if phase.energised and after in (P.CLOSED, P.LOST):
        assert F.LOSE_PORT in effects
    if after is P.ENDED:
        assert effects[-1] is F.LET_GO or F.LOSE_PORT in effects
    if phase in LEASED and after in LEASED:
        assert effects == (F.HAND_OVER,)
    elif after in SOURCES and phase is not after:
        assert after is not P.TAKEOVER
        assert event.value == after.value
        assert effects == (F.ENGAGE, F.HAND_OVER)
    if (F.HAND_OVER in effects) or (F.PARK in effects):
        assert after.moving
    if phase.moving and not after.moving and after is not P.ENDED and not after.released:
        took_over = {F.HOLD, F.HOLD_HERE, F.ANNOUNCE_FAULT}  # a failed release has held before
        assert took_over & set(effects)


@pytest.mark.parametrize("phase", ArmPhase)
@pytest.mark.parametrize("stop", STOPS)
def test_an_emergency_stop_is_never_refused_and_nobody_commands_after_it(
    phase: ArmPhase, stop: ArmEvent
) -> None:
    after = next_phase(phase, stop).phase
    assert not after.moving
    for event in ArmEvent:
        if event is E.RESET:
            continue
        try:
            following = next_phase(after, event).phase
        except Refused:
            continue
        assert not following.moving


@pytest.mark.parametrize("phase", SOURCES)
@pytest.mark.parametrize("event", [E.PARK, E.FIRST_MOVE_REFUSED, E.RESET])
def test_whatever_ends_a_motion_well_parks(phase: ArmPhase, event: ArmEvent) -> None:
    following = next_phase(phase, event)
    assert following.phase is P.PARKING
    assert following.effects[-1] is F.PARK


@pytest.mark.parametrize("phase", [P.TELEOP, P.ROLLOUT, P.ABANDONED])
def test_a_motion_that_has_had_its_time_parks(phase: ArmPhase) -> None:
    assert next_phase(phase, E.OVERDUE).effects == (F.PARK,)


def test_a_person_who_corrects_is_not_cut_short() -> None:
    assert next_phase(P.TAKEOVER, E.OVERDUE).phase is P.TAKEOVER


@pytest.mark.parametrize("phase", ArmPhase)
def test_without_its_operator_a_rollout_is_held_at_once_then_parked(phase: ArmPhase) -> None:
    following = next_phase(phase, E.LEASE_LOST)
    if phase not in LEASED:
        assert (following.phase, following.effects) == (phase, ())
        return
    assert (following.phase, following.effects) == (P.ABANDONED, (F.HOLD_HERE,))
    assert next_phase(P.ABANDONED, E.OVERDUE).phase is P.PARKING
    for event in COMMANDS - {E.PARK}:
        with pytest.raises(Refused):
            next_phase(P.ABANDONED, event)


@pytest.mark.parametrize("phase", [phase for phase in ArmPhase if phase.moving])
@pytest.mark.parametrize("event", [E.FAULT, E.PORT_LOST])
def test_a_fault_in_motion_is_announced_and_held_or_closed(
    phase: ArmPhase, event: ArmEvent
) -> None:
    following = next_phase(phase, event)
    assert F.ANNOUNCE_FAULT in following.effects
    assert following.phase in (P.HOLDING, P.LOST, P.ENDED)


def test_a_dead_thread_does_not_let_an_arm_fall_on_its_last_way() -> None:
    assert next_phase(P.ENDING, E.CRASH).phase is P.ENDING


def test_a_refusal_says_what_to_do() -> None:
    with pytest.raises(Refused, match="armada reset"):
        next_phase(P.HOLDING, E.TELEOP)
    with pytest.raises(Refused, match=r"emergency stop is on.*armada reset"):
        next_phase(P.STOPPED, E.PARK)
    with pytest.raises(Refused, match=r"moving already \(rollout\)"):
        next_phase(P.ROLLOUT, E.TELEOP)
    with pytest.raises(Refused, match="the arm is teleop: the leader takes over where a policy"):
        next_phase(P.TELEOP, E.TAKEOVER)
    with pytest.raises(Refused, match=r"operator is gone; it parks in a moment"):
        next_phase(P.ABANDONED, E.TELEOP)
    with pytest.raises(Refused, match="energised; park it first"):
        next_phase(P.PARKING, E.CALIBRATE)
    with pytest.raises(Refused, match="is ending"):
        next_phase(P.ENDING, E.TELEOP)


@dataclass
class World:
    """An arm that obeys effects, and answers as the hardware may."""

    found: ArmEvent = E.NOT_FOUND
    sticks: bool = False  # a servo keeps its torque
    refuses: bool = False  # it cannot be energised
    phase: ArmPhase = P.CLOSED
    torque: bool = False
    commander: str | None = None
    said: list[str] = field(default_factory=list)

    def handle(self, event: ArmEvent) -> None:
        before = self.phase
        following = next_phase(before, event)
        if F.ENGAGE in following.effects and self.refuses:
            raise Refused("no")
        self.phase = following.phase
        answers = [self.do(effect) for effect in following.effects]
        for answer in answers:
            if answer is not None:
                self.handle(answer)

    def do(self, effect: Effect) -> ArmEvent | None:
        match effect:
            case F.CONNECT:
                if self.phase.connected:
                    return None
                self.torque = self.found is E.FOUND_ENERGISED
                return self.found
            case F.ENGAGE | F.HOLD_FOUND:
                self.torque, self.commander = True, None
            case F.HAND_OVER:
                self.commander = "source"
            case F.PARK:
                self.commander = "park"
            case F.HOLD | F.HOLD_HERE:
                self.commander = None
            case F.LOSE_PORT:
                self.torque = False  # nobody knows
                self.commander = None
            case F.RELEASE | F.LET_GO:
                self.commander = None
                self.torque = self.torque and self.sticks
                if effect is F.RELEASE:
                    return E.RELEASE_FAILED if self.torque else E.RELEASED
            case F.ANNOUNCE_FAULT | F.ANNOUNCE_RELEASED:
                self.said.append(effect.value)
        return None


# What the controller asks only in the phase in which it can happen.
ASKED_FOR = {
    E.FOUND: None,
    E.FOUND_ENERGISED: None,
    E.NOT_FOUND: None,
    E.RELEASED: None,
    E.RELEASE_FAILED: None,
    E.END_UNPARKED: None,
}
STEPS = st.lists(
    st.tuples(
        st.sampled_from([event for event in ArmEvent if event not in ASKED_FOR]),
        st.sampled_from([E.FOUND, E.FOUND_ENERGISED, E.NOT_FOUND]),
        st.booleans(),
        st.booleans(),
    ),
    max_size=40,
)


@given(STEPS)
def test_no_sequence_breaks_the_promises(
    steps: list[tuple[ArmEvent, ArmEvent, bool, bool]],
) -> None:
    world = World()
    stopped = ended = False
    for event, found, sticks, refuses in steps:
        world.found, world.sticks, world.refuses = found, sticks, refuses
        before, said = world.phase, len(world.said)
        try:
            world.handle(event)
        except Refused:
            assert world.phase is before
            assert event in COMMANDS or event is E.END
            continue
        after = world.phase
        stopped = (stopped or event in STOPS) and event is not E.RESET
        ended = ended or event is E.END
        if after in (P.CLOSED, P.LOST, P.RESETTING, P.IDLE, P.HALTED):
            assert not world.torque
        if after.energised:
            assert world.torque
        assert (world.commander == "source") == (after in SOURCES)
        assert (world.commander == "park") == (after in (P.PARKING, P.ENDING))
        if stopped:
            assert world.commander is None
        if ended:
            assert after in (P.ENDING, P.ENDED)
        if event is E.LEASE_LOST:
            assert after not in LEASED
        if after is P.TAKEOVER and before is not P.TAKEOVER:
            assert (before, event) == (P.ROLLOUT, E.TAKEOVER)
        if event in (E.FAULT, E.PORT_LOST, E.CRASH):
            assert after not in SOURCES
            if before in SOURCES:
                assert world.said[said:] == ["announce_fault"]
        if before is P.PARKING and after is not P.PARKING:
            assert after in (P.IDLE, P.HOLDING, P.STOPPED, P.HALTED, P.LOST, P.ENDING, P.ENDED)
        if before.energised and after is P.IDLE:
            assert world.said[said:] == ["announce_released"]


@given(STEPS, st.booleans())
def test_every_end_comes_to_its_end(
    steps: list[tuple[ArmEvent, ArmEvent, bool, bool]], sticks: bool
) -> None:
    """From wherever: the end is reached by a park that arrives, or by its time."""
    world = World()
    for event, found, *_ in steps:
        world.found = found
        try:
            world.handle(event)
        except Refused:
            continue
    world.sticks = sticks
    world.handle(E.END)
    if world.phase is P.ENDING:
        world.handle(E.PARKED)
    assert world.phase is P.ENDED
    assert not world.torque or sticks
