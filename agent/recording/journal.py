"""One episode, one MCAP file: written a record at a time, renamed when it is finished.

While an episode runs its file ends in `.mcap.part`. Each record is flushed to the kernel as it is
written (a killed process loses none); `finish` makes the file durable before it takes its final
name. Whoever reads `*.mcap` never sees an unfinished episode.

The file is unchunked: the MCAP library holds chunks back in its own memory, which a kill would
lose. Topics: `sample` (JSON), `camera/<name>` (the JPEG bytes, `sequence` = the frame's number);
metadata records: `episode` at the start, `end` at the finish.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from mcap.exceptions import McapError
from mcap.reader import SeekingReader
from mcap.records import Channel, Message, Metadata
from mcap.stream_reader import CRCValidationError, StreamReader
from mcap.writer import IndexType, Writer
from numpy.typing import NDArray

from agent.errors import BadJournal, JournalError
from host.files import sync_folder

FINISHED = ".mcap"
PART = ".mcap.part"
UNFINISHED_FOLDER = "unfinished"
SAMPLE_TOPIC = "sample"
CAMERA_TOPIC = "camera/"
PROFILE = "armada.episode.v1"
MAX_RECORD_BYTES = 64 << 20

# What the MCAP library raises on bytes that are no MCAP, or end too soon.
_DAMAGE = (McapError, CRCValidationError, EOFError, KeyError, struct.error, UnicodeDecodeError)

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class EpisodeMeta:
    """What is true of the whole episode; written before its first sample."""

    episode_id: str  # sorts by time; also the file's name
    task: str
    fps: float  # nominal; the samples carry the measured times
    robot_id: str
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    environment_names: tuple[str, ...]
    cameras: dict[str, tuple[int, int]]  # name -> (height, width)
    started_unix_s: float
    calibration_digest: str

    def to_json(self) -> str:
        """Compact JSON."""
        return json.dumps(asdict(self), separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> EpisodeMeta:
        """Raises BadJournal."""
        try:
            table = json.loads(text)
            return cls(
                episode_id=str(table["episode_id"]),
                task=str(table["task"]),
                fps=float(table["fps"]),
                robot_id=str(table["robot_id"]),
                state_names=tuple(table["state_names"]),
                action_names=tuple(table["action_names"]),
                environment_names=tuple(table["environment_names"]),
                cameras={name: (int(h), int(w)) for name, (h, w) in table["cameras"].items()},
                started_unix_s=float(table["started_unix_s"]),
                calibration_digest=str(table["calibration_digest"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadJournal(f"episode metadata is damaged: {error!r}") from error


@dataclass(frozen=True)
class Sample:
    """One tick: what was measured, what was asked for, and what was sent.

    Times are monotonic seconds of the recording host. Vectors are float32 in calibrated joint
    units; `environment` is float32 [E] in metres. `camera_sequence` names the frame of each camera
    that was the newest at this tick. `telemetry` is JSON: loads, temperatures and so on.
    """

    tick: int
    t_observed_s: float
    t_sent_s: float
    state: Vector
    action: Vector  # what was SENT to the servos, after limits
    requested: Vector  # what the source asked for
    environment: Vector
    camera_sequence: dict[str, int] = field(default_factory=dict)
    telemetry: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """Compact JSON. A float32 written as its shortest decimal comes back bit for bit."""
        table = {
            "tick": self.tick,
            "t_observed_s": self.t_observed_s,
            "t_sent_s": self.t_sent_s,
            "state": _numbers(self.state),
            "action": _numbers(self.action),
            "requested": _numbers(self.requested),
            "environment": _numbers(self.environment),
            "camera_sequence": self.camera_sequence,
            "telemetry": self.telemetry,
        }
        return json.dumps(table, separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Sample:
        """Raises BadJournal."""
        try:
            table = json.loads(data)
            return cls(
                tick=int(table["tick"]),
                t_observed_s=float(table["t_observed_s"]),
                t_sent_s=float(table["t_sent_s"]),
                state=np.array(table["state"], np.float32),
                action=np.array(table["action"], np.float32),
                requested=np.array(table["requested"], np.float32),
                environment=np.array(table["environment"], np.float32),
                camera_sequence={str(k): int(v) for k, v in table["camera_sequence"].items()},
                telemetry=dict(table["telemetry"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadJournal(f"sample is damaged: {error!r}") from error


@dataclass(frozen=True)
class EpisodeEnd:
    """What is known when the episode is finished."""

    frames: int
    missed_deadlines: int
    duration_s: float

    def to_json(self) -> str:
        """Compact JSON."""
        return json.dumps(asdict(self), separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> EpisodeEnd:
        """Raises BadJournal."""
        try:
            table = json.loads(text)
            return cls(
                int(table["frames"]), int(table["missed_deadlines"]), float(table["duration_s"])
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BadJournal(f"episode end is damaged: {error!r}") from error


class EpisodeWriter:
    """Writes one episode. Not thread-safe: one thread appends, finishes or discards.

    Every method raises JournalError when the disk refuses.
    """

    def __init__(self, folder: Path, meta: EpisodeMeta) -> None:
        self._final = folder / f"{meta.episode_id}{FINISHED}"
        self._part = folder / f"{meta.episode_id}{PART}"
        self._frames = 0
        self._first_s = 0.0
        self._last_s = 0.0
        self._written_sequence: dict[str, int] = {}
        self._cameras: dict[str, int] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] | None = self._part.open("xb")
            self._writer = Writer(
                self._file,
                index_types=IndexType.METADATA,
                use_chunking=False,
                enable_data_crcs=True,
            )
            self._writer.start(profile=PROFILE)
            self._writer.add_metadata("episode", {"json": meta.to_json()})
            schema = self._writer.register_schema("armada.Sample", "jsonschema", b"{}")
            self._sample = self._writer.register_channel(SAMPLE_TOPIC, "json", schema)
            for name in meta.cameras:
                topic = CAMERA_TOPIC + name
                self._cameras[name] = self._writer.register_channel(topic, "jpeg", 0)
            self._file.flush()
        except OSError as error:
            raise JournalError(f"{self._part}: cannot start the episode: {error}") from error

    @property
    def frames(self) -> int:
        """Samples appended so far."""
        return self._frames

    def append(self, sample: Sample, jpegs: dict[str, bytes]) -> None:
        """Write one tick, then flush it to the kernel.

        `jpegs` holds each camera's newest picture; one whose sequence number was already written
        is not written again.
        """
        file = self._open_file()
        stamp_ns = round(sample.t_observed_s * 1e9)
        try:
            for name, jpeg in jpegs.items():
                sequence = sample.camera_sequence[name]
                if self._written_sequence.get(name) == sequence:
                    continue
                channel = self._cameras[name]
                self._writer.add_message(channel, stamp_ns, jpeg, stamp_ns, sequence & 0xFFFFFFFF)
                self._written_sequence[name] = sequence
            sent_ns = round(sample.t_sent_s * 1e9)
            self._writer.add_message(
                self._sample, stamp_ns, sample.to_json(), sent_ns, self._frames
            )
            file.flush()
        except KeyError as error:
            raise JournalError(f"camera {error} has no place in this episode") from error
        except (OSError, ValueError) as error:
            raise JournalError(f"{self._part}: cannot be written: {error}") from error
        if self._frames == 0:
            self._first_s = sample.t_observed_s
        self._last_s = sample.t_observed_s
        self._frames += 1

    def finish(self, missed_deadlines: int = 0) -> Path:
        """Make the episode durable, give it its final name, and say where it is.

        When this returns, the episode survives a kill and a loss of power. An episode without a
        sample is refused with JournalError, and its file removed.
        """
        if self._frames == 0:
            self.discard()
            raise JournalError("the episode has no frames; nothing was saved")
        file = self._open_file()
        end = EpisodeEnd(self._frames, missed_deadlines, self._last_s - self._first_s)
        try:
            self._writer.add_metadata("end", {"json": end.to_json()})
            self._writer.finish()
            file.flush()
            os.fsync(file.fileno())
            file.close()
            self._file = None
            self._part.rename(self._final)
            sync_folder(self._final.parent)
        except OSError as error:
            raise JournalError(f"{self._part}: cannot be finished: {error}") from error
        return self._final

    def discard(self) -> None:
        """Remove the episode. Does nothing after `finish` or a second time."""
        if self._file is None:
            return
        try:
            self._file.close()
            self._file = None
            self._part.unlink(missing_ok=True)
        except OSError as error:
            raise JournalError(f"{self._part}: cannot be discarded: {error}") from error

    def abandon(self) -> None:
        """Close the file and leave it as `.part`, for `recover` to keep aside."""
        if self._file is not None:
            file, self._file = self._file, None
            try:
                file.close()
            except OSError as error:
                raise JournalError(f"{self._part}: cannot be closed: {error}") from error

    def _open_file(self) -> IO[bytes]:
        if self._file is None:
            raise JournalError(f"{self._final.name}: this episode is already closed")
        return self._file


class EpisodeReader:
    """Reads an episode, finished or not (`end` is None then).

    Raises BadJournal if the file is not one of ours or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with path.open("rb") as file:
                for record in StreamReader(file, record_size_limit=MAX_RECORD_BYTES).records:
                    if isinstance(record, Metadata) and record.name == "episode":
                        self._meta = EpisodeMeta.from_json(record.metadata["json"])
                        break
                    if isinstance(record, Message):
                        raise BadJournal(f"{path}: a sample comes before the episode's metadata")
                else:
                    raise BadJournal(f"{path}: no episode metadata")
            self._end = self._read_end()
        except _DAMAGE as error:
            raise BadJournal(f"{path}: not an episode journal: {error!r}") from error

    @property
    def meta(self) -> EpisodeMeta:
        """What is true of the whole episode."""
        return self._meta

    @property
    def end(self) -> EpisodeEnd | None:
        """None if the episode was never finished."""
        return self._end

    def samples(self) -> Iterator[tuple[Sample, dict[str, bytes]]]:
        """Each sample with each camera's newest JPEG at that tick, in order.

        An unfinished episode ends at its last complete record. Raises BadJournal when a finished
        one is damaged.
        """
        newest: dict[str, bytes] = {}
        topics: dict[int, str] = {}
        try:
            with self._path.open("rb") as file:
                reader = StreamReader(
                    file, record_size_limit=MAX_RECORD_BYTES, validate_crcs=self._end is not None
                )
                for record in reader.records:
                    if isinstance(record, Channel):
                        topics[record.id] = record.topic
                    elif isinstance(record, Message):
                        topic = topics[record.channel_id]
                        if topic.startswith(CAMERA_TOPIC):
                            newest[topic.removeprefix(CAMERA_TOPIC)] = record.data
                        elif topic == SAMPLE_TOPIC:
                            yield Sample.from_json(record.data), dict(newest)
        except _DAMAGE as error:
            if self._end is not None:
                raise BadJournal(f"{self._path}: damaged: {error!r}") from error

    def _read_end(self) -> EpisodeEnd | None:
        """The `end` record, found through the file's index: quick however long the episode."""
        if self._path.name.endswith(PART):
            return None
        with self._path.open("rb") as file:
            for record in SeekingReader(file).iter_metadata():
                if record.name == "end":
                    return EpisodeEnd.from_json(record.metadata["json"])
        return None


def recover(folder: Path) -> list[Path]:
    """Move what a crash left unfinished to `unfinished/`; returns the new places.

    Call before the first EpisodeWriter opens a file in `folder`. Raises JournalError.
    """
    aside = folder / UNFINISHED_FOLDER
    moved: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part in sorted(folder.glob(f"*{PART}")):
            aside.mkdir(exist_ok=True)
            target = aside / part.name
            part.rename(target)
            moved.append(target)
        if moved:
            sync_folder(aside)
            sync_folder(folder)
    except OSError as error:
        raise JournalError(f"{folder}: cannot be recovered: {error}") from error
    return moved


def _numbers(vector: Vector) -> list[float]:
    """Floats as JSON; float32 widened to float64 keeps its value exactly."""
    return [float(value) for value in vector]
