"""A LeRobotDataset of version 2.1 or 3.0 in a folder: what it says of itself, episode by episode.

Read without LeRobot, whose loader takes version 3.0 alone and converts a 2.1 in place. Everything
in it is a stranger's: bounded, and held against what the files really have. Paths are LeRobot's
own; a dataset that states others is refused, so that no text of it is ever used as a format.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.dataset.errors import BadForeignDataset
from host.complaints import first_complaint
from policy.spec import ACTION, IMAGES, STATE

V21: Literal["v2.1"] = "v2.1"
V30: Literal["v3.0"] = "v3.0"
MAX_EPISODES = 100_000
MAX_FRAMES = 1_000_000  # of one episode: nine hours at 30 Hz
MAX_INFO_BYTES = 4 << 20
MAX_LINES_BYTES = 256 << 20
MAX_VALUES = 64  # in a state or an action
CHUNK_EPISODES = 1000  # LeRobot's own

_PATHS = {
    V21: (
        "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    ),
    V30: (
        "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    ),
}
_CAMERA_PREFIX = f"{IMAGES}."
_VECTORS = (STATE, ACTION)


class _Stated(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ForeignFeature(_Stated):
    """One column, as `info.json` has it; names may be a list, or LeRobot's older nesting of one."""

    dtype: Annotated[str, Field(max_length=32)]
    shape: Annotated[tuple[Annotated[int, Field(ge=1, le=8192)], ...], Field(max_length=4)] = ()
    names: Any = None

    @property
    def components(self) -> tuple[str, ...]:
        """The names of a vector's numbers; empty when it has none."""
        names = self.names
        if isinstance(names, Mapping) and len(names) == 1:
            (names,) = names.values()
        if not isinstance(names, list):
            return ()
        return tuple(str(name)[:64] for name in names[:MAX_VALUES])


class ForeignInfo(_Stated):
    """`meta/info.json`, as far as it is used."""

    codebase_version: Literal["v2.1", "v3.0"]
    fps: Annotated[float, Field(ge=1, le=1000)]
    total_episodes: Annotated[int, Field(ge=0, le=MAX_EPISODES)]
    features: Annotated[dict[str, ForeignFeature], Field(max_length=256)]
    data_path: str
    video_path: str | None = None
    chunks_size: Annotated[int, Field(ge=1)] = CHUNK_EPISODES
    robot_type: Annotated[str, Field(max_length=64)] | None = None


@dataclass(frozen=True)
class CameraPlace:
    """Where one camera's pictures of an episode lie; `path` None: in the rows themselves."""

    path: Path | None
    start_s: float  # in the file


@dataclass(frozen=True)
class ForeignEpisode:
    """One episode: its numbers, its task in words, and where its pictures are."""

    index: int
    task: str
    state: NDArray[np.float32]  # [T, S]
    action: NDArray[np.float32]  # [T, A]
    places: Mapping[str, CameraPlace]  # camera key -> where
    rows: pyarrow.Table  # with the pictures' columns, where they are in the rows

    @property
    def frames(self) -> int:
        """Ticks in it."""
        return len(self.state)


@dataclass(frozen=True)
class _Row:
    index: int
    length: int
    tasks: tuple[str, ...]
    data: tuple[int, int] | None = None  # chunk and file, of version 3.0
    videos: Mapping[str, tuple[int, int, float]] | None = None


class ForeignDataset:
    """See the module. Raises BadForeignDataset, with one line that names the file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.info = _read_info(root)
        missing = [name for name in _VECTORS if name not in self.info.features]
        if missing:
            raise BadForeignDataset(f"{root}: it has no {missing[0]}")
        self._table: tuple[Path, pyarrow.Table] | None = None

    @property
    def camera_keys(self) -> tuple[str, ...]:
        """Keys of the cameras, `observation.images.…`, in the dataset's order."""
        return tuple(
            name
            for name, feature in self.info.features.items()
            if name.startswith(_CAMERA_PREFIX) and feature.dtype in ("video", "image")
        )

    def names(self, vector: str) -> tuple[str, ...]:
        """Names of the numbers of `observation.state` or `action`."""
        return self.info.features[vector].components

    def __len__(self) -> int:
        return len(self._rows)

    def episodes(self, count: int | None = None) -> Iterator[ForeignEpisode]:
        """The first `count` episodes, all of them without; one in memory at a time."""
        for row in self._rows[:count]:
            yield self._episode(row)

    @cached_property
    def _rows(self) -> list[_Row]:
        rows = list(_rows_v21(self.root) if self.info.codebase_version == V21 else self._rows_v30())
        if len(rows) != self.info.total_episodes or len({row.index for row in rows}) != len(rows):
            raise BadForeignDataset(
                f"{self.root}: {len(rows)} episodes are described, "
                f"info.json says {self.info.total_episodes}"
            )
        return sorted(rows, key=lambda row: row.index)

    def _rows_v30(self) -> Iterator[_Row]:
        videos = [key for key in self.camera_keys if self.info.features[key].dtype == "video"]
        for path in sorted((self.root / "meta" / "episodes").glob("*/*.parquet")):
            table = _read_table(path)
            for row in table.select(_episode_columns(table, videos)).to_pylist():
                try:
                    yield _Row(
                        index=int(row["episode_index"]),
                        length=int(row["length"]),
                        tasks=tuple(str(task) for task in row["tasks"]),
                        data=(int(row["data/chunk_index"]), int(row["data/file_index"])),
                        videos={
                            key: (
                                int(row[f"videos/{key}/chunk_index"]),
                                int(row[f"videos/{key}/file_index"]),
                                float(row[f"videos/{key}/from_timestamp"]),
                            )
                            for key in videos
                        },
                    )
                except (KeyError, TypeError, ValueError) as error:
                    raise BadForeignDataset(f"{path}: an episode has no usable {error}") from error

    def _episode(self, row: _Row) -> ForeignEpisode:
        if not 1 <= row.length <= MAX_FRAMES:
            raise BadForeignDataset(f"{self.root}: episode {row.index} has {row.length} frames")
        rows = self._rows_of(row)
        if rows.num_rows != row.length:
            raise BadForeignDataset(
                f"{self.root}: episode {row.index} has {rows.num_rows} rows, "
                f"its description says {row.length}"
            )
        return ForeignEpisode(
            index=row.index,
            task=row.tasks[0][:300] if row.tasks else "",
            state=_vectors(self.root, row, rows, STATE),
            action=_vectors(self.root, row, rows, ACTION),
            places={key: self._place(row, key) for key in self.camera_keys},
            rows=rows,
        )

    def _rows_of(self, row: _Row) -> pyarrow.Table:
        if row.data is None:
            return _read_table(self.root / _v21(_PATHS[V21][0], row.index))
        chunk, file = row.data
        path = self.root / _PATHS[V30][0].format(chunk_index=chunk, file_index=file)
        if self._table is None or self._table[0] != path:
            self._table = (path, _read_table(path))
        table = self._table[1]
        mask = pyarrow.compute.equal(table["episode_index"], row.index)
        return table.filter(mask).sort_by("frame_index")

    def _place(self, row: _Row, key: str) -> CameraPlace:
        if self.info.features[key].dtype == "image":
            return CameraPlace(None, 0.0)
        if row.videos is None:
            return CameraPlace(self.root / _v21(_PATHS[V21][1], row.index, key), 0.0)
        chunk, file, start_s = row.videos[key]
        template = _PATHS[V30][1]
        path = self.root / template.format(video_key=key, chunk_index=chunk, file_index=file)
        return CameraPlace(path, start_s)


