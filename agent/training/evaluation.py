"""The error of a base on the held-out episodes: a slice a turn, and each episode once.

What was measured is remembered by base and episode over restarts: a new version of the dataset
costs its new episodes alone.
"""

from __future__ import annotations

import logging
import math
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from pydantic import RootModel, ValidationError

from agent.training.held_out import HeldOutEpisodes
from agent.training.training_data import TrainingData
from host.complaints import first_complaint
from host.files import write_durable
from policy.device import is_out_of_memory
from policy.errors import TooLittleMemory
from policy.spec import PolicySpec
from policy.statistics import Normalizer
from policy.train import ErrorSum, chunk_errors, evaluating

log = logging.getLogger(__name__)

_FRAMES = 256  # a slice of a policy without cameras
_PIXELS = 2_000_000  # a slice's at most: activations take some thousand bytes for each
_BASES_KEPT = 16


def slice_frames(spec: PolicySpec) -> int:
    """How many frames are evaluated at once, so that it takes seconds and some 100 MB."""
    pixels = sum(camera.height * camera.width for camera in spec.cameras)
    return max(1, min(_FRAMES, _PIXELS // pixels)) if pixels else _FRAMES


class HeldOutEvaluation:
    """One policy on every held-out episode that is not ``known`` yet."""

    def __init__(
        self,
        policy: torch.nn.Module,
        spec: PolicySpec,
        normalizer: Normalizer,
        data: TrainingData,
        known: Mapping[str, ErrorSum],
    ) -> None:
        assert data.held_out is not None
        assert data.episodes is not None
        self._policy = policy
        self._normalizer = normalizer
        self._batches = data.held_out
        self._episodes: HeldOutEpisodes = data.episodes
        self._size = self._slice = slice_frames(spec)
        self.errors = {key: known[key] for key in data.episodes.digests.values() if key in known}
        self._left = self._slices()

    def advance(self) -> bool:
        """Evaluate one slice; whether that was the last. Raises TooLittleMemory.

        ``errors`` then has one episode more, or several short ones.
        """
        done = 0
        with evaluating(self._policy):
            while done < self._slice:
                frames = next(self._left, None)
                if frames is None:
                    return True
                done += frames
        return False

    def total(self) -> ErrorSum:
        """Over all episodes."""
        return sum(self.errors.values(), ErrorSum())

    def _slices(self) -> Iterator[int]:
        """Works through the episodes; how many frames each time."""
        for index, key in self._episodes.digests.items():
            if key in self.errors:
                continue
            rows = np.flatnonzero(self._episodes.episode == index).tolist()
            total, at = ErrorSum(), 0
            while at < len(rows):
                each = self._judge(rows[at : at + self._size], zlib.crc32(f"{key} {at}".encode()))
                if each is None:
                    continue
                total, at = total + each, at + each.frames
                if at == len(rows):
                    self.errors[key] = total
                yield each.frames

    def _judge(self, rows: list[int], seed: int) -> ErrorSum | None:
        """None: memory ran out, and fewer are to be tried. The frames' noise is by ``seed``."""
        try:
            batch = self._batches.at(rows)
            return ErrorSum.of(chunk_errors(self._policy, batch, self._normalizer, seed))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(rows) == 1:
                raise TooLittleMemory(f"one frame cannot be evaluated: {error}") from error
        self._size = -(-len(rows) // 2)
        return None


class _Kept(RootModel[dict[str, dict[str, ErrorSum]]]):
    """Policy -> episode's key -> error."""


class KnownErrors:
    """What was measured, in a small file; oldest policies are forgotten."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept = self._read()

    def of(self, policy: str) -> dict[str, ErrorSum]:
        """Episode's key -> error of that policy."""
        return dict(self._kept.get(policy, {}))

    def keep(self, policy: str, errors: Mapping[str, ErrorSum]) -> None:
        """Remember them, durably."""
        self._kept.pop(policy, None)
        self._kept[policy] = {
            key: each for key, each in errors.items() if math.isfinite(each.loss + each.raw)
        }
        while len(self._kept) > _BASES_KEPT:
            del self._kept[next(iter(self._kept))]
        write_durable(self._path, _Kept(self._kept).model_dump_json().encode())

    def _read(self) -> dict[str, dict[str, ErrorSum]]:
        try:
            return _Kept.model_validate_json(self._path.read_bytes()).root
        except FileNotFoundError:
            return {}
        except ValidationError as error:
            log.warning("%s: measured anew: %s", self._path, first_complaint(error, "whole"))
            return {}
