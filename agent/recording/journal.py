"""One episode, one MCAP file: written a record at a time, renamed when it is finished.

While an episode runs its file ends in `.mcap.part`. Each record is flushed to the kernel as it is
written (a killed process loses none); `finish` makes the file durable before it takes its final
name. Whoever reads `*.mcap` never sees an unfinished episode. Ours, because a LeRobotDataset cannot
be read until it is closed: a kill would cost every episode in it.

The file is unchunked: the MCAP library holds chunks back in its own memory, which a kill would
lose. Topics: `sample` (JSON), `camera/<name>` (the JPEG bytes, `sequence` = the frame's number);
metadata records: `episode` at the start, `end` at the finish.

Who commanded is told twice: `source` for the episode, `intervention` for each tick, true where a
person had taken over from the policy. Whether the task was done is known at the end, or never.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import numpy as np
from mcap.records import Channel, Header, Message, Metadata
from mcap.writer import IndexType, Writer
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, GetPydanticSchema, TypeAdapter, ValidationError
from pydantic_core import core_schema

from agent.errors import BadJournal, JournalError, UnreadableJournal
from agent.recording.mcap_file import MAX_TEXT_BYTES, Damaged, data_records, indexed_metadata
from host.complaints import first_complaint
from host.files import sync_folder

FINISHED = ".mcap"
PART = ".mcap.part"
UNFINISHED_FOLDER = "unfinished"
SAMPLE_TOPIC = "sample"
CAMERA_TOPIC = "camera/"
PROFILE = "armada.episode.v2"


def _vector(values: list[float]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        vector = np.array(values, np.float32)
    if not np.isfinite(vector).all():
        raise ValueError("a number is too large for float32")
    return vector


type _Pixels = Annotated[int, Field(ge=1, le=8192)]
# In memory an array, in JSON a list of finite numbers.
Vector = Annotated[
    NDArray[np.float32],
    GetPydanticSchema(
        lambda _, schema_of: core_schema.no_info_after_validator_function(
            _vector, schema_of(list[FiniteFloat])
        )
    ),
]


@dataclass(frozen=True)
class Origin:
    """Where an episode that was not recorded here comes from."""

    dataset: Annotated[str, Field(max_length=1000)]  # a repository's id, or a folder
    episode: Annotated[int, Field(ge=0)]  # its index there
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]  # of its numbers, as they were there


@dataclass(frozen=True)
class EpisodeMeta:
    """What is true of the whole episode; written before its first sample."""

    episode_id: str  # sorts by time; also the file's name
    task: str
    fps: Annotated[FiniteFloat, Field(ge=1, le=1000)]  # nominal; samples carry the measured times
    robot_id: str
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    environment_names: tuple[str, ...]
    cameras: dict[str, tuple[_Pixels, _Pixels]]  # name -> (height, width)
    started_unix_s: FiniteFloat
    calibration_digest: str
    source: Literal["teleoperation", "rollout"] = "teleoperation"  # who had the arm at the start
    policy: str | None = None  # of a rollout: a release's version, or `local`
    policy_digest: str | None = None  # SHA-256 hex of its graph
    origin: Origin | None = None  # None: recorded here
    evaluation: bool = False  # never trained on

    def to_json(self) -> str:
        """Compact JSON."""
        return json.dumps(asdict(self), separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True)
class Sample:
    """One tick: what was measured, what was asked for, and what was sent.

    Times are monotonic seconds of the recording host. Vectors are float32 in calibrated joint
    units; `environment` is float32 [E] in metres. `camera_sequence` names the frame of each camera
    that was the newest at this tick. `telemetry` is JSON: loads, temperatures and so on.
    """

    tick: int
    t_observed_s: FiniteFloat
    t_sent_s: FiniteFloat
    state: Vector
    action: Vector  # what was SENT to the servos, after limits
    requested: Vector  # what the source asked for
    environment: Vector
    camera_sequence: dict[str, int] = field(default_factory=dict)
    telemetry: dict[str, Any] = field(default_factory=dict)
    intervention: bool = False  # a person commanded at this tick, within a rollout

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
            "intervention": self.intervention,
        }
        return json.dumps(table, separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Sample:
        """Raises ValueError: a number that is not finite, a field that is missing or wrong."""
        return _SAMPLE.validate_json(data)


@dataclass(frozen=True)
class EpisodeEnd:
    """What is known when the episode is finished."""

    frames: Annotated[int, Field(ge=1)]
    missed_deadlines: Annotated[int, Field(ge=0)]
    duration_s: FiniteFloat
    intervention_frames: Annotated[int, Field(ge=0)] = 0
    success: bool | None = None  # None: nobody said

    def to_json(self) -> str:
        """Compact JSON."""
        return json.dumps(asdict(self), separators=(",", ":"), allow_nan=False)


_META, _SAMPLE, _END = TypeAdapter(EpisodeMeta), TypeAdapter(Sample), TypeAdapter(EpisodeEnd)


class EpisodeWriter:
    """Writes one episode. Not thread-safe: one thread appends, finishes or discards.

    Every method raises JournalError when the disk refuses.
    """

    def __init__(self, folder: Path, meta: EpisodeMeta) -> None:
        self._final = folder / f"{meta.episode_id}{FINISHED}"
        self._part = folder / f"{meta.episode_id}{PART}"
        self._frames = self._intervention_frames = 0
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
        self._intervention_frames += sample.intervention

    def finish(self, missed_deadlines: int = 0, success: bool | None = None) -> Path:
        """Make the episode durable, give it its final name, and say where it is.

        When this returns, the episode survives a kill and a loss of power. An episode without a
        sample is refused with JournalError, and its file removed.
        """
        if self._frames == 0:
            self.discard()
            raise JournalError("the episode has no frames; nothing was saved")
        file = self._open_file()
        end = EpisodeEnd(
            self._frames,
            missed_deadlines,
            self._last_s - self._first_s,
            self._intervention_frames,
            success,
        )
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

    Whatever the bytes, each method raises BadJournal if the file is not one of ours or is damaged,
    UnreadableJournal if the disk refuses, and nothing else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._end: EpisodeEnd | None = None
        finished = not path.name.endswith(PART)
        with _reading(path) as file:
            self._meta = _read_meta(file)
            if finished:  # found through the file's index: quick however long the episode
                self._end = _END.validate_json(_json_of(indexed_metadata(file, "end")))

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

        A finished episode that was read to its end had the right checksum, and as many samples as
        its end record says. An unfinished one ends at its last complete record.
        """
        newest: dict[str, bytes] = {}
        topics: dict[int, str] = {}
        count = 0
        with _reading(self._path) as file:
            for record in data_records(file, finished=self._end is not None):
                if isinstance(record, Channel):
                    topics[record.id] = record.topic
                elif isinstance(record, Message):
                    topic = topics.get(record.channel_id, "unknown")
                    camera = topic.removeprefix(CAMERA_TOPIC)
                    if topic == SAMPLE_TOPIC:
                        yield self._sample(record.data), dict(newest)
                        count += 1
                    elif topic != camera and camera in self._meta.cameras:
                        newest[camera] = record.data
                    else:
                        raise Damaged(f"a message of the topic {topic!r} has no place in it")
            if self._end is not None and count != self._end.frames:
                raise Damaged(f"{count} samples; its end record says {self._end.frames}")

    def _sample(self, data: bytes) -> Sample:
        if len(data) > MAX_TEXT_BYTES:
            raise Damaged(f"a sample of {len(data)} bytes is too long")
        sample, meta = Sample.from_json(data), self._meta
        for name, vector, names in (
            ("state", sample.state, meta.state_names),
            ("action", sample.action, meta.action_names),
            ("requested", sample.requested, meta.action_names),
            ("environment", sample.environment, meta.environment_names),
        ):
            if len(vector) != len(names):
                raise Damaged(f"{name} has {len(vector)} numbers, not {len(names)}")
        return sample


