from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from written_episodes import configured, write_episode

from agent.dataset.ingest import Ingest
from agent.recording.ledger import LedgerEntry, read_ledger
from agent.training.demonstrations import Demonstrations
from policy.batches import Frames
from policy.spec import ACTION


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Six episodes of eight frames; number 3 is a rollout that was corrected from frame 4 on."""
    folder = tmp_path_factory.mktemp("demonstrations")
    config = configured(folder)
    for number in range(6):
        rollout = {"policy": "7", "corrected": range(4, 7)} if number == 3 else {}
        write_episode(config.journal_dir, number, frames=8, cameras={}, **rollout)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
        ingest = Ingest(config)
        ingest.take(ingest.waiting())
    yield config.dataset_dir.resolve()


def ledger_of(root: Path) -> list[LedgerEntry]:
    return read_ledger(root)


def numbers(frames: Frames, episode: int) -> list[int]:
    return [int(number) for number in frames.numbers[frames.episode == episode]]


def test_of_a_corrected_rollout_only_the_persons_frames_are_learned_from(root: Path) -> None:
    training, held_out = Demonstrations(5).split(root, ledger_of(root), [ACTION])
    assert training.episodes == [0, 2, 3, 4, 5]
    assert held_out.episodes == [1]
    assert numbers(training, 3) == [4, 5, 6]
    assert numbers(training, 2) == list(range(8))
    assert list(training.vectors) == [ACTION], "the marks are no feature of the policy"
    assert len(training.vectors[ACTION]) == len(training.episode) == 4 * 8 + 3


def test_what_a_policy_drove_and_what_failed_is_left_out_unless_told_otherwise(root: Path) -> None:
    ledger = ledger_of(root)
    ledger[2] = replace(ledger[2], source="rollout")
    ledger[4] = replace(ledger[4], success=False)
    training, _ = Demonstrations(5).split(root, ledger, [ACTION])
    assert training.episodes == [0, 3, 5]
    everything = Demonstrations(
        5, sources=("teleoperation", "rollout", "intervention"), failed_too=True
    )
    training, _ = everything.split(root, ledger, [ACTION])
    assert training.episodes == [0, 2, 3, 4, 5]
    assert numbers(training, 3) == list(range(8))
    assert np.all(np.diff(training.episode) >= 0)
