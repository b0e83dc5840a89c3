from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from written_episodes import CAMERA, configured, picture, write_episode

from agent.config import AgentConfig
from agent.dataset import writer
from agent.dataset.errors import IngestFailed, UnknownUnit
from agent.dataset.features import OBSERVED, SENT, component
from agent.dataset.ingest import Ingest
from agent.recording.journal import EpisodeReader
from agent.training.exchange import TrainingExchange
from policy.batches import load_frames
from policy.spec import ACTION, ENVIRONMENT, STATE
from policy.statistics import Sketch


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AgentConfig]:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return configured(tmp_path)


def stock_dataset(config: AgentConfig) -> LeRobotDataset:
    return LeRobotDataset("local/anything", root=config.dataset_dir, video_backend="pyav")


def take_all(config: AgentConfig) -> Ingest:
    ingest = Ingest(config)
    ingest.recover()
    ingest.take(ingest.waiting())
    return ingest


def test_lerobot_reads_what_ingest_wrote_and_decodes_the_right_picture(config: AgentConfig) -> None:
    journals = [write_episode(config.journal_dir, number, frames=20) for number in (1, 2)]
    recorded = [list(EpisodeReader(path).samples()) for path in journals]
    take_all(config)
    dataset = stock_dataset(config)
    assert (dataset.num_episodes, dataset.num_frames, dataset.fps) == (2, 40, 30)
    assert dataset.meta.features[f"observation.images.{CAMERA}"]["info"]["video.codec"] == "h264"
    for episode, tick in ((0, 3), (1, 17)):
        sample, _ = recorded[episode][tick]
        first, _ = recorded[episode][0]
        item = dataset[20 * episode + tick]
        assert np.array_equal(item[STATE].numpy(), sample.state)
        assert np.array_equal(item[ENVIRONMENT].numpy(), sample.environment)
        assert np.array_equal(item[ACTION].numpy(), sample.action), "the action that was sent"
        assert item["task"] == "pick up the cube"
        assert item["episode_index"] == episode
        # LeRobot's timestamp is nominal; the measured one is beside it.
        assert float(item["timestamp"]) == pytest.approx(tick / 30)
        measured_s = sample.t_observed_s - first.t_observed_s
        assert float(item[OBSERVED]) == pytest.approx(measured_s)
        assert float(item[SENT]) == pytest.approx(measured_s + 0.004)
        shown = item[f"observation.images.{CAMERA}"].numpy() * 255
        expected = picture(tick).transpose(2, 0, 1)
        assert np.abs(shown - expected).mean() < 3, "the picture of this tick, not a neighbour's"


def test_journals_are_moved_aside_and_never_taken_twice(config: AgentConfig) -> None:
    for number in range(3):
        write_episode(config.journal_dir, number, frames=8)
    ingest = take_all(config)
    assert ingest.totals() == {"episodes": 3, "frames": 24, "held_out_episodes": 1}
    kept = sorted(path.name for path in (config.journal_dir / "ingested").iterdir())
    assert kept == [f"episode-{number:04d}.mcap" for number in range(3)]
    (config.journal_dir / "ingested" / kept[0]).rename(config.journal_dir / kept[0])
    again = Ingest(config)
    assert again.waiting() == []
    again.recover()  # as after a kill between commit and move
    assert not (config.journal_dir / kept[0]).exists()
    assert again.totals()["episodes"] == 3


def test_a_second_pass_adds_to_the_first(config: AgentConfig) -> None:
    write_episode(config.journal_dir, 1, frames=8)
    ingest = take_all(config)
    before = load_frames(config.dataset_dir.resolve())
    write_episode(config.journal_dir, 2, frames=9)
    assert ingest.take(ingest.waiting()) == ["episode-0002"]
    after = load_frames(config.dataset_dir.resolve())
    assert after.episodes == [0, 1]
    assert np.array_equal(after.select([0]).vectors[ACTION], before.vectors[ACTION])
    assert len(stock_dataset(config)) == 17
    ledger = json.loads((config.dataset_dir / "meta/armada_episodes.json").read_text())
    assert [entry["episode_id"] for entry in ledger] == ["episode-0001", "episode-0002"]
    assert [entry["missed_deadlines"] for entry in ledger] == [1, 2]


def test_the_sketch_is_of_the_training_episodes_alone(config: AgentConfig) -> None:
    for number in range(4):
        write_episode(config.journal_dir, number, frames=8)
    take_all(config)
    sketch = Sketch.from_json(TrainingExchange(config.training_dir).sketch() or {})
    assert sketch.count == 24, "the second of four episodes is held out"
    assert list(sketch.features) == [STATE, ENVIRONMENT, ACTION]
    training = load_frames(config.dataset_dir.resolve()).select([0, 2, 3])
    np.testing.assert_allclose(
        sketch.features[ACTION].mean, training.vectors[ACTION].mean(axis=0), rtol=1e-5, atol=1e-5
    )


def test_a_camera_that_came_late_shows_its_first_picture_before(config: AgentConfig) -> None:
    write_episode(config.journal_dir, 1, frames=8, late_camera=3)
    assert take_all(config).refused == {}
    shown = stock_dataset(config)[0][f"observation.images.{CAMERA}"].numpy() * 255
    assert np.abs(shown - picture(3).transpose(2, 0, 1)).mean() < 3


def test_an_episode_that_does_not_fit_is_kept_and_does_not_hold_up_the_others(
    config: AgentConfig,
) -> None:
    write_episode(config.journal_dir, 1, frames=8)
    write_episode(config.journal_dir, 2, frames=8, fps=15.0)
    write_episode(config.journal_dir, 3, frames=8, cameras={})
    write_episode(config.journal_dir, 4, frames=8, late_camera=8)
    write_episode(config.journal_dir, 5, frames=8, picture_size=(24, 32))
    damaged = config.journal_dir / "episode-0006.mcap"
    damaged.write_bytes(b"no journal")
    write_episode(config.journal_dir, 7, frames=8)
    ingest = take_all(config)
    assert ingest.totals()["episodes"] == 2
    assert ingest.waiting() == []
    reasons = [ingest.refused[f"episode-{number:04d}.mcap"] for number in (2, 3, 4, 5, 6)]
    for reason, words in zip(
        reasons, ["15 fps", "lacks", "no picture", "32x24", "not an episode"], strict=True
    ):
        assert words in reason
    assert len(list(config.journal_dir.glob("*.mcap"))) == 5, "nothing recorded is lost"


def test_a_dataset_that_does_not_read_back_is_never_shown(
    config: AgentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_episode(config.journal_dir, 1, frames=8)
    monkeypatch.setattr(writer, "_count_video_frames", lambda path: 7)
    ingest = Ingest(config)
    with pytest.raises(IngestFailed, match="7 pictures for 8 rows"):
        ingest.take(ingest.waiting())
    assert not config.dataset_dir.exists()
    assert len(ingest.waiting()) == 1
    monkeypatch.undo()
    assert ingest.take(ingest.waiting()) == ["episode-0001"]


def test_a_robot_without_cameras_has_a_dataset_without_video(config: AgentConfig) -> None:
    write_episode(config.journal_dir, 1, frames=8, cameras={})
    take_all(config)
    assert stock_dataset(config).meta.video_keys == []
    assert not (config.dataset_dir / "videos").exists()


def test_every_number_of_a_robot_has_bounds_and_an_unknown_unit_is_refused() -> None:
    assert component("gripper.pos").high == 100.0
    assert component("wrist_roll.pos").low == -180.0
    assert component("cube.x_m").high == 1.0
    with pytest.raises(UnknownUnit, match="force"):
        component("force")
