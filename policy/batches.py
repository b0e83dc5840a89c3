"""Training batches out of a LeRobotDataset v3.

A policy without cameras never opens a video: its columns are read once into tensors, normalised
once, and a batch is a gather by index. A policy with cameras goes through LeRobot's own dataset.
In both, a chunk of actions ends with its episode; what would lie beyond is marked as padding.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow
import pyarrow.parquet
import torch

from policy.build import Tensors, build_processors
from policy.errors import BadDataset, NoEpisodes
from policy.kinds import kind_of
from policy.spec import ACTION, ENVIRONMENT, STATE, PolicySpec
from policy.statistics import Normalizer
from policy.weights import Array

PADDING = "action_is_pad"
TASK = "task"  # LeRobot's key for what the episode does, in words


class Batches(Protocol):
    """Where a trainer takes its batches from; tensors are normalised, ready for ``forward``."""

    @property
    def examples(self) -> int:
        """Frames that batches are drawn from."""
        ...

    def draw(self) -> Tensors:
        """The next random batch of the spec's size."""
        ...

    def ordered(self, batch_size: int) -> Iterator[Tensors]:
        """Every frame once, in order."""
        ...


@dataclass(frozen=True)
class Frames:
    """The vectors of a dataset in raw units, in recording order."""

    vectors: dict[str, Array]  # feature -> float32 [N, D]
    episode: Array  # int64 [N], episode index of each frame
    fps: int

    @property
    def episodes(self) -> list[int]:
        """Episode indices in the dataset, ascending."""
        return sorted({int(index) for index in np.unique(self.episode)})

    def select(self, episodes: Sequence[int]) -> Frames:
        """Only the frames of these episodes."""
        keep = np.isin(self.episode, np.array(sorted(episodes), dtype=np.int64))
        vectors = {name: values[keep] for name, values in self.vectors.items()}
        return Frames(vectors, self.episode[keep], self.fps)


def is_held_out(episode: int, every: int) -> bool:
    """Whether an episode is only ever evaluated on: the second, then every ``every``-th after it.

    The rule looks at the index alone, so an episode never changes sides as the dataset grows, and
    there is one to evaluate on as soon as there are two.
    """
    return episode % every == 1 % every


def split_episodes(episodes: Sequence[int], every: int) -> tuple[list[int], list[int]]:
    """Training episodes and held-out episodes."""
    held_out = [episode for episode in episodes if is_held_out(episode, every)]
    return [episode for episode in episodes if not is_held_out(episode, every)], held_out


def load_frames(root: Path, features: Sequence[str] = (STATE, ENVIRONMENT, ACTION)) -> Frames:
    """Read vector columns of a LeRobotDataset v3 straight from its parquet files.

    Features that the dataset does not have are left out. Raises NoEpisodes when there is no
    dataset or it is empty, BadDataset when it cannot be read.
    """
    info = read_info(root)
    paths = sorted(root.glob("data/*/*.parquet"))
    if not paths:
        raise NoEpisodes(f"{root}: the dataset holds no episodes yet")
    wanted = [name for name in features if name in info["features"]]
    try:
        table = pyarrow.concat_tables(
            [
                pyarrow.parquet.read_table(path, columns=["episode_index", "index", *wanted])
                for path in paths
            ]
        ).sort_by("index")
        vectors = {name: _column(table[name]) for name in wanted}
    except (pyarrow.ArrowInvalid, pyarrow.ArrowKeyError, OSError) as error:
        raise BadDataset(f"{root}: unreadable ({error})") from error
    episode = table["episode_index"].to_numpy().astype(np.int64)
    return Frames(vectors, episode, int(info["fps"]))


def read_info(root: Path) -> dict[str, Any]:
    """``meta/info.json`` of a dataset. Raises NoEpisodes when missing, BadDataset when broken."""
    path = root / "meta" / "info.json"
    try:
        info = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise NoEpisodes(f"{root}: there is no dataset yet") from error
    except json.JSONDecodeError as error:
        raise BadDataset(f"{path}: not JSON ({error})") from error
    if not isinstance(info, dict) or "features" not in info or "fps" not in info:
        raise BadDataset(f"{path}: not the description of a LeRobotDataset")
    return info


def require_features(info: dict[str, Any], spec: PolicySpec) -> None:
    """Raise BadDataset unless the dataset has what the policy wants: names, order, rate, size."""
    if int(info["fps"]) != spec.fps:
        raise BadDataset(f"the dataset runs at {info['fps']} fps, the policy at {spec.fps}")
    for name, names in spec.vectors.items():
        feature = info["features"].get(name)
        if feature is None:
            raise BadDataset(f"the dataset has no {name}, which the policy needs")
        recorded = tuple(feature.get("names") or ())
        if recorded != names:
            raise BadDataset(
                f"{name}: the dataset has {', '.join(recorded)}, "
                f"the policy wants {', '.join(names)}"
            )
    for camera in spec.cameras:
        feature = info["features"].get(camera.key)
        if feature is None:
            raise BadDataset(f"the dataset has no camera {camera.name}, which the policy needs")
        if list(feature["shape"]) != [camera.height, camera.width, 3]:
            raise BadDataset(
                f"camera {camera.name}: recorded {feature['shape']}, "
                f"the policy wants {[camera.height, camera.width, 3]}"
            )


