"""Batches from demonstrations in memory, pictures as uint8."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.learning.scene import Data
from policy.batches import PADDING, last_frames
from policy.build import IMAGE_MEAN, IMAGE_STD, Tensors
from policy.kinds import kind_of
from policy.spec import ACTION, PolicySpec
from policy.statistics import Normalizer


class MemoryBatches:
    """Random batches of all frames of ``robots``, normalised as the product does it."""

    def __init__(
        self, robots: Sequence[Data], spec: PolicySpec, scale: Normalizer, seed: int
    ) -> None:
        self._vectors = {
            name: torch.from_numpy(
                (np.concatenate([data.vectors[name] for data in robots]) - scale.mean(name))
                / scale.std(name)
            )
            for name in spec.vectors
        }
        kind = kind_of(spec.kind)
        if kind.reads_words(spec):
            told = [data.words[number] for data in robots for number in data.episode]
            self._vectors |= {
                name: torch.from_numpy(each) for name, each in kind.read_tasks(spec, told).items()
            }
        starts = np.cumsum([0, *(int(data.episode[-1]) + 1 for data in robots)])
        episode = np.concatenate(
            [data.episode + start for data, start in zip(robots, starts[:-1], strict=True)]
        )
        self._last = torch.from_numpy(last_frames(episode, np.arange(len(episode))))
        self._offsets = torch.arange(spec.chunk_size)
        self._cameras = [each.key for each in spec.cameras]
        if self._cameras:
            self._pictures = torch.from_numpy(np.concatenate([data.pictures for data in robots]))
        self._mean = 255.0 * torch.tensor(IMAGE_MEAN).reshape(3, 1, 1)
        self._std = 255.0 * torch.tensor(IMAGE_STD).reshape(3, 1, 1)
        self._seen: torch.Tensor | None = None
        self._arrange = kind.arrange
        self._batch_size = spec.batch_size
        self._random = torch.Generator().manual_seed(seed)

    @property
    def examples(self) -> int:
        """Frames in all."""
        return len(self._last)

    def draw(self) -> Tensors:
        """The next batch; rows are drawn with replacement."""
        rows = torch.randint(self.examples, (self._batch_size,), generator=self._random)
        wanted, last = rows[:, None] + self._offsets, self._last[rows][:, None]
        batch = {name: values[rows] for name, values in self._vectors.items() if name != ACTION}
        batch[ACTION] = self._vectors[ACTION][torch.minimum(wanted, last)]
        batch[PADDING] = wanted > last
        for key in self._cameras:
            batch[key] = self._see(rows) if self._seen is None else self._seen[rows]
        return self._arrange(batch)

    def look_once(self, trunk: torch.nn.Module) -> None:
        """From now on batches hold the trunk's answers instead of the pictures; one camera."""
        with torch.no_grad():
            parts = torch.arange(self.examples).split(256)
            self._seen = torch.cat([trunk(self._see(rows))["feature_map"] for rows in parts])

    def _see(self, rows: torch.Tensor) -> torch.Tensor:
        return (self._pictures[rows].float() - self._mean) / self._std