def _read_info(root: Path) -> ForeignInfo:
    path = root / "meta" / "info.json"
    try:
        with path.open("rb") as file:
            content = file.read(MAX_INFO_BYTES + 1)
    except OSError as error:
        raise BadForeignDataset(f"{path}: {error.strerror}; is it a LeRobotDataset?") from error
    if len(content) > MAX_INFO_BYTES:
        raise BadForeignDataset(f"{path}: over {MAX_INFO_BYTES} bytes")
    try:
        info = ForeignInfo.model_validate_json(content)
    except ValidationError as error:
        raise BadForeignDataset(f"{path}: {first_complaint(error, 'info.json')}") from error
    data, video = _PATHS[info.codebase_version]
    if (
        info.data_path != data
        or info.video_path not in (None, video)
        or (info.codebase_version == V21 and info.chunks_size != CHUNK_EPISODES)
    ):
        raise BadForeignDataset(f"{path}: its files do not lie where LeRobot puts them")
    if bad := [name for name in info.features if "/" in name or ".." in name]:
        raise BadForeignDataset(f"{path}: a feature may not be called {bad[0]!r:.60}")
    return info


def _rows_v21(root: Path) -> Iterator[_Row]:
    path = root / "meta" / "episodes.jsonl"
    try:
        if path.stat().st_size > MAX_LINES_BYTES:
            raise BadForeignDataset(f"{path}: over {MAX_LINES_BYTES} bytes")
        for number, line in enumerate(path.read_text().splitlines(), 1):
            try:
                row = json.loads(line)
                tasks = tuple(str(task) for task in row["tasks"])
                yield _Row(int(row["episode_index"]), int(row["length"]), tasks)
            except (ValueError, KeyError, TypeError) as error:
                raise BadForeignDataset(f"{path}: line {number}: no usable {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BadForeignDataset(f"{path}: unreadable ({error})") from error


def _episode_columns(table: pyarrow.Table, videos: list[str]) -> list[str]:
    """The columns that are used; the others hold statistics, and are many."""
    wanted = ["episode_index", "length", "tasks", "data/chunk_index", "data/file_index"]
    for key in videos:
        wanted += [f"videos/{key}/{part}" for part in ("chunk_index", "file_index")]
        wanted.append(f"videos/{key}/from_timestamp")
    return [name for name in wanted if name in table.column_names]


def _read_table(path: Path) -> pyarrow.Table:
    try:
        return pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise BadForeignDataset(f"{path}: unreadable ({str(error).splitlines()[0]})") from error


def _vectors(root: Path, row: _Row, rows: pyarrow.Table, name: str) -> NDArray[np.float32]:
    where = f"{root}: episode {row.index}: {name}"
    if name not in rows.column_names:
        raise BadForeignDataset(f"{where} is missing")
    listed = rows[name].to_pylist()
    try:
        vectors = np.asarray(listed, dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise BadForeignDataset(f"{where} is not a table of numbers ({error})") from error
    if vectors.ndim != 2 or not 1 <= vectors.shape[1] <= MAX_VALUES:
        raise BadForeignDataset(f"{where} has the shape {list(vectors.shape)}")
    if not np.isfinite(vectors).all():
        raise BadForeignDataset(f"{where} has a number that is not finite")
    return vectors


def _v21(template: str, index: int, key: str = "") -> str:
    return template.format(
        episode_chunk=index // CHUNK_EPISODES, episode_index=index, video_key=key
    )
