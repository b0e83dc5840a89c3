"""Training batches out of a LeRobotDataset v3.

The columns are read once into tensors and normalised once; a batch is a gather by index. Pictures
come from the frame cache. A chunk of actions ends with its episode, or with the part of it that is
there; what would lie beyond is marked as padding.
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
from policy.frame_cache import FrameCache
from policy.kinds import LANGUAGE_INPUTS, kind_of
from policy.pictures import episode_pictures, require_cameras
from policy.spec import ACTION, ENVIRONMENT, STATE, TASK, PolicySpec
from policy.statistics import Normalizer
from policy.weights import Array

PADDING = "action_is_pad"
_PLACE = ("episode_index", "frame_index", "task_index", "index")  # LeRobot's columns


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

    def at(self, rows: Sequence[int]) -> Tensors:
        """The frames at these places of the order."""
        ...

    @property
    def sampler(self) -> Sampler:
        """What is drawn next; its state can be kept."""
        ...


@dataclass(frozen=True)
class Frames:
    """The vectors of a dataset in raw units, in recording order."""

    vectors: dict[str, Array]  # feature -> float32 [N, D]
    episode: Array  # int64 [N], episode index of each frame
    fps: int
    number: Array | None = None  # int64 [N], of the frame in its episode; None: all are there
    task: tuple[str, ...] = ()  # of each episode index, in words

    @property
    def episodes(self) -> list[int]:
        """Episode indices in the dataset, ascending."""
        return sorted({int(index) for index in np.unique(self.episode)})

    def select(self, episodes: Sequence[int]) -> Frames:
        """Only the frames of these episodes."""
        return self.where(np.isin(self.episode, np.array(sorted(episodes), dtype=np.int64)))

    def where(self, keep: Array) -> Frames:
        """Only the frames for which ``keep``, bool [N], is true."""
        vectors = {name: values[keep] for name, values in self.vectors.items()}
        numbers = self.numbers[keep]
        return Frames(vectors, self.episode[keep], self.fps, numbers, self.task)

    @property
    def numbers(self) -> Array:
        """Of each frame in its episode; int64 [N]."""
        if self.number is not None:
            return self.number
        rows = np.arange(len(self.episode))
        starts = np.flatnonzero(np.append(True, self.episode[1:] != self.episode[:-1]))
        return rows - np.repeat(starts, np.diff(np.append(starts, len(rows))))


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
            [pyarrow.parquet.read_table(path, columns=[*_PLACE, *wanted]) for path in paths]
        ).sort_by("index")
        vectors = {name: _column(table[name]) for name in wanted}
    except (pyarrow.ArrowInvalid, pyarrow.ArrowKeyError, OSError) as error:
        raise BadDataset(f"{root}: unreadable ({error})") from error
    episode, number, task = (table[name].to_numpy().astype(np.int64) for name in _PLACE[:3])
    return Frames(vectors, episode, int(info["fps"]), number, _tasks(root, episode, task))


def _tasks(root: Path, episode: Array, task: Array) -> tuple[str, ...]:
    """What each episode does, in words, by episode index. Raises BadDataset."""
    path = root / "meta" / "tasks.parquet"
    try:
        table = pyarrow.parquet.read_table(path, columns=["task_index", "task"])
    except (pyarrow.ArrowInvalid, pyarrow.ArrowKeyError, OSError) as error:
        raise BadDataset(f"{path}: unreadable ({error})") from error
    words = dict(zip(table["task_index"].to_pylist(), table["task"].to_pylist(), strict=True))
    firsts = dict(zip(episode[::-1].tolist(), task[::-1].tolist(), strict=True))
    return tuple(words.get(firsts.get(index), "") for index in range(int(episode.max()) + 1))


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
    require_cameras(info, spec.cameras)


def open_batches(
    root: Path,
    spec: PolicySpec,
    normalizer: Normalizer,
    episodes: Sequence[int],
    seed: int = 0,
    device: str = "cpu",
) -> Batches:
    """Batches of these episodes of the dataset at ``root``, pictures decoded when drawn.

    Raises NoEpisodes when there are none, BadDataset when the dataset does not fit the spec.
    """
    frames = load_frames(root, list(spec.vectors)).select(episodes)
    cache = hold_pictures(FrameCache(None), root, spec, frames.episodes)
    return batches_of(frames, spec, normalizer, cache, seed, device)


def hold_pictures(
    cache: FrameCache, root: Path, spec: PolicySpec, episodes: Sequence[int]
) -> FrameCache:
    """Point the cache at these episodes' pictures. Raises BadDataset: it does not fit the spec."""
    info = read_info(root)
    require_features(info, spec)
    cache.hold(episode_pictures(root, info, spec.cameras, episodes) if spec.cameras else [])
    return cache


