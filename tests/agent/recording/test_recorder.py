"""The writer thread between the loop and the disk."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from agent.errors import JournalError
from agent.recording.journal import EpisodeMeta, EpisodeReader, Sample
from agent.recording.recorder import Recorder

META = EpisodeMeta(
    episode_id="e",
    task="t",
    fps=30.0,
    robot_id="arm",
    state_names=("a",),
    action_names=("a",),
    environment_names=(),
    cameras={"overhead": (48, 64)},
    started_unix_s=0.0,
    calibration_digest="",
)


@dataclass(frozen=True)
class Picture:
    """A camera's frame."""

    sequence: int
    image: NDArray[np.uint8]
    jpeg: bytes | None


def sample(tick: int) -> Sample:
    one = np.zeros(1, np.float32)
    return Sample(tick, tick / 30, tick / 30, one, one, one, one[:0], {"overhead": tick})


def picture(tick: int, jpeg: bytes | None = b"\xff\xd8jpeg") -> Picture:
    return Picture(tick, np.full((48, 64, 3), (200, 10, 10), np.uint8), jpeg)


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    recorder = Recorder(tmp_path, min_free_mb=0, queue_ticks=50, jpeg_quality=90)
    yield recorder
    recorder.close()


def test_all_ticks_before_the_finish_are_in_the_file(recorder: Recorder) -> None:
    recorder.start(META)
    for tick in range(40):
        recorder.append(sample(tick), {"overhead": picture(tick)})
    path = recorder.finish(missed_deadlines=1)
    recorder.append(sample(99), {"overhead": picture(99)})  # nobody's episode
    reader = EpisodeReader(path)
    assert [got.tick for got, _ in reader.samples()] == list(range(40))
    assert reader.end is not None and reader.end.missed_deadlines == 1
    assert recorder.active is None


def test_a_camera_without_jpeg_is_encoded_in_its_colours(recorder: Recorder) -> None:
    recorder.start(META)
    recorder.append(sample(0), {"overhead": picture(0, jpeg=None)})
    [(_, jpegs)] = EpisodeReader(recorder.finish(0)).samples()
    image = cv2.imdecode(np.frombuffer(jpegs["overhead"], np.uint8), cv2.IMREAD_COLOR_RGB)
    assert image is not None and image.shape == (48, 64, 3)
    assert np.abs(image.astype(int) - (200, 10, 10)).max() < 8


def test_a_discarded_episode_leaves_nothing(recorder: Recorder, tmp_path: Path) -> None:
    recorder.start(META)
    recorder.append(sample(0), {"overhead": picture(0)})
    recorder.discard()
    assert not list(tmp_path.rglob("*.mcap*"))
    recorder.start(META)  # the same name is free again
    recorder.discard()


def test_a_full_queue_fails_the_episode_and_says_so(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder.start(META)
    gate = threading.Event()

    def stall(_: NDArray[np.uint8]) -> bytes:
        gate.wait(10.0)
        return b"\xff\xd8"

    monkeypatch.setattr(recorder, "_encode", stall)  # a disk that stands still
    for tick in range(60):
        recorder.append(sample(tick), {"overhead": picture(tick, jpeg=None)})
    assert recorder.failure is not None and "did not keep up" in recorder.failure
    gate.set()
    with pytest.raises(JournalError, match="did not keep up"):
        recorder.finish(0)
    assert not list(tmp_path.glob("*.mcap"))
    assert list((tmp_path / "unfinished").glob("*.part"))
    recorder.start(dataclasses.replace(META, episode_id="next"))
    assert recorder.failure is None


def test_a_failed_episode_is_kept_as_unfinished_with_its_reason(
    recorder: Recorder, tmp_path: Path
) -> None:
    recorder.start(META)
    recorder.append(sample(0), {"overhead": picture(0)})
    recorder.fail("camera overhead is gone")
    recorder.append(sample(1), {"overhead": picture(1)})
    with pytest.raises(JournalError, match="camera overhead is gone"):
        recorder.finish(0)
    assert [path.name for path in (tmp_path / "unfinished").iterdir()] == ["e.mcap.part"]


def test_one_episode_at_a_time(recorder: Recorder) -> None:
    recorder.start(META)
    with pytest.raises(JournalError, match="already being recorded"):
        recorder.start(META)
    recorder.discard()
    with pytest.raises(JournalError, match="no episode"):
        recorder.discard()
    with pytest.raises(JournalError, match="no episode"):
        recorder.finish(0)


def test_a_full_disk_refuses_the_episode(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, min_free_mb=1 << 40, queue_ticks=10, jpeg_quality=90)
    with pytest.raises(JournalError, match="MB are free"):
        recorder.start(META)
    assert recorder.active is None
    recorder.close()


def test_closing_keeps_the_running_episode_as_unfinished(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, min_free_mb=0, queue_ticks=10, jpeg_quality=90)
    recorder.start(META)
    recorder.append(sample(0), {"overhead": picture(0)})
    recorder.close()
    assert [path.name for path in (tmp_path / "unfinished").iterdir()] == ["e.mcap.part"]


def test_a_writer_that_dies_fails_its_episode_and_every_later_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object) -> None:
        raise TypeError("a bug")

    lines: list[str] = []
    monkeypatch.setattr("agent.recording.journal.EpisodeWriter.append", bug)
    recorder = Recorder(
        tmp_path, min_free_mb=0, queue_ticks=10, jpeg_quality=90, on_crash=lines.append
    )
    recorder.start(META)
    for tick in range(3):
        recorder.append(sample(tick), {"overhead": picture(tick)})
    line = "thread journal died: TypeError: a bug"
    with pytest.raises(JournalError, match=line):
        recorder.finish(0, timeout_s=5.0)
    assert lines == [line]
    with pytest.raises(JournalError, match=line):
        recorder.start(META, timeout_s=5.0)
    recorder.close()
