"""The state machine, walked over all states and events."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import Refused
from agent.operations.state_machine import (
    REPORTS,
    TRANSITIONS,
    Event,
    Machine,
    State,
    next_state,
    permissions,
)

PAIRS = [(state, event) for state in State for event in Event]

# Written out, not derived: what each state lets an operator do.
ALLOWED = {
    State.IDLE: {
        Event.TELEOP_START,
        Event.PARK,
        Event.ROLLOUT_ARM,
        Event.CALIBRATE,
        Event.RESET,
        Event.ESTOP,
    },
    State.TELEOP: {Event.TELEOP_STOP, Event.PARK, Event.ESTOP},
    State.ROLLOUT: {Event.ROLLOUT_ARM, Event.ROLLOUT_DISARM, Event.PARK, Event.ESTOP},
    State.FAULT: {Event.RESET, Event.ESTOP},
    State.ESTOP: {Event.RESET, Event.ESTOP},
}


@pytest.mark.parametrize(("state", "event"), PAIRS)
def test_every_pair_moves_is_refused_or_changes_nothing(state: State, event: Event) -> None:
    if event in REPORTS:
        expected = TRANSITIONS.get((state, event), state)
        assert next_state(state, event) is expected
    elif event in ALLOWED[state]:
        assert next_state(state, event) is TRANSITIONS[state, event]
    else:
        with pytest.raises(Refused, match="is not possible: "):
            next_state(state, event)


@pytest.mark.parametrize("state", list(State))
def test_the_emergency_stop_works_in_every_state(state: State) -> None:
    assert next_state(state, Event.ESTOP) is State.ESTOP


@pytest.mark.parametrize("state", list(State))
def test_a_fault_ends_every_motion_and_never_lifts_an_emergency_stop(state: State) -> None:
    expected = State.ESTOP if state is State.ESTOP else State.FAULT
    assert next_state(state, Event.FAULT) is expected


@pytest.mark.parametrize("state", [State.FAULT, State.ESTOP])
def test_only_reset_leaves_fault_and_emergency_stop(state: State) -> None:
    leaving = set()
    for event in Event:
        try:
            if next_state(state, event) not in (State.FAULT, State.ESTOP):
                leaving.add(event)
        except Refused:
            continue
    assert leaving == {Event.RESET}


@pytest.mark.parametrize("state", list(State))
def test_training_is_for_idle_alone_and_inference_for_an_armed_rollout(state: State) -> None:
    permitted = permissions(state)
    assert permitted.idle == (state is State.IDLE)
    assert permitted.rollout_armed == (state is State.ROLLOUT)
    assert permitted.always


def test_a_control_process_that_dies_when_idle_is_no_fault() -> None:
    assert next_state(State.IDLE, Event.CONTROL_DIED) is State.IDLE


@pytest.mark.parametrize("state", [State.TELEOP, State.ROLLOUT])
def test_a_control_process_that_dies_in_motion_is_a_fault(state: State) -> None:
    assert next_state(state, Event.CONTROL_DIED) is State.FAULT


@given(st.lists(st.sampled_from(list(Event)), max_size=40))
def test_from_anywhere_reset_after_a_stop_leads_back_to_idle(events: list[Event]) -> None:
    machine = Machine()
    for event in events:
        before = machine.state
        try:
            changed = machine.handle(event)
        except Refused:
            assert machine.state is before
        else:
            assert changed == (machine.state is not before)
    machine.handle(Event.ESTOP)
    machine.handle(Event.RESET)
    assert machine.state is State.IDLE
