"""Is a journal fit for the dataset? Each one is asked alone, before anything is written.

Knows nothing of LeRobot, so an ingest that has nothing to take does not load it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.dataset.errors import EpisodeRefused, UnknownUnit
from agent.dataset.features import component, dataset_features
from agent.recording.journal import FINISHED, EpisodeEnd, EpisodeMeta, EpisodeReader
from agent.recording.ledger import LedgerEntry, content_digest
from policy.spec import ACTION, STATE

# JPEG start-of-frame markers; the three between them are tables.
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True)
class Journal:
    """A finished journal that was read whole and is sound."""

    path: Path
    meta: EpisodeMeta
    end: EpisodeEnd
    first_jpegs: dict[str, bytes]  # per camera; shown until its first picture came
    vectors: dict[str, NDArray[np.float32]]  # state and action, [T, D]

    def entry(self) -> LedgerEntry:
        """What the dataset's ledger says about this episode."""
        corrected = self.end.intervention_frames > 0
        return LedgerEntry(
            episode_id=self.meta.episode_id,
            robot_id=self.meta.robot_id,
            started_unix_s=self.meta.started_unix_s,
            frames=self.end.frames,
            missed_deadlines=self.end.missed_deadlines,
            calibration_digest=self.meta.calibration_digest,
            source="intervention" if corrected else self.meta.source,
            success=self.end.success,
            policy=self.meta.policy,
            policy_digest=self.meta.policy_digest,
            evaluation=self.meta.evaluation,
            content_digest=self._content_digest(),
        )

    def _content_digest(self) -> str:
        origin = self.meta.origin
        if origin is not None:
            return origin.digest
        return content_digest(self.vectors[STATE], self.vectors[ACTION])


@dataclass(frozen=True)
class DatasetShape:
    """What every episode of a dataset has in common."""

    fps: int
    features: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of_episode(cls, meta: EpisodeMeta) -> DatasetShape:
        """The shape that an episode wants, and gives to a dataset that begins with it."""
        return cls(round(meta.fps), dataset_features(meta))

    @classmethod
    def of_info(cls, info: Mapping[str, Any]) -> DatasetShape:
        """Out of a dataset's ``info.json``, without the columns that LeRobot adds itself."""
        features = info["features"]
        added = ("timestamp", "frame_index", "episode_index", "index", "task_index")
        return cls(info["fps"], {name: features[name] for name in features if name not in added})

    def misfit(self, found: DatasetShape) -> str | None:
        """Why an episode of another shape has no place here; None when it fits."""
        if found.fps != self.fps:
            return f"recorded at {found.fps} fps, the dataset has {self.fps}"
        if lacking := sorted(set(self.features) - set(found.features)):
            return f"it lacks {', '.join(lacking)}"
        for name, feature in found.features.items():
            wanted = self.features.get(name)
            if wanted is None:
                return f"the dataset has no {name}"
            if _form(feature) != _form(wanted):
                return f"{name} is {_form(feature)}, the dataset has {_form(wanted)}"
        return None


def open_journal(path: Path, shape: DatasetShape | None) -> Journal:
    """Read a finished journal whole and hold it against the dataset's shape, None before the first.

    Raises BadJournal, EpisodeRefused, UnreadableJournal; each names the path.
    """
    reader = EpisodeReader(path)
    meta, end = reader.meta, reader.end
    if end is None:
        raise EpisodeRefused(path, "it was never finished")
    if path.name != meta.episode_id + FINISHED:
        raise EpisodeRefused(path, f"it holds the episode {meta.episode_id}, under another's name")
    for name, (height, width) in meta.cameras.items():
        if height % 2 or width % 2:
            raise EpisodeRefused(path, f"camera {name} is {width}x{height}; h264 wants even")
    try:
        for name in (*meta.state_names, *meta.environment_names, *meta.action_names):
            component(name)
    except UnknownUnit as error:
        raise EpisodeRefused(path, str(error)) from error
    misfit = None if shape is None else shape.misfit(DatasetShape.of_episode(meta))
    if misfit is not None:
        raise EpisodeRefused(path, misfit)
    first: dict[str, bytes] = {}
    newest: dict[str, bytes] = {}
    states, actions = [], []
    for sample, jpegs in reader.samples():
        for name, jpeg in jpegs.items():
            if newest.get(name) is not jpeg:
                _require_size(path, meta, name, jpeg)
        newest, first = jpegs, {**jpegs, **first}
        states.append(sample.state)
        actions.append(sample.action)
    if missing := sorted(set(meta.cameras) - set(first)):
        raise EpisodeRefused(path, f"no picture of camera {', '.join(missing)} in it")
    vectors = {STATE: np.stack(states), ACTION: np.stack(actions)}
    return Journal(path, meta, end, first, vectors)


def jpeg_size(jpeg: bytes) -> tuple[int, int] | None:
    """Height and width out of a JPEG's header, nothing decoded; None when it has none."""
    at = 2 if jpeg.startswith(b"\xff\xd8") else len(jpeg)
    while at + 9 <= len(jpeg) and jpeg[at] == 0xFF:
        marker, length = jpeg[at + 1], int.from_bytes(jpeg[at + 2 : at + 4])
        if marker in _START_OF_FRAME:
            height, width = struct.unpack_from(">HH", jpeg, at + 5)
            return height, width
        at += 1 if marker == 0xFF else 2 + length  # any number of 0xFF may come before a marker
    return None


def _require_size(path: Path, meta: EpisodeMeta, camera: str, jpeg: bytes) -> None:
    """What is decoded later is bounded here. That it decodes, only decoding can tell."""
    found, wanted = jpeg_size(jpeg), meta.cameras[camera]
    if found != wanted:
        shown = "unreadable" if found is None else f"{found[1]}x{found[0]}"
        raise EpisodeRefused(
            path, f"a picture of camera {camera} is {shown}, not {wanted[1]}x{wanted[0]}"
        )


def _form(feature: Mapping[str, Any]) -> str:
    return f"{feature['dtype']} {feature['names']} {list(feature['shape'])}"
