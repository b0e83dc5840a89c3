"""Which candidate becomes a release."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.campaign.release_gate import compare, judge, mean_action_mae
from coordinator.campaign.state import Candidate
from protocol.messages import HeldOutReport


def report(error: float, frames: int = 10) -> HeldOutReport:
    return HeldOutReport(round=1, action_mae=error, loss=0.0, frames=frames)


def candidate(number: int, deadline: float = 100.0) -> Candidate:
    return Candidate(
        round=number, digest=f"{number:064x}", members=["a", "b"], deadline_unix_s=deadline
    )


def test_the_mean_is_weighted_by_frames() -> None:
    assert mean_action_mae({"a": report(1.0, 30), "b": report(5.0, 10)}) == 2.0


def test_a_robot_without_held_out_frames_does_not_count() -> None:
    assert mean_action_mae({"a": report(1.0), "b": report(9.0, 0)}) == 1.0
    with pytest.raises(ValueError, match="no held-out frames"):
        mean_action_mae({"a": report(1.0, 0)})


def test_robots_that_judged_only_one_of_the_two_do_not_shift_the_comparison() -> None:
    old = {"a": report(4.0), "b": report(4.0)}
    new = {"a": report(3.0), "c": report(50.0)}
    assert compare(new, old, 0.0) is None


def test_a_held_out_set_that_grew_does_not_shift_the_comparison() -> None:
    old = {"easy": report(1.0, 90), "hard": report(10.0, 10)}
    new = {"easy": report(0.9, 10), "hard": report(9.0, 90)}
    assert compare(new, old, 0.0) is None


def test_worse_is_refused_equal_is_not_and_the_tolerance_is_honoured() -> None:
    old = {"a": report(4.0)}
    assert compare({"a": report(4.0)}, old, 0.0) is None
    refusal = compare({"a": report(4.2)}, old, 0.1)
    assert refusal is not None and "4.2 is worse than the last release's 4" in refusal
    assert compare({"a": report(4.2)}, old, 0.3) is None


def test_the_newest_ready_candidate_is_judged_and_older_ones_are_superseded() -> None:
    both = {"a": report(1.0), "b": report(1.0)}
    held_out = {f"{1:064x}": both, f"{2:064x}": both, f"{3:064x}": {"a": report(1.0)}}
    verdict = judge([candidate(1), candidate(2), candidate(3)], held_out, None, 0.0, 50.0)
    assert verdict is not None
    assert verdict.candidate.round == 2
    assert [older.round for older in verdict.superseded] == [1]
    assert verdict.refusal is None and verdict.evaluation is not None
    assert verdict.evaluation.complete


def test_before_the_deadline_a_silent_robot_is_waited_for() -> None:
    held_out = {f"{1:064x}": {"a": report(1.0)}}
    assert judge([candidate(1)], held_out, None, 0.0, 99.9) is None
    verdict = judge([candidate(1)], held_out, None, 0.0, 100.0)
    assert verdict is not None and verdict.evaluation is not None
    assert not verdict.evaluation.complete


reports = st.dictionaries(
    st.sampled_from("abcd"), st.builds(report, st.floats(0, 100), st.integers(1, 1000)), min_size=1
)


@given(reports, st.floats(0.1, 10))
def test_a_policy_that_is_worse_everywhere_is_always_refused(
    old: dict[str, HeldOutReport], worse: float
) -> None:
    new = {
        agent: each.model_copy(update={"action_mae": each.action_mae + worse})
        for agent, each in old.items()
    }
    assert compare(new, old, 0.0) is not None
    assert compare(old, new, 0.0) is None