def batches_of(
    frames: Frames,
    spec: PolicySpec,
    normalizer: Normalizer,
    cache: FrameCache,
    seed: int = 0,
    device: str = "cpu",
) -> Batches:
    """Batches of ``frames``, which the cache holds the pictures of. Raises NoEpisodes."""
    if spec.cameras or kind_of(spec.kind).reads_words(spec):
        return PictureBatches(frames, spec, normalizer, cache, seed, device)
    return VectorBatches(frames, spec, normalizer, seed, device)


class VectorBatches:
    """Batches for a policy that sees only vectors: everything in memory, normalised once."""

    def __init__(
        self,
        frames: Frames,
        spec: PolicySpec,
        normalizer: Normalizer,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        if not len(frames.episode):
            raise NoEpisodes("no frames to make batches of")
        self._preprocess, _ = build_processors(spec, normalizer)
        raw = {name: torch.from_numpy(frames.vectors[name].copy()) for name in spec.vectors}
        if kind_of(spec.kind).reads_words(spec):
            raw[TASK] = [""]  # a processor that reads words wants some
        scaled = self._preprocess(raw)
        self._inputs = {name: scaled[name] for name in spec.vectors if name != ACTION}
        self._actions = scaled[ACTION]
        self._arrange = kind_of(spec.kind).arrange
        self._last = torch.from_numpy(last_frames(frames.episode, frames.numbers))
        self._offsets = torch.arange(spec.chunk_size)
        self._device = torch.device(device)
        self._sampler = Sampler(len(frames.episode), spec.batch_size, seed)

    @property
    def examples(self) -> int:
        return int(self._actions.shape[0])

    @property
    def sampler(self) -> Sampler:
        return self._sampler

    def draw(self) -> Tensors:
        return self._arrange(self._gather(self._sampler.next()))

    def ordered(self, batch_size: int) -> Iterator[Tensors]:
        for rows in torch.arange(self.examples).split(batch_size):
            yield self._arrange(self._gather(rows))

    def at(self, rows: Sequence[int]) -> Tensors:
        return self._arrange(self._gather(torch.tensor(rows)))

    def _gather(self, rows: torch.Tensor) -> Tensors:
        wanted = rows[:, None] + self._offsets
        last = self._last[rows][:, None]
        batch = {name: values[rows] for name, values in self._inputs.items()}
        batch[ACTION] = self._actions[torch.minimum(wanted, last)]
        batch[PADDING] = wanted > last
        return {name: values.to(self._device) for name, values in batch.items()}


class PictureBatches(VectorBatches):
    """The same with what the cameras saw, and the task in words where the kind reads them."""

    def __init__(
        self,
        frames: Frames,
        spec: PolicySpec,
        normalizer: Normalizer,
        cache: FrameCache,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        super().__init__(frames, spec, normalizer, seed, device)
        self._cache = cache
        self._episode, self._number = frames.episode, frames.numbers
        self._cameras = spec.cameras
        self._scales = self._measure_scales()
        reads = kind_of(spec.kind).reads_words(spec)
        self._words = self._read_words(frames) if reads else {}

    def draw(self) -> Tensors:
        batch = super().draw()
        # The host reads the next batch's pictures while this one is trained on.
        for episode, _, numbers in self._by_episode(self._sampler.peek()):
            for camera in self._cameras:
                self._cache.expect(episode, camera.key, numbers)
        return batch

    def _gather(self, rows: torch.Tensor) -> Tensors:
        batch = super()._gather(rows)
        parts = self._by_episode(rows)
        for camera in self._cameras:
            pictures = torch.empty(len(rows), 3, camera.height, camera.width, dtype=torch.uint8)
            views = pictures.numpy()
            for episode, places, numbers in parts:
                self._cache.read(episode, camera.key, numbers, [views[place] for place in places])
            factor, offset = self._scales[camera.key]
            raw = pictures.to(self._device).to(torch.float32)
            batch[camera.key] = raw.mul_(factor).add_(offset)
        if self._words:
            of_rows = [self._words[int(self._episode[row])] for row in rows]
            for name in of_rows[0]:
                batch[name] = torch.stack([words[name] for words in of_rows]).to(self._device)
        return batch

    def _by_episode(self, rows: torch.Tensor) -> list[tuple[int, list[int], list[int]]]:
        """(episode, places in the batch, numbers in the episode) of each episode in it."""
        episodes = self._episode[rows.numpy()]
        found = []
        for episode in np.unique(episodes):
            places = np.flatnonzero(episodes == episode)
            numbers = self._number[rows.numpy()[places]]
            found.append((int(episode), places.tolist(), numbers.tolist()))
        return found

    def _measure_scales(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Factor and offset [3,1,1] that LeRobot's processor comes to, from bytes on."""
        scales = {}
        for camera in self._cameras:
            zero, one = (
                self._processed({camera.key: torch.full((1, 3, 1, 1), value)})[camera.key][0]
                for value in (0.0, 1.0)
            )
            scales[camera.key] = (
                ((one - zero) / 255.0).to(self._device),
                zero.to(self._device),
            )
        return scales

    def _read_words(self, frames: Frames) -> dict[int, Tensors]:
        """What the processor makes of each episode's task."""
        of_task: dict[str, Tensors] = {}
        for text in {frames.task[episode] for episode in frames.episodes}:
            made = self._processed({TASK: [text]})
            of_task[text] = {
                name: values[0] for name, values in made.items() if name in LANGUAGE_INPUTS
            }
        return {episode: of_task[frames.task[episode]] for episode in frames.episodes}

    def _processed(self, raw: dict[str, Any]) -> dict[str, Any]:
        """One made-up frame through LeRobot's processor, ``raw`` in its place."""
        blank = {name: values[:1] * 0.0 for name, values in self._inputs.items()}
        return dict(self._preprocess({TASK: [""], **blank, **raw}))


class Sampler:
    """Row indices in random order, every row once before any row twice."""

    def __init__(self, rows: int, batch_size: int, seed: int) -> None:
        self.rows = rows
        self._generator = torch.Generator().manual_seed(seed)
        self._size = min(batch_size, rows)
        self._order = torch.empty(0, dtype=torch.int64)

    def next(self) -> torch.Tensor:
        """Rows of the next batch, int64."""
        taken = self.peek()
        self._order = self._order[self._size :]
        return taken

    def peek(self) -> torch.Tensor:
        """The same, without taking them."""
        if len(self._order) < self._size:
            fresh = torch.randperm(self.rows, generator=self._generator)
            self._order = torch.cat([self._order, fresh])
        return self._order[: self._size]

    def state(self) -> Tensors:
        """Where it stands."""
        return {"order": self._order.clone(), "generator": self._generator.get_state()}

    def restore(self, state: Tensors) -> None:
        """Go on from there."""
        self._order = state["order"].clone()
        self._generator.set_state(state["generator"])


def last_frames(episode: Array, number: Array) -> Array:
    """For each frame, the row of the last one that follows without a gap; int64 [N]."""
    broken = (episode[1:] != episode[:-1]) | (number[1:] != number[:-1] + 1)
    ends = np.flatnonzero(np.append(broken, True))
    lengths = np.diff(np.append(-1, ends))
    return np.repeat(ends, lengths)


def _column(column: pyarrow.ChunkedArray) -> Array:
    """A column of fixed-length lists (or of single numbers) as float32 [N, D]."""
    rows = len(column)
    values = column.combine_chunks()
    while pyarrow.types.is_list(values.type) or pyarrow.types.is_fixed_size_list(values.type):
        values = values.flatten()
    return values.to_numpy(zero_copy_only=False).astype(np.float32).reshape(rows, -1)
