"""The episode journal: what was written is what is read, whatever happens in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from agent.errors import BadJournal, JournalError
from agent.recording.journal import EpisodeMeta, EpisodeReader, EpisodeWriter, Sample, recover
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
    with pytest.raises(BadJournal, match="not an episode journal"):
        EpisodeReader(path)


def test_the_tally_counts_finished_episodes_wherever_they_were_moved(tmp_path: Path) -> None:
    write(tmp_path, 3, "one")
    write(tmp_path / "ingested", 4, "two")
    writer = EpisodeWriter(tmp_path, meta("three"))
    writer.append(sample(0), {})
    writer.abandon()
    recover(tmp_path)
    (tmp_path / "bad.mcap").write_bytes(b"rubbish")
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
