"""Episodes of a dataset from elsewhere become journals of this robot, for ingest to take.

A journal is the one way into the robot's dataset, so what is imported is validated and written as
what is recorded. It is made in `journal/importing/` and moved when it is durable: a kill leaves
whole episodes, and the same import again goes on with those that lack.
"""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from agent.config import AgentConfig
from agent.dataset.errors import BadForeignDataset, ImportRunning
from agent.dataset.foreign.hub import locate
from agent.dataset.foreign.joints import convention_for, to_ours
from agent.dataset.foreign.layout import ForeignDataset, ForeignEpisode
from agent.dataset.foreign.pictures import Image, pictures
from agent.dataset.foreign.plan import ImportRow
from agent.dataset.ingest import INGESTED_FOLDER, REFUSED_FOLDER
from agent.dataset.versions import DatasetVersions
from agent.recording.journal import (
    FINISHED,
    EpisodeMeta,
    EpisodeWriter,
    Origin,
    Sample,
    move_aside,
)
from agent.recording.ledger import content_digest
from policy.spec import ACTION, IMAGES, STATE

IMPORTING_FOLDER = "importing"
JPEG_QUALITY = 95
_ASPECT_SLACK = 0.01


@dataclass(frozen=True)
class Imported:
    """What became of one episode."""

    episode: int  # in the dataset that it comes from
    episode_id: str
    frames: int
    known: bool  # it was here already


def import_episodes(
    config: AgentConfig, row: ImportRow, *, evaluation: bool, count: int | None = None
) -> Iterator[Imported]:
    """Find the dataset of `row` and import its first `count` episodes, all of them without.

    Raises HubUnreachable and what `Importer` raises.
    """
    dataset = ForeignDataset(locate(row.dataset, row.revision))
    yield from Importer(config, dataset, row, evaluation=evaluation).run(count)


class Importer:
    """One dataset on its way into one robot. Everything that can be wrong is checked at the start.

    Raises BadForeignDataset with one line that says how to mend it.
    """

    def __init__(
        self, config: AgentConfig, dataset: ForeignDataset, row: ImportRow, *, evaluation: bool
    ) -> None:
        self._config, self._dataset, self._row = config, dataset, row
        self._evaluation = evaluation
        where = str(dataset.root)
        if config.environment_names:
            raise BadForeignDataset(
                f"this robot records {', '.join(config.environment_names)}, which no dataset from "
                "elsewhere has: take [tracker] out of its configuration"
            )
        if abs(dataset.info.fps - config.control.fps) > 1e-6 * config.control.fps:
            raise BadForeignDataset(
                f"{where}: recorded at {dataset.info.fps:g} fps, "
                f"this robot's control.fps is {config.control.fps:g}"
            )
        self._names = {vector: dataset.names(vector) for vector in (STATE, ACTION)}
        self.convention = row.convention or convention_for(self._names[STATE])
        self.cameras = camera_map(config, dataset, row.cameras)

    def run(
        self, count: int | None = None, wall: Callable[[], float] = time.time
    ) -> Iterator[Imported]:
        """Import the first `count` episodes, all of them without; one line for each.

        Raises BadForeignDataset, ImportRunning, JournalError, OSError; what was told of is kept.
        """
        journals = self._config.journal_dir
        with _alone(journals / IMPORTING_FOLDER) as staging:
            known = _known_episodes(self._config)
            for episode in self._dataset.episodes(count):
                origin = self._origin(episode)
                episode_id = f"import-{episode.index:06d}-{origin.digest[:12]}"
                if episode_id not in known:
                    self._write(staging, episode, episode_id, origin, wall())
                    move_aside([staging / f"{episode_id}{FINISHED}"], journals)
                    known.add(episode_id)
                    yield Imported(episode.index, episode_id, episode.frames, known=False)
                else:
                    yield Imported(episode.index, episode_id, episode.frames, known=True)

    def _origin(self, episode: ForeignEpisode) -> Origin:
        return Origin(
            dataset=self._row.dataset,
            episode=episode.index,
            digest=content_digest(episode.state, episode.action),
        )

    def _write(
        self, folder: Path, episode: ForeignEpisode, episode_id: str, origin: Origin, unix_s: float
    ) -> None:
        config, fps = self._config, self._config.control.fps
        state = to_ours(episode.state, self._names[STATE], self.convention)
        action = to_ours(episode.action, self._names[ACTION] or self._names[STATE], self.convention)
        meta = EpisodeMeta(
            episode_id=episode_id,
            task=self._row.task or episode.task,
            fps=fps,
            robot_id=config.robot.id,
            state_names=config.state_names,
            action_names=config.action_names,
            environment_names=(),
            cameras=config.camera_shapes,
            started_unix_s=unix_s,
            calibration_digest="",
            origin=origin,
            evaluation=self._evaluation,
        )
        if not meta.task:
            raise BadForeignDataset(f"episode {episode.index} has no task: give one by --task")
        shown = {
            name: pictures(episode, key, self._dataset.info.fps)
            for name, key in self.cameras.items()
        }
        writer = EpisodeWriter(folder, meta)
        try:
            for tick in range(episode.frames):
                jpegs = {
                    name: _jpeg(next(frames), config.camera_shapes[name], self.cameras[name])
                    for name, frames in shown.items()
                }
                at_s = tick / fps
                writer.append(
                    Sample(
                        tick=tick,
                        t_observed_s=at_s,
                        t_sent_s=at_s,
                        state=state[tick],
                        action=action[tick],
                        requested=action[tick],
                        environment=np.zeros(0, np.float32),
                        camera_sequence=dict.fromkeys(jpegs, tick),
                    ),
                    jpegs,
                )
            for frames in shown.values():
                next(frames, None)  # a reader counts at its end
            writer.finish()
        finally:
            writer.discard()


