"""`armada dataset import`: whole episodes, once each, or a line that says how to mend it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import foreign_datasets as foreign
import numpy as np
import pytest

from agent.cli import main
from agent.config import AgentConfig, load_config
from agent.dataset.errors import BadForeignDataset, ImportRunning
from agent.dataset.foreign.importing import (
    IMPORTING_FOLDER,
    Importer,
    import_episodes,
)
from agent.dataset.foreign.joints import to_ours
from agent.dataset.foreign.layout import ForeignDataset
from agent.dataset.foreign.plan import ImportRow
from agent.dataset.ingest import Ingest
from agent.recording.journal import EpisodeReader
from agent.recording.ledger import content_digest
from policy.batches import load_frames, read_info
from policy.spec import ACTION, STATE

CAMERAS = {"front": "top", "wrist": "wrist"}


def write_agent(folder: Path, more: str = "", width: int = foreign.WIDTH, fps: int = 30) -> Path:
    path = folder / "agent.toml"
    path.write_text(
        f"""
[robot]
port = "{folder}/none"
id = "arm-1"
[cameras.front]
source = 0
width = {width}
height = {foreign.HEIGHT}
[cameras.wrist]
source = 1
width = {foreign.WIDTH}
height = {foreign.HEIGHT}
[control]
fps = {fps}
{more}
[paths]
state_dir = "{folder}/state"
"""
    )
    return path


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    return load_config(write_agent(tmp_path))


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return foreign.write_v21(tmp_path_factory.mktemp("import") / "old", lengths=(12, 9, 7))


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("import") / "new"
    return foreign.write_v30(root, lengths=(12, 9, 7), names=foreign.OLD_NAMES)


def row(root: Path, **more: object) -> ImportRow:
    return ImportRow.model_validate({"dataset": str(root), "cameras": CAMERAS, **more})


def import_all(config: AgentConfig, root: Path, **more: object) -> list:
    return list(import_episodes(config, row(root, **more), evaluation=False))


def test_what_is_imported_becomes_episodes_of_the_robots_dataset(
    config: AgentConfig, old: Path
) -> None:
    done = import_all(config, old, task="stack the cubes")
    assert [imported.frames for imported in done] == [12, 9, 7]
    ingest = Ingest(config)
    assert len(ingest.take(ingest.waiting())) == 3
    frames = load_frames(config.dataset_dir)
    for index, length in enumerate((12, 9, 7)):
        state, action = foreign.numbers(index, length)
        written = frames.select([index]).vectors
        assert np.array_equal(written[STATE], to_ours(state, foreign.OLD_NAMES, "before-777"))
        assert np.array_equal(written[ACTION], to_ours(action, foreign.OLD_NAMES, "before-777"))
    features = read_info(config.dataset_dir)["features"]
    assert {"observation.images.front", "observation.images.wrist"} <= set(features)


def test_both_versions_of_one_dataset_are_the_same_episodes(
    config: AgentConfig, old: Path, new: Path
) -> None:
    import_all(config, old)
    assert all(done.known for done in import_all(config, new))


def test_an_episode_is_imported_once_also_when_it_is_ingested(
    config: AgentConfig, old: Path
) -> None:
    first = import_all(config, old)
    ingest = Ingest(config)
    ingest.take(ingest.waiting())
    again = import_all(config, old)
    assert [done.episode_id for done in again] == [done.episode_id for done in first]
    assert all(done.known for done in again)
    assert ingest.waiting() == []


def test_a_journal_says_where_its_episode_comes_from(config: AgentConfig, old: Path) -> None:
    done = import_all(config, old)[1]
    meta = EpisodeReader(config.journal_dir / f"{done.episode_id}.mcap").meta
    assert meta.origin is not None
    assert (meta.origin.dataset, meta.origin.episode) == (str(old), 1)
    assert meta.origin.digest == content_digest(*foreign.numbers(1, 9))
    assert meta.task == foreign.TASKS[1]


@pytest.mark.parametrize(
    ("agent", "more", "complaint"),
    [
        ({"fps": 25}, {}, "recorded at 30 fps, this robot's control.fps is 25"),
        ({"width": 48}, {}, "another shape; set the camera's width and height"),
        ({}, {"cameras": {}}, r"no camera 'front' for this robot's 'front'; it has top, wrist"),
        ({}, {"cameras": {**CAMERAS, "side": "top"}}, r"write \[cameras.side\]"),
        ({}, {"convention": "degrees"}, "it has no joint 'shoulder_pan.pos'"),
    ],
)
def test_what_does_not_fit_is_told_of_and_nothing_is_written(
    tmp_path: Path, old: Path, agent: dict, more: dict, complaint: str
) -> None:
    config = load_config(write_agent(tmp_path, **agent))
    with pytest.raises(BadForeignDataset, match=complaint):
        import_all(config, old, **more)
    assert list(config.journal_dir.glob("*.mcap")) == []


def test_a_robot_that_records_a_tracker_is_told_to_leave_it_out(tmp_path: Path, old: Path) -> None:
    tracker = """[tracker]
