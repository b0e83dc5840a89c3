"""The episode journal: what was written is what is read, whatever happens in between."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from agent.errors import BadJournal, JournalError, UnreadableJournal
from agent.recording.journal import (
    EpisodeEnd,
    EpisodeMeta,
    EpisodeReader,
    EpisodeWriter,
    Sample,
    recover,
)
from agent.recording.tally import Tally

JOINTS = ("a", "b", "c", "d", "e", "f")
VECTOR = arrays(np.float32, 6, elements=st.floats(width=32, allow_nan=False, allow_infinity=False))


def meta(episode_id: str = "20260101T000000-000-abcdef") -> EpisodeMeta:
    return EpisodeMeta(
        episode_id=episode_id,
        task="Pick up the red cube",
        fps=30.0,
        robot_id="arm",
        state_names=JOINTS,
        action_names=JOINTS,
        environment_names=("cube.x_m", "cube.y_m"),
        cameras={"overhead": (96, 128)},
        started_unix_s=1.7e9,
        calibration_digest="00",
    )


def sample(tick: int, sequence: int | None = None) -> Sample:
    state = np.arange(6, dtype=np.float32) / 3 + tick
    return Sample(
        tick=tick,
        t_observed_s=100.0 + tick / 30,
        t_sent_s=100.002 + tick / 30,
        state=state,
        action=state + 1,
        requested=state + 2,
        environment=np.array([0.2, 0.1], np.float32),
        camera_sequence={"overhead": tick if sequence is None else sequence},
        telemetry={"load": [1.5] * 6},
    )


def write(folder: Path, ticks: int, episode_id: str = "e") -> Path:
    writer = EpisodeWriter(folder, meta(episode_id))
    for tick in range(ticks):
        writer.append(sample(tick), {"overhead": b"jpeg %d" % tick})
    return writer.finish(missed_deadlines=2)


def test_an_episode_comes_back_bit_for_bit(tmp_path: Path) -> None:
    reader = EpisodeReader(write(tmp_path, 5))
    assert reader.meta == meta("e")
    assert reader.end is not None
    assert (reader.end.frames, reader.end.missed_deadlines) == (5, 2)
    assert reader.end.duration_s == pytest.approx(4 / 30)
    for tick, (got, jpegs) in enumerate(reader.samples()):
        want = sample(tick)
        assert (got.tick, got.t_observed_s, got.t_sent_s) == (
            tick,
            want.t_observed_s,
            want.t_sent_s,
        )
        for name in ("state", "action", "requested", "environment"):
            assert getattr(got, name).tobytes() == getattr(want, name).tobytes()
        assert got.telemetry == want.telemetry
        assert jpegs == {"overhead": b"jpeg %d" % tick}


def test_a_rollout_tells_its_policy_who_commanded_and_how_it_went(tmp_path: Path) -> None:
    of_policy = dataclasses.replace(meta("e"), source="rollout", policy="7", policy_digest="ab")
    writer = EpisodeWriter(tmp_path, of_policy)
    for tick in range(6):
        writer.append(dataclasses.replace(sample(tick), intervention=tick in (2, 3)), {})
    reader = EpisodeReader(writer.finish(success=False))
    assert reader.meta == of_policy
    assert reader.end is not None
    assert (reader.end.success, reader.end.intervention_frames) == (False, 2)
    assert [got.tick for got, _ in reader.samples() if got.intervention] == [2, 3]


@given(VECTOR)
def test_every_float32_survives_json(vector: np.ndarray) -> None:
    want = Sample(0, 0.0, 0.0, vector, vector, vector, vector)
    assert Sample.from_json(want.to_json()).state.tobytes() == vector.tobytes()


def test_a_picture_that_did_not_change_is_written_once_and_read_at_each_tick(
    tmp_path: Path,
) -> None:
    picture = b"\xff\xd8" + os.urandom(20_000)
    writer = EpisodeWriter(tmp_path, meta("e"))
    for tick in range(10):
        writer.append(sample(tick, sequence=7), {"overhead": picture})
    path = writer.finish()
    assert path.stat().st_size < 40_000
    assert [jpegs["overhead"] for _, jpegs in EpisodeReader(path).samples()] == [picture] * 10


def test_an_unfinished_episode_has_no_final_name_and_its_ticks_can_be_read(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path, meta("e"))
    for tick in range(4):
        writer.append(sample(tick), {})
    assert not list(tmp_path.glob("*.mcap"))
    reader = EpisodeReader(tmp_path / "e.mcap.part")
    assert reader.end is None
    assert [got.tick for got, _ in reader.samples()] == [0, 1, 2, 3]
    writer.discard()
    assert not list(tmp_path.iterdir())


def test_an_episode_without_frames_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="no frames"):
        EpisodeWriter(tmp_path, meta("e")).finish()
    assert not list(tmp_path.iterdir())


def test_a_finished_episode_takes_nothing_more(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path, meta("e"))
    writer.append(sample(0), {})
    path = writer.finish()
    with pytest.raises(JournalError, match="already closed"):
        writer.append(sample(1), {})
    writer.discard()
    assert path.exists()


def test_recover_keeps_what_a_crash_left_aside(tmp_path: Path) -> None:
    write(tmp_path, 3, "done")
    writer = EpisodeWriter(tmp_path, meta("crashed"))
    writer.append(sample(0), {})
    writer.abandon()
    moved = recover(tmp_path)
    assert moved == [tmp_path / "unfinished" / "crashed.mcap.part"]
    assert [got.tick for got, _ in EpisodeReader(moved[0]).samples()] == [0]
    assert recover(tmp_path) == []
    assert [path.name for path in tmp_path.glob("*.mcap")] == ["done.mcap"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_file_cut_anywhere_gives_a_prefix_or_one_clear_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    whole = write(folder, 6).read_bytes()
    cut = folder / "cut.mcap.part"
    cut.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        ticks = [got.tick for got, _ in EpisodeReader(cut).samples()]
    except BadJournal:
        return
    assert ticks == list(range(len(ticks)))


def test_a_flipped_bit_in_a_finished_episode_is_found(tmp_path: Path) -> None:
    path = write(tmp_path, 6)
    data = bytearray(path.read_bytes())
    data[data.index(b"jpeg 3") + 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadJournal, match="damaged"):
        list(EpisodeReader(path).samples())


def test_something_else_is_no_journal(tmp_path: Path) -> None:
    path = tmp_path / "x.mcap"
    path.write_bytes(b"not a journal at all")
    with pytest.raises(BadJournal, match=r"x\.mcap: .*not an episode journal") as caught:
        EpisodeReader(path)
    assert caught.value.path == path


def read_whole(path: Path) -> int | None:
    """How many samples it gives; None when it raised BadJournal. Nothing else may come."""
    try:
        return len(list(EpisodeReader(path).samples()))
    except BadJournal as error:
        assert error.path == path
        assert path.name in str(error)
        return None


@pytest.fixture
def small(tmp_path: Path) -> bytes:
    """A whole episode, small enough to try every byte of it."""
    jpeg = cv2.imencode(".jpg", np.zeros((8, 8), np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 1])[1]
    writer = EpisodeWriter(tmp_path, meta("small"))
    for tick in range(2):
        writer.append(sample(tick, sequence=0), {"overhead": jpeg.tobytes()})
    data = writer.finish().read_bytes()
    assert 1500 < len(data) < 4000
    return data


def test_every_byte_counts(tmp_path: Path, small: bytes) -> None:
    """One wrong byte anywhere in a finished episode is found; in an unfinished one it is borne."""
    finished, part = tmp_path / "x.mcap", tmp_path / "x.mcap.part"
    finished.write_bytes(small)
    part.hardlink_to(finished)
    assert read_whole(finished) == 2
    with finished.open("rb+", buffering=0) as file:
        for at, right in enumerate(small):
            for pattern in (1 << at % 8, 0xFF):
                os.pwrite(file.fileno(), bytes([right ^ pattern]), at)
                assert read_whole(finished) is None, f"byte {at}"
                read_whole(part)  # as unfinished its checksum comes last: the parsers see it
            os.pwrite(file.fileno(), bytes([right]), at)


def test_every_length_counts(tmp_path: Path, small: bytes) -> None:
    finished, part = tmp_path / "x.mcap", tmp_path / "x.mcap.part"
    finished.write_bytes(small)
    part.hardlink_to(finished)
    counts: list[int | None] = []
    for length in reversed(range(len(small))):
        os.truncate(finished, length)
        assert read_whole(finished) is None, f"length {length}"
        counts.append(read_whole(part))
        os.truncate(finished, length + 64)  # zeros, as a power cut leaves them
        assert read_whole(part) in (counts[-1], None), "zeros are never taken for a sample"
        os.truncate(finished, length)
    told = [count for count in counts if count is not None]
    assert counts == told + [None] * (len(counts) - len(told)), "readable once the header is there"
    assert told == sorted(told, reverse=True)
    assert (told[0], told[-1]) == (2, 0)


@settings(
    max_examples=500,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_many_wrong_bytes_raise_no_other_error(
    tmp_path: Path, small: bytes, data: st.DataObject
) -> None:
    damaged = bytearray(small)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(small)))
        gone = data.draw(st.sampled_from([0, 1, 2, 4, 8, 40]))
        filled = st.sampled_from([b"\xff" * 8, b"\x7f" * 8, bytes(8), small[:60]])
        damaged[at : at + gone] = data.draw(st.binary(max_size=12) | filled)
    for name in ("x.mcap", "x.mcap.part"):
        (tmp_path / name).write_bytes(damaged)
        read_whole(tmp_path / name)


def test_an_absurd_length_is_not_believed(tmp_path: Path, small: bytes) -> None:
    """Whichever eight or four bytes are taken for a length, no more than the file is read."""
    path = tmp_path / "x.mcap.part"
    tracemalloc.start()
    try:
        for at in range(8, len(small) - 8, 5):
            for absurd in (b"\xff\xff\xff\x3f", b"\xff" * 8, b"\0\0\0\0\1\0\0\0"):
                path.write_bytes(small[:at] + absurd + small[at + len(absurd) :])
                read_whole(path)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


GOOD_SAMPLE = json.loads(sample(0).to_json())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (b"[" * 100_000, "recursion"),
        (b'{"a":' * 100_000, "recursion"),
        (b"7" * 100_000, ""),
        (b"\xff{}", ""),
        (b"", ""),
        (b"null", ""),
        (b" " * (1 << 20) + b"{}", "too long"),
        ({"state": [0.0] * 5}, "state has 5 numbers, not 6"),
        ({"action": [0.0] * 7}, "action has 7 numbers, not 6"),
        ({"requested": []}, "requested has 0 numbers"),
        ({"environment": [0.0]}, "environment has 1 numbers"),
        ({"state": [[0.0]] * 6}, "state"),
        ({"state": [float("nan")] * 6}, "state"),
        ({"state": [float("inf")] * 6}, "state"),
        ({"state": [1e39] * 6}, "too large for float32"),
        ({"state": [10**400] * 6}, "state"),
        ({"state": "abcdef"}, "state"),
        ({"state": {"a": 1}}, "state"),
        ({"state": None}, "state"),
        ({"tick": float("inf")}, "tick"),
        ({"t_observed_s": float("nan")}, "t_observed_s"),
        ({"camera_sequence": {"overhead": "x"}}, "camera_sequence"),
        ({"camera_sequence": []}, "camera_sequence"),
        ({"telemetry": 1}, "telemetry"),
    ],
)
def test_a_wrong_sample_with_a_right_checksum_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: bytes | dict[str, object], words: str
) -> None:
    forged = wrong if isinstance(wrong, bytes) else json.dumps(GOOD_SAMPLE | wrong).encode()
    monkeypatch.setattr(Sample, "to_json", lambda _: forged)
    path = write(tmp_path, 1)
    with pytest.raises(BadJournal, match=rf"(?s)e\.mcap: .*{words}") as caught:
        list(EpisodeReader(path).samples())
    assert len(str(caught.value)) < 300, "one line, without the megabytes that are wrong"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"fps": 0}, "fps"),
        ({"fps": float("inf")}, "fps"),
        ({"cameras": {"overhead": [-1, 4]}}, "cameras"),
        ({"cameras": {"overhead": [1e9, 1e9]}}, "cameras"),
        ({"cameras": {"overhead": [4]}}, "cameras"),
        ({"cameras": {}}, "'camera/overhead' has no place"),
        ({"state_names": "abcdef"}, "state_names"),
        ({"started_unix_s": None}, "started_unix_s"),
        ({"task": 5}, "task"),
    ],
)
def test_wrong_metadata_with_a_right_checksum_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, object], words: str
) -> None:
    forged = json.dumps(json.loads(meta("e").to_json()) | wrong)
    monkeypatch.setattr(EpisodeMeta, "to_json", lambda _: forged)
    path = write(tmp_path, 1)
    with pytest.raises(BadJournal, match=words):
        list(EpisodeReader(path).samples())


@pytest.mark.parametrize("frames", [0, 2, 10**30])
def test_an_end_record_that_does_not_count_right_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames: int
) -> None:
    forged = json.dumps({"frames": frames, "missed_deadlines": 0, "duration_s": 0.0})
    monkeypatch.setattr(EpisodeEnd, "to_json", lambda _: forged)
    path = write(tmp_path, 1)
    with pytest.raises(BadJournal, match=r"frames|1 samples; its end record says"):
        list(EpisodeReader(path).samples())


def test_a_journal_that_the_disk_does_not_give_is_not_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "x.mcap"
    path.mkdir()
    with pytest.raises(UnreadableJournal, match=r"x\.mcap: cannot be read"):
        EpisodeReader(path)


def test_the_tally_counts_finished_episodes_wherever_they_were_moved(tmp_path: Path) -> None:
    write(tmp_path, 3, "one")
    write(tmp_path / "ingested", 4, "two")
    writer = EpisodeWriter(tmp_path, meta("three"))
    writer.append(sample(0), {})
    writer.abandon()
    recover(tmp_path)
    (tmp_path / "bad.mcap").write_bytes(b"rubbish")
    (tmp_path / "odd.mcap").mkdir()
    tally = Tally.of_folder(tmp_path)
    assert (tally.episodes, tally.frames, tally.session_episodes) == (2, 7, 0)
    tally.add(5)
    assert (tally.episodes, tally.frames) == (3, 12)
    assert (tally.session_episodes, tally.session_frames) == (1, 5)


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_journal as t
writer = t.EpisodeWriter(Path(sys.argv[1]), t.meta("killed"))
for tick in range(100_000):
    writer.append(t.sample(tick), {"overhead": b"x" * 5000})
    print(tick, flush=True)
"""


def test_a_kill_loses_no_tick_that_was_appended(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parent)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 40:
            process.send_signal(signal.SIGKILL)
            break
    last = max([40, *(int(line) for line in process.stdout.read().split())])
    process.wait()
    ticks = [got.tick for got, _ in EpisodeReader(tmp_path / "killed.mcap.part").samples()]
    assert ticks[: last + 1] == list(range(last + 1))
