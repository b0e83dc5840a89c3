"""Nothing that is for evaluation is trained on, and nothing that nobody demonstrated."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.recording.ledger import LedgerEntry
from agent.training.episode_roles import DEMONSTRATED, episode_roles

ENTRIES = st.builds(
    LedgerEntry,
    episode_id=st.just("e"),
    robot_id=st.just("arm-1"),
    started_unix_s=st.just(1.0),
    frames=st.just(10),
    missed_deadlines=st.just(0),
    calibration_digest=st.just("c"),
    source=st.sampled_from(["teleoperation", "rollout", "intervention"]),
    success=st.sampled_from([None, True, False]),
    evaluation=st.booleans(),
)


@given(st.lists(ENTRIES, max_size=30), st.integers(2, 6))
def test_no_evaluation_no_policys_own_motion_and_no_failure_is_trained_on(
    ledger: list[LedgerEntry], every: int
) -> None:
    roles = episode_roles(ledger, every)
    for index in roles.training:
        entry = ledger[index]
        assert entry.source in DEMONSTRATED
        assert entry.success is not False
        assert not entry.evaluation
    assert not set(roles.training) & set(roles.held_out)
    demonstrated = [e.source in DEMONSTRATED and e.success is not False for e in ledger]
    assert len(roles.training) + len(roles.held_out) == sum(demonstrated)


@given(st.lists(ENTRIES, min_size=1, max_size=30), st.integers(2, 6))
def test_an_episode_never_changes_sides_as_the_dataset_grows(
    ledger: list[LedgerEntry], every: int
) -> None:
    whole, before = episode_roles(ledger, every), episode_roles(ledger[:-1], every)
    assert set(before.training) <= set(whole.training)
    assert set(before.held_out) <= set(whole.held_out)


def test_other_sources_are_taken_when_they_are_asked_for() -> None:
    ledger = [LedgerEntry("e", "r", 1.0, 10, 0, "c", source="rollout", success=False)]
    assert episode_roles(ledger, 5).training == []
    assert episode_roles(ledger, 5, ["rollout"]).training == []
    assert episode_roles(ledger, 5, ["rollout"], failed_too=True).training == [0]