camera = "front"
hue_min_deg = 0
hue_max_deg = 10
homography = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]"""
    config = load_config(write_agent(tmp_path, tracker))
    with pytest.raises(BadForeignDataset, match=r"take \[tracker\] out"):
        import_all(config, old)


def test_pictures_are_brought_to_the_size_of_the_robots_camera(
    tmp_path: Path, config: AgentConfig
) -> None:
    large = foreign.write_v21(tmp_path / "large", lengths=(3,), height=96, width=128)
    (done,) = import_all(config, large)
    ingest = Ingest(config)
    assert ingest.take(ingest.waiting()) == [done.episode_id]


def test_two_imports_at_once_do_not_meet(config: AgentConfig, old: Path) -> None:
    running = import_episodes(config, row(old), evaluation=False)
    next(running)
    with pytest.raises(ImportRunning, match="another import is under way"):
        import_all(config, old)
    assert len(list(running)) == 2


def test_a_kill_in_the_middle_leaves_whole_episodes_and_the_rest_follows(
    config: AgentConfig, tmp_path: Path
) -> None:
    many = foreign.write_v21(tmp_path / "many", lengths=(40,) * 6)
    victim = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import sys; from agent.cli import main; sys.exit(main(sys.argv[1:]))",
            *("dataset", "import", str(many), "--config", str(tmp_path / "agent.toml")),
            *("--camera", "front=top", "--camera", "wrist=wrist"),
        ],
        stdout=subprocess.PIPE,
    )
    assert victim.stdout is not None
    victim.stdout.readline()
    time.sleep(0.02)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    victim.stdout.close()
    whole = sorted(config.journal_dir.glob("*.mcap"))
    assert whole
    assert all(EpisodeReader(path).end is not None for path in whole)
    done = import_all(config, many)
    assert [imported.known for imported in done[: len(whole)]] == [True] * len(whole)
    assert len(done) == 6
    assert list((config.journal_dir / IMPORTING_FOLDER).glob("work")) == []


def test_the_command_tells_each_episode_as_json(
    config: AgentConfig, old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["dataset", "import", str(old), "--config", str(tmp_path / "agent.toml")]
    cameras = ["--camera", "front=top", "--camera", "wrist=wrist"]
    assert main([*arguments, *cameras, "--episodes", "2", "--evaluation", "--json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["frames"] for line in told] == [12, 9]
    path = config.journal_dir / f"{told[0]['episode_id']}.mcap"
    assert EpisodeReader(path).meta.evaluation


def test_a_row_of_a_plan_brings_task_cameras_and_purpose(
    config: AgentConfig, old: Path, tmp_path: Path
) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(
        f"""
[evaluation.grab]
dataset = "{old}"
task = "grab it"
cameras = {{ front = "observation.images.top" }}
"""
    )
    arguments = ["dataset", "import", "grab", "--plan", str(plan)]
    assert main([*arguments, "--config", str(tmp_path / "agent.toml")]) == 0
    metas = [EpisodeReader(path).meta for path in config.journal_dir.glob("*.mcap")]
    assert len(metas) == 3
    assert all(meta.evaluation and meta.task == "grab it" for meta in metas)


def test_a_failed_import_says_one_line_and_ends_with_one(
    config: AgentConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["dataset", "import", "no/where/at/all", "--config", str(tmp_path / "agent.toml")]
    assert main(arguments) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_the_convention_is_found_by_the_joints_names(config: AgentConfig, old: Path) -> None:
    importer = Importer(config, ForeignDataset(old), row(old), evaluation=False)
    assert importer.convention == "before-777"