def open_batches(
    root: Path, spec: PolicySpec, normalizer: Normalizer, episodes: Sequence[int], seed: int = 0
) -> Batches:
    """Batches of these episodes of the dataset at ``root``.

    Raises NoEpisodes when there are none, BadDataset when the dataset does not fit the spec.
    """
    require_features(read_info(root), spec)
    if spec.cameras:
        return ImageBatches(root, spec, normalizer, episodes, seed)
    frames = load_frames(root, list(spec.vectors)).select(episodes)
    return VectorBatches(frames, spec, normalizer, seed)


class VectorBatches:
    """Batches for a policy that sees only vectors: everything in memory, normalised once."""

    def __init__(
        self, frames: Frames, spec: PolicySpec, normalizer: Normalizer, seed: int = 0
    ) -> None:
        if not len(frames.episode):
            raise NoEpisodes("no frames to make batches of")
        preprocess, _ = build_processors(spec, normalizer)
        raw = {name: torch.from_numpy(frames.vectors[name].copy()) for name in spec.vectors}
        scaled = preprocess(raw)
        self._inputs = {name: scaled[name] for name in spec.vectors if name != ACTION}
        self._actions = scaled[ACTION]
        self._arrange = kind_of(spec.kind).arrange
        self._last = torch.from_numpy(last_frames(frames.episode))
        self._offsets = torch.arange(spec.chunk_size)
        self._batch_size = min(spec.batch_size, len(frames.episode))
        self._rows = _Shuffled(len(frames.episode), self._batch_size, seed)

    @property
    def examples(self) -> int:
        return int(self._actions.shape[0])

    def draw(self) -> Tensors:
        return self._gather(self._rows.next())

    def ordered(self, batch_size: int) -> Iterator[Tensors]:
        for rows in torch.arange(self.examples).split(batch_size):
            yield self._gather(rows)

    def _gather(self, rows: torch.Tensor) -> Tensors:
        wanted = rows[:, None] + self._offsets
        last = self._last[rows][:, None]
        batch = {name: values[rows] for name, values in self._inputs.items()}
        batch[ACTION] = self._actions[torch.minimum(wanted, last)]
        batch[PADDING] = wanted > last
        return self._arrange(batch)


class ImageBatches:
    """Batches for a policy with cameras: LeRobot's dataset decodes the frames that are drawn."""

    def __init__(
        self,
        root: Path,
        spec: PolicySpec,
        normalizer: Normalizer,
        episodes: Sequence[int],
        seed: int = 0,
    ) -> None:
        # Imported here: it opens the video libraries, which a policy without cameras never needs.
        from lerobot.datasets import LeRobotDataset

        if not episodes:
            raise NoEpisodes(f"{root}: no episodes to make batches of")
        self._dataset = LeRobotDataset(
            f"local/{root.name}",
            root=root,
            episodes=sorted(episodes),
            delta_timestamps={ACTION: [step / spec.fps for step in range(spec.chunk_size)]},
            return_uint8=True,
        )
        self._preprocess, _ = build_processors(spec, normalizer)
        self._kind = kind_of(spec.kind)
        self._vectors = list(spec.vectors)
        self._cameras = [camera.key for camera in spec.cameras]
        self._rows = _Shuffled(self.examples, min(spec.batch_size, self.examples), seed)

    @property
    def examples(self) -> int:
        return len(self._dataset)

    def draw(self) -> Tensors:
        return self._collate(self._rows.next())

    def ordered(self, batch_size: int) -> Iterator[Tensors]:
        for rows in torch.arange(self.examples).split(batch_size):
            yield self._collate(rows)

    def _collate(self, rows: torch.Tensor) -> Tensors:
        items = [self._dataset[int(row)] for row in rows]
        raw: dict[str, Any] = {
            name: torch.stack([item[name] for item in items]) for name in self._vectors
        }
        if self._kind.words:
            raw[TASK] = [item[TASK] for item in items]
        for key in self._cameras:
            raw[key] = torch.stack([item[key] for item in items]).to(torch.float32) / 255.0
        batch = dict(self._preprocess(raw))
        batch[PADDING] = torch.stack([item[PADDING] for item in items])
        return self._kind.arrange(batch)


class _Shuffled:
    """Row indices in random order, every row once before any row twice."""

    def __init__(self, rows: int, batch_size: int, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._total = rows
        self._size = batch_size
        self._order = torch.empty(0, dtype=torch.int64)

    def next(self) -> torch.Tensor:
        if len(self._order) < self._size:
            fresh = torch.randperm(self._total, generator=self._generator)
            self._order = torch.cat([self._order, fresh])
        taken, self._order = self._order[: self._size], self._order[self._size :]
        return taken


def last_frames(episode: Array) -> Array:
    """For each frame, the row of its episode's last frame; int64 [N]."""
    ends = np.flatnonzero(np.append(episode[1:] != episode[:-1], True))
    lengths = np.diff(np.append(-1, ends))
    return np.repeat(ends, lengths)


def _column(column: pyarrow.ChunkedArray) -> Array:
    """A column of fixed-length lists (or of single numbers) as float32 [N, D]."""
    rows = len(column)
    values = column.combine_chunks()
    while pyarrow.types.is_list(values.type) or pyarrow.types.is_fixed_size_list(values.type):
        values = values.flatten()
    return values.to_numpy(zero_copy_only=False).astype(np.float32).reshape(rows, -1)
