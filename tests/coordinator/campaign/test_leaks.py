"""An episode that was trained on anywhere is believed nowhere."""

from __future__ import annotations

from held_out_reports import report
from hypothesis import given
from hypothesis import strategies as st

from coordinator.campaign.leaks import explain_leak, find_leak, note_trained, take_out_leaks
from coordinator.campaign.state import CampaignState, Leak

KEYS = [f"{number:016x}" for number in range(20)]


def a_state(trained: dict[str, list[str]]) -> CampaignState:
    state = CampaignState()
    note_trained(state, trained)
    return state


def test_a_report_with_an_episode_that_another_robot_trained_on_is_taken_out_and_named() -> None:
    state = a_state({"arm-2": [KEYS[3]]})
    state.held_out = {"d": {"arm-1": report(1.0, first=2), "arm-3": report(1.0, first=10)}}
    found = take_out_leaks(state)
    assert found == {"arm-1": Leak(key=KEYS[3], trained_by="arm-2")}
    assert list(state.held_out["d"]) == ["arm-3"]
    assert explain_leak("arm-1", found["arm-1"]) == (
        "the evaluation by arm-1 is refused: "
        f"its held-out episode {KEYS[3]} was trained on by arm-2"
    )


def test_a_robots_own_training_counts_as_well() -> None:
    state = a_state({"arm-1": [KEYS[0]]})
    leak = find_leak(state, report(1.0))
    assert leak is not None
    assert "trained on by itself" in explain_leak("arm-1", leak)


def test_a_leak_is_told_of_once() -> None:
    state = a_state({"arm-2": [KEYS[0]]})
    state.held_out = {"d": {"arm-1": report(1.0)}}
    assert take_out_leaks(state)
    state.held_out = {"d": {"arm-1": report(1.0)}}
    assert take_out_leaks(state) == {}
    assert state.held_out == {"d": {}}
    assert list(state.leaks) == ["arm-1"]


def test_who_said_first_that_it_trained_on_an_episode_stays_named() -> None:
    state = a_state({"arm-2": [KEYS[0]]})
    note_trained(state, {"arm-3": [KEYS[0]]})
    assert state.trained == {KEYS[0]: "arm-2"}


@given(st.sets(st.sampled_from(KEYS)), st.integers(0, 15))
def test_a_report_is_sound_exactly_when_no_episode_of_it_was_trained_on(
    trained: set[str], first: int
) -> None:
    state = a_state({"arm-2": sorted(trained)})
    leaked = trained & set(KEYS[first : first + 5])
    assert (find_leak(state, report(1.0, first=first)) is not None) == bool(leaked)


def test_the_state_keeps_what_was_trained_on_over_a_restart() -> None:
    state = a_state({"arm-2": [KEYS[0]]})
    state.leaks = {"arm-1": Leak(key=KEYS[0], trained_by="arm-2")}
    again = CampaignState.model_validate_json(state.model_dump_json())
    assert (again.trained, again.leaks) == (state.trained, state.leaks)