def camera_map(
    config: AgentConfig, dataset: ForeignDataset, given: Mapping[str, str]
) -> dict[str, str]:
    """This robot's camera -> the dataset's key; where nothing is given, the same name.

    Raises BadForeignDataset: a camera of either side that is not there.
    """
    there = ", ".join(key.removeprefix(f"{IMAGES}.") for key in dataset.camera_keys) or "none"
    if unknown := [name for name in given if name not in config.camera_shapes]:
        raise BadForeignDataset(
            f"this robot has no camera {unknown[0]!r}: write [cameras.{unknown[0]}] into its "
            f"configuration; the dataset's are {there}"
        )
    chosen = {}
    for name in config.camera_shapes:
        key = given.get(name, name)
        key = key if key.startswith(f"{IMAGES}.") else f"{IMAGES}.{key}"
        if key not in dataset.camera_keys:
            raise BadForeignDataset(
                f"{dataset.root}: no camera {key.removeprefix(f'{IMAGES}.')!r} for this robot's "
                f"{name!r}; it has {there}: give --camera {name}=…"
            )
        chosen[name] = key
    return chosen


def _jpeg(picture: Image, shape: tuple[int, int], key: str) -> bytes:
    height, width = shape
    found_height, found_width = picture.shape[:2]
    if (found_height, found_width) != shape:
        if abs(found_width * height / (found_height * width) - 1.0) > _ASPECT_SLACK:
            raise BadForeignDataset(
                f"{key} is {found_width}x{found_height}, this robot's camera {width}x{height}: "
                "another shape; set the camera's width and height to the same proportions"
            )
        resized = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        picture = np.asarray(resized, dtype=np.uint8)
    quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    done, jpeg = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), quality)
    if not done:
        raise BadForeignDataset(f"{key}: a picture cannot be encoded")
    return jpeg.tobytes()


def _known_episodes(config: AgentConfig) -> set[str]:
    """Ids of the episodes that are in the dataset or on their way, also refused ones."""
    folders = [
        config.journal_dir,
        config.journal_dir / INGESTED_FOLDER,
        config.journal_dir / REFUSED_FOLDER,
    ]
    waiting = {
        path.name.removesuffix(FINISHED)
        for folder in folders
        for path in folder.glob(f"import-*{FINISHED}")
    }
    return waiting | {entry.episode_id for entry in DatasetVersions(config.dataset_dir).ledger()}


@contextmanager
def _alone(folder: Path) -> Iterator[Path]:
    """An empty folder to write journals in, for one process at a time. Raises ImportRunning."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ImportRunning(f"{folder}: another import is under way") from error
        work = folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        yield work
        shutil.rmtree(work)