@contextmanager
def _reading(path: Path) -> Iterator[IO[bytes]]:
    """An open file; what its bytes or the disk do wrong becomes an error that names it."""
    try:
        with path.open("rb") as file:
            yield file
    except ValidationError as error:
        raise BadJournal(path, f"damaged: {first_complaint(error, 'JSON')}") from error
    except Damaged as error:
        raise BadJournal(path, f"damaged, or not an episode journal: {error}") from error
    except OSError as error:
        raise UnreadableJournal(path, f"cannot be read: {error}") from error


def _read_meta(file: IO[bytes]) -> EpisodeMeta:
    for record in data_records(file, finished=False):
        match record:
            case Header() if record.profile != PROFILE:
                raise Damaged(f"its profile is {record.profile[:40]!r}, not {PROFILE!r}")
            case Metadata(name="episode"):
                return _META.validate_json(_json_of(record))
            case Message():
                break
    raise Damaged("no episode metadata")


def _json_of(record: Metadata) -> str:
    return str(record.metadata.get("json", ""))


def recover(folder: Path) -> list[Path]:
    """Move what a crash left unfinished to `unfinished/`; returns the new places.

    Call before the first EpisodeWriter opens a file in `folder`. Raises JournalError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return move_aside(sorted(folder.glob(f"*{PART}")), folder / UNFINISHED_FOLDER)
    except OSError as error:
        raise JournalError(f"{folder}: cannot be recovered: {error}") from error


def move_aside(paths: Sequence[Path], aside: Path) -> list[Path]:
    """Move journals durably into a folder beside them; returns the new places. Raises OSError."""
    moved: list[Path] = []
    for path in paths:
        aside.mkdir(exist_ok=True)
        moved.append(path.rename(aside / path.name))
    if moved:
        sync_folder(aside)
        sync_folder(aside.parent)
    return moved


def _numbers(vector: Vector) -> list[float]:
    """Floats as JSON; float32 widened to float64 keeps its value exactly."""
    return [float(value) for value in vector]
