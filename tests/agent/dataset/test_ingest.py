"""Ingest: every sound journal becomes an episode, and none is lost, whatever lies beside it."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pytest
import written_episodes
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from written_episodes import CAMERA, HEIGHT, WIDTH, configured, picture, write_episode

from agent.child.link import ChildLink
from agent.config import AgentConfig
from agent.dataset import validation, writer
from agent.dataset.errors import IngestFailed, UnknownUnit
from agent.dataset.features import INTERVENTION, OBSERVED, SENT, component
from agent.dataset.ingest import Ingest, run
from agent.errors import LinkClosed
from agent.recording.journal import EpisodeReader
from agent.recording.ledger import read_ledger
from agent.recording.tally import Tally
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


def test_who_acted_and_how_it_went_is_told_by_episode_and_by_frame(config: AgentConfig) -> None:
    folder = config.journal_dir
    write_episode(folder, 1, frames=8)
    write_episode(folder, 2, frames=8, policy="7", success=False)
    write_episode(folder, 3, frames=8, policy="7", corrected=range(3, 6), success=True)
    take_all(config)
    ledger = read_ledger(config.dataset_dir.resolve())
    assert [(e.source, e.success, e.policy, e.robot_id) for e in ledger] == [
        ("teleoperation", None, None, "arm-1"),
        ("rollout", False, "7", "arm-1"),
        ("intervention", True, "7", "arm-1"),
    ]
    assert [e.policy_digest for e in ledger] == [None, "d" * 64, "d" * 64]
    dataset = stock_dataset(config)
    told = [bool(dataset[index][INTERVENTION]) for index in range(24)]
    assert [index for index, by_person in enumerate(told) if by_person] == [19, 20, 21]


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
    shutil.copy(
        config.journal_dir / "episode-0007.mcap", config.journal_dir / "episode-0007 (copy).mcap"
    )
    before = {path.name: path.read_bytes() for path in config.journal_dir.glob("*.mcap")}
    ingest = take_all(config)
    assert ingest.totals()["episodes"] == 2
    assert ingest.waiting() == []
    expected = {
        "episode-0002": "15 fps",
        "episode-0003": "lacks",
        "episode-0004": "no picture",
        "episode-0005": "32x24",
        "episode-0006": "not an episode",
        "episode-0007 (copy)": "under another's name",
    }
    refused = config.journal_dir / "refused"
    for name, words in expected.items():
        assert words in ingest.refused[f"{name}.mcap"]
        assert words in (refused / f"{name}.txt").read_text(), "the reason stands beside it"
    kept = {path.name: path.read_bytes() for path in config.journal_dir.rglob("*.mcap")}
    assert kept == before, "nothing recorded is lost"
    assert {path.stem for path in refused.glob("*.mcap")} == set(expected)
    assert Tally.of_folder(config.journal_dir).episodes == 7, "all but the rubbish were recorded"


def test_a_number_of_unknown_unit_costs_its_own_episode_and_not_the_statistics_of_all(
    config: AgentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(written_episodes, "PLACE", ("force", "cube.y_m"))
        write_episode(config.journal_dir, 1, frames=8)
    write_episode(config.journal_dir, 2, frames=8)
    ingest = take_all(config)
    assert "force" in ingest.refused["episode-0001.mcap"]
    assert ingest.totals()["episodes"] == 1
    Ingest(config).recover()


def test_a_long_batch_is_never_silent(config: AgentConfig) -> None:
    """The supervisor ends what says nothing for minutes; a batch of long episodes takes longer."""
    for number in range(2):
        write_episode(config.journal_dir, number, frames=8)
    beats: list[int] = []
    ingest = Ingest(config)
    ingest.take(ingest.waiting(), lambda: beats.append(1))
    assert len(beats) == 4, "before each is looked into, and before each is written"


def test_a_supervisor_that_goes_ends_the_pass_and_no_journal_is_blamed(
    config: AgentConfig, tmp_path: Path
) -> None:
    write_episode(config.journal_dir, 1, frames=8)
    watched, ingest = Watched(), Ingest(config)
    real = ingest.waiting

    def waiting() -> list[Path]:
        watched.over = True  # from the next word on
        return real()

    ingest.waiting = waiting  # type: ignore[method-assign]
    with pytest.raises(LinkClosed):
        run(ingest, cast("ChildLink", watched), tmp_path / "cache")
    assert ingest.refused == {}
    assert len(real()) == 1


def test_what_was_refused_is_remembered_and_tried_again_when_it_is_put_back(
    config: AgentConfig,
) -> None:
    path = write_episode(config.journal_dir, 1, frames=8)
    sound = path.read_bytes()
    path.write_bytes(sound[:-100])
    first = take_all(config)
    assert list(first.refused) == [path.name]
    again = Ingest(config)
    assert again.refused == first.refused
    assert again.waiting() == []
    path.write_bytes(sound)
    assert again.take(again.waiting()) == ["episode-0001"]
    assert again.refused == {}


class Watched:
    """The supervisor's end of the link: lets ``run`` go until nothing waits, a few rounds more."""

    def __init__(self) -> None:
        self.ingested: list[str] = []
        self.statuses: list[dict[str, Any]] = []
        self.quiet_rounds = 0
        self.over = False

    def heartbeat(self) -> None:
        if self.over:
            raise LinkClosed("enough")
        assert len(self.statuses) < 60, "it never came to rest"

    def send(self, kind: str, **fields: Any) -> None:
        if kind == "status":
            self.statuses.append(fields)
        else:
            self.ingested += fields["episodes"]

    def receive(self, timeout_s: float) -> None:
        self.quiet_rounds += 1
        self.over = self.quiet_rounds > 3


