from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.dataset.errors import IngestFailed
from agent.dataset.versions import DatasetVersions
from agent.errors import BadLedger
from agent.recording.ledger import LedgerEntry


def entry(number: int) -> LedgerEntry:
    return LedgerEntry(f"e{number}", "arm-1", 1.0, 10, 0, "c")


def fill(staging: Path, number: int) -> None:
    for name in ("data/chunk-000", "meta", "videos/cam"):
        (staging / name).mkdir(parents=True, exist_ok=True)
    (staging / f"data/chunk-000/file-{number}.parquet").write_text(f"rows {number}")
    (staging / f"videos/cam/file-{number}.mp4").write_text("frames")
    (staging / "meta/info.json").write_text(f"{number}")
    with (staging / "meta/tasks.parquet").open("w") as file:  # in place, as LeRobot does it
        file.write(f"tasks {number}")


def grow(versions: DatasetVersions, number: int) -> Path:
    fill(versions.stage(), number)
    return versions.commit([*versions.ledger(), entry(number)])


def test_a_new_generation_adds_and_the_old_one_stays_as_it_was(tmp_path: Path) -> None:
    versions = DatasetVersions(tmp_path / "dataset")
    assert versions.current is None
    assert versions.ledger() == []
    first = grow(versions, 1)
    second = grow(versions, 2)
    assert versions.current == second.resolve()
    assert versions.ledger() == [entry(1), entry(2)]
    assert (first / "meta/info.json").read_text() == "1"
    assert (first / "meta/tasks.parquet").read_text() == "tasks 1"
    assert (tmp_path / "dataset/meta/tasks.parquet").read_text() == "tasks 2"
    assert sorted(path.name for path in (second / "data/chunk-000").iterdir()) == [
        "file-1.parquet",
        "file-2.parquet",
    ]


def test_what_is_never_rewritten_is_shared_not_copied(tmp_path: Path) -> None:
    versions = DatasetVersions(tmp_path / "dataset")
    first, second = grow(versions, 1), grow(versions, 2)
    for name in ("data/chunk-000/file-1.parquet", "videos/cam/file-1.mp4"):
        assert os.stat(first / name).st_ino == os.stat(second / name).st_ino
    assert os.stat(first / "meta/info.json").st_ino != os.stat(second / "meta/info.json").st_ino


def test_the_one_before_is_kept_for_its_readers_and_older_ones_go(tmp_path: Path) -> None:
    versions = DatasetVersions(tmp_path / "dataset")
    for number in range(1, 5):
        grow(versions, number)
    versions.sweep()
    assert sorted(p.name for p in (tmp_path / "datasets").iterdir()) == ["000003", "000004"]


def test_killed_while_staging_the_dataset_is_the_old_one(tmp_path: Path) -> None:
    grow(DatasetVersions(tmp_path / "dataset"), 1)
    fill(DatasetVersions(tmp_path / "dataset").stage(), 2)  # and then it was killed
    after = DatasetVersions(tmp_path / "dataset")
    assert after.ledger() == [entry(1)]
    staging = after.stage()
    assert not (staging / "data/chunk-000/file-2.parquet").exists()


def test_killed_between_the_rename_and_the_link_the_dataset_is_the_old_one(tmp_path: Path) -> None:
    versions = DatasetVersions(tmp_path / "dataset")
    grow(versions, 1)
    fill(versions.stage(), 2)
    (tmp_path / "datasets/.staging").rename(tmp_path / "datasets/000002")
    (tmp_path / ".dataset.next").symlink_to("datasets/000002")
    after = DatasetVersions(tmp_path / "dataset")
    assert after.ledger() == [entry(1)]
    grow(after, 3)
    assert after.ledger() == [entry(1), entry(3)]
    assert not (tmp_path / "dataset/data/chunk-000/file-2.parquet").exists()


def test_a_folder_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    with pytest.raises(IngestFailed, match="move it away"):
        DatasetVersions(tmp_path / "dataset")


def test_a_lost_ledger_is_said(tmp_path: Path) -> None:
    versions = DatasetVersions(tmp_path / "dataset")
    root = grow(versions, 1)
    (root / "meta/armada_episodes.json").write_text("{}")
    with pytest.raises(BadLedger, match="ledger"):
        DatasetVersions(tmp_path / "dataset").ledger()