def run_to_rest(config: AgentConfig, tmp_path: Path) -> Watched:
    watched = Watched()
    with pytest.raises(LinkClosed):
        run(Ingest(config), cast("ChildLink", watched), tmp_path / "cache")
    return watched


def flip(path: Path, marker: bytes, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(marker) + offset] ^= 0x10
    path.write_bytes(data)


def spoil_picture(path: Path) -> None:
    """A picture whose header is right and whose checksum too: only decoding tells."""
    whole = cv2.imencode(".jpg", picture(1))[1].tobytes()
    tables = whole[: whole.index(b"\xff\xda")]
    path.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cv2, "imencode", lambda *_: (True, np.frombuffer(tables, np.uint8)))
        write_episode(path.parent, int(path.stem[-4:]), frames=8)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "the file's first byte": lambda path: flip(path, b"\x89MCAP0", 0),
    "the task in the header": lambda path: flip(path, b"pick up", 2),
    "a number of a sample": lambda path: flip(path, b'"state":[', 9),
    "the bytes of a picture": lambda path: flip(path, b"\xff\xda", 20),
    "the end record": lambda path: flip(path, b"missed_deadlines", -3),
    "the index": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "a picture that does not decode": spoil_picture,
}


def test_one_flipped_byte_costs_its_own_episode_and_no_other(
    config: AgentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []
    opened = validation.EpisodeReader
    monkeypatch.setattr(
        validation, "EpisodeReader", lambda path: tries.append(path.name) or opened(path)
    )
    damaged = {}
    for number, (place, damage) in enumerate(DAMAGE.items()):
        write_episode(config.journal_dir, 2 * number, frames=8)
        path = write_episode(config.journal_dir, 2 * number + 1, frames=8)
        damage(path)
        damaged[path.name] = place
    watched = run_to_rest(config, tmp_path)
    assert watched.ingested == [f"episode-{2 * n:04d}" for n in range(len(DAMAGE))]
    assert watched.statuses[0]["episodes"] == len(DAMAGE), "at the first try"
    assert set(watched.statuses[-1]["refused"]) == set(damaged)
    for name, reason in watched.statuses[-1]["refused"].items():
        assert reason.startswith(name), "the line names the file"
    assert sorted(tries) == sorted({*tries}), "each was looked into once"
    assert len(stock_dataset(config)) == 8 * len(DAMAGE)


def test_what_fails_for_no_known_reason_is_found_one_by_one_and_passed_over(
    config: AgentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when LeRobot refuses what we think is right; it may be its fault, so nothing is moved."""
    appended: list[str] = []
    append = writer._append

    def moody(dataset: LeRobotDataset, journal: validation.Journal) -> None:
        appended.append(journal.path.stem)
        if journal.path.stem == "episode-0001":
            raise KeyError("observation.mood")
        append(dataset, journal)

    monkeypatch.setattr(writer, "_append", moody)
    for number in range(4):
        write_episode(config.journal_dir, number, frames=8)
    watched = run_to_rest(config, tmp_path)
    assert sorted(watched.ingested) == ["episode-0000", "episode-0002", "episode-0003"]
    assert len(appended) == 6, "two together, then each once more"
    assert "observation.mood" in watched.statuses[-1]["refused"]["episode-0001.mcap"]
    assert [path.stem for path in config.journal_dir.glob("*.mcap")] == ["episode-0001"]
    monkeypatch.undo()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    assert run_to_rest(config, tmp_path).ingested == ["episode-0001"], "the next start tries again"


def test_a_disk_that_refuses_costs_no_journal_its_place_and_is_asked_again(
    config: AgentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what failed together one is asked at a time, each in its turn: none stands in the way."""
    asked: list[list[str]] = []
    watched = Watched()

    def full(_: Path, journals: list[validation.Journal], alive: Callable[[], None]) -> None:
        asked.append([journal.path.stem[-1] for journal in journals])
        watched.over = len(asked) == 7
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(writer, "append_episodes", full)
    monkeypatch.setattr("agent.dataset.ingest.RETRY_AFTER_S", 0.0)
    for number in range(3):
        write_episode(config.journal_dir, number, frames=8)
    with pytest.raises(LinkClosed):
        run(Ingest(config), cast("ChildLink", watched), tmp_path / "cache")
    assert asked == [["0", "1", "2"], *[["0"], ["1"], ["2"]] * 2]
    assert watched.statuses[-1]["refused"] == {}
    assert "no space left" in watched.statuses[-1]["error"]
    assert len(list(config.journal_dir.glob("*.mcap"))) == 3


@pytest.mark.parametrize(
    ("jpeg", "size"),
    [
        (cv2.imencode(".jpg", picture(0))[1].tobytes(), (HEIGHT, WIDTH)),
        (b"\xff\xd8\xff\xff\xff\xc0\0\x11\x08\0\x10\0\x20", (16, 32)),
        (b"\xff\xd8\xff\xe0\0\0" * 9, None),
        (b"\xff\xd8\xff\xe0\xff\xff", None),
        (b"\x89PNG", None),
        (b"", None),
    ],
)
def test_the_size_of_a_picture_stands_in_its_header(
    jpeg: bytes, size: tuple[int, int] | None
) -> None:
    assert validation.jpeg_size(jpeg) == size
    assert validation.jpeg_size(jpeg[:11]) in (None, size)


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
