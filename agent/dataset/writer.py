"""Episodes from journals into a LeRobotDataset v3 with h264 video. The only user of its writer."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from lerobot.configs.video import RGBEncoderConfig
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.video_utils import StreamingVideoEncoder
from numpy.typing import NDArray

from agent.dataset.errors import EpisodeRefused, IngestFailed
from agent.dataset.features import OBSERVED, SENT, dataset_features
from agent.dataset.versions import LedgerEntry
from agent.recording.journal import EpisodeEnd, EpisodeMeta, EpisodeReader, Sample
from policy.batches import load_frames, read_info
from policy.errors import PolicyError
from policy.spec import ACTION, ENVIRONMENT, IMAGES, STATE

log = logging.getLogger(__name__)

ROBOT_TYPE = "so101_follower"
_QUEUE_FRAMES = 30
_DECODER = "pyav"  # nothing is decoded here; the default would try to load another library first

type Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Journal:
    """A finished journal that was looked into once: its facts, and a first picture per camera."""

    path: Path
    meta: EpisodeMeta
    end: EpisodeEnd
    first_jpegs: dict[str, bytes]

    def entry(self) -> LedgerEntry:
        """What the dataset's ledger says about this episode."""
        return LedgerEntry(
            episode_id=self.meta.episode_id,
            robot_id=self.meta.robot_id,
            started_unix_s=self.meta.started_unix_s,
            frames=self.end.frames,
            missed_deadlines=self.end.missed_deadlines,
            calibration_digest=self.meta.calibration_digest,
        )


def open_journal(path: Path) -> Journal:
    """Look into a finished journal. Raises BadJournal, and EpisodeRefused with the reason."""
    reader = EpisodeReader(path)
    meta, end = reader.meta, reader.end
    if end is None or end.frames == 0:
        raise EpisodeRefused(f"{path.name}: it was never finished")
    for name, (height, width) in meta.cameras.items():
        if height % 2 or width % 2:
            raise EpisodeRefused(f"{path.name}: camera {name} is {width}x{height}; h264 wants even")
    first: dict[str, bytes] = {}
    if meta.cameras:
        for _, jpegs in reader.samples():
            first = {**jpegs, **first}
            if len(first) == len(meta.cameras):
                break
        missing = sorted(set(meta.cameras) - set(first))
        if missing:
            raise EpisodeRefused(f"{path.name}: no picture of camera {', '.join(missing)} in it")
    return Journal(path, meta, end, first)


def append_episodes(root: Path, journals: Sequence[Journal]) -> None:
    """Add episodes to the dataset at ``root`` (made when it does not exist), close it, verify it.

    Raises EpisodeRefused when an episode does not fit the dataset, IngestFailed when what was
    written does not read back.
    """
    dataset = _open(root, journals[0].meta)
    try:
        for journal in journals:
            _require_fit(dataset, journal)
            _append(dataset, journal)
    finally:
        dataset.finalize()
    _verify(root, journals)


def _open(root: Path, meta: EpisodeMeta) -> LeRobotDataset:
    encoder = RGBEncoderConfig(vcodec="h264", pix_fmt="yuv420p", g=2, crf=23, preset="ultrafast")
    fps = round(meta.fps)
    if root.exists():
        dataset = LeRobotDataset.resume(
            f"local/{root.name}",
            root=root,
            rgb_encoder=encoder,
            encoder_threads=1,
            video_backend=_DECODER,
        )
    else:
        dataset = LeRobotDataset.create(
            f"local/{root.name}",
            fps=fps,
            features=dataset_features(meta),
            root=root,
            robot_type=ROBOT_TYPE,
            use_videos=bool(meta.cameras),
            rgb_encoder=encoder,
            encoder_threads=1,
            video_backend=_DECODER,
        )
    if dataset.meta.video_keys:
        # Set from outside: LeRobot's own switch makes the encoder that drops frames.
        dataset.writer._streaming_encoder = _PatientEncoder(
            fps=dataset.fps, rgb_encoder=encoder, queue_maxsize=_QUEUE_FRAMES, encoder_threads=1
        )
    return dataset


class _PatientEncoder(StreamingVideoEncoder):
    """LeRobot's encoder drops a frame after 0.1 s of a full queue; here nothing is in a hurry.

    A frozen and continued process would otherwise lose frames against the rows beside them.
    """

    def feed_frame(self, video_key: str, image: Image) -> None:
        waiting = self._frame_queues[video_key]
        while waiting.full() and self._threads[video_key].is_alive():
            time.sleep(0.002)
        super().feed_frame(video_key, image)


def _require_fit(dataset: LeRobotDataset, journal: Journal) -> None:
    if round(journal.meta.fps) != dataset.fps:
        raise EpisodeRefused(
            f"{journal.path.name}: recorded at {journal.meta.fps:g} fps, "
            f"the dataset has {dataset.fps}"
        )
    for name, wanted in dataset_features(journal.meta).items():
        found = dataset.features.get(name)
        if found is None:
            raise EpisodeRefused(f"{journal.path.name}: the dataset has no {name}")
        if list(found["shape"]) != list(wanted["shape"]) or found["names"] != wanted["names"]:
            raise EpisodeRefused(
                f"{journal.path.name}: {name} is {wanted['names']} {list(wanted['shape'])}, "
                f"the dataset has {found['names']} {list(found['shape'])}"
            )
    absent = set(dataset.meta.video_keys) - {f"{IMAGES}.{name}" for name in journal.meta.cameras}
    if absent:
        raise EpisodeRefused(f"{journal.path.name}: it lacks {', '.join(sorted(absent))}")
    if ENVIRONMENT in dataset.features and not journal.meta.environment_names:
        raise EpisodeRefused(f"{journal.path.name}: it lacks {ENVIRONMENT}")


def _append(dataset: LeRobotDataset, journal: Journal) -> None:
    pictures = _Pictures(journal)
    start_s: float | None = None
    for sample, jpegs in EpisodeReader(journal.path).samples():
        start_s = sample.t_observed_s if start_s is None else start_s
        frame = _vectors(journal.meta, sample)
        frame[OBSERVED] = np.array([sample.t_observed_s - start_s])
        frame[SENT] = np.array([sample.t_sent_s - start_s])
        for name in journal.meta.cameras:
            frame[f"{IMAGES}.{name}"] = pictures.decode(name, jpegs)
        dataset.add_frame({**frame, "task": journal.meta.task})
    if dataset.writer.episode_buffer["size"] != journal.end.frames:
        raise EpisodeRefused(f"{journal.path.name}: fewer samples than its end record says")
    dataset.save_episode(parallel_encoding=False)


def _vectors(meta: EpisodeMeta, sample: Sample) -> dict[str, NDArray[Any]]:
    """The action is the one that was sent to the servos, not the one that was asked for."""
    frame: dict[str, NDArray[np.float32 | np.float64]] = {
        STATE: sample.state,
        ACTION: sample.action,
    }
    if meta.environment_names:
        frame[ENVIRONMENT] = sample.environment
    return frame


class _Pictures:
    """Decodes each picture once; a camera slower than the loop shows the same one again."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._last: dict[str, tuple[bytes, Image]] = {}

    def decode(self, camera: str, jpegs: dict[str, bytes]) -> Image:
        jpeg = jpegs.get(camera, self._journal.first_jpegs[camera])
        last = self._last.get(camera)
        if last is not None and last[0] is jpeg:
            return last[1]
        picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        expected = (*self._journal.meta.cameras[camera], 3)
        if picture is None or picture.shape != expected:
            found = "unreadable" if picture is None else f"{picture.shape[1]}x{picture.shape[0]}"
            raise EpisodeRefused(
                f"{self._journal.path.name}: a picture of camera {camera} is {found}, "
                f"not {expected[1]}x{expected[0]}"
            )
        image: Image = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
        self._last[camera] = (jpeg, image)
        return image


def _verify(root: Path, journals: Sequence[Journal]) -> None:
    """Read back what was written: numbers bit for bit, and as many video frames as rows."""
    try:
        info, frames = read_info(root), load_frames(root)
    except PolicyError as error:
        raise IngestFailed(f"the new dataset does not read back: {error}") from error
    first = int(info["total_episodes"]) - len(journals)
    if len(frames.episode) != info["total_frames"]:
        raise IngestFailed(f"{root}: {len(frames.episode)} rows, not {info['total_frames']}")
    for offset, journal in enumerate(journals):
        written = frames.select([first + offset]).vectors
        samples = [sample for sample, _ in EpisodeReader(journal.path).samples()]
        for name, values in (
            (STATE, [sample.state for sample in samples]),
            (ACTION, [sample.action for sample in samples]),
        ):
            if not np.array_equal(written[name], np.stack(values)):
                raise IngestFailed(f"{root}: {name} of {journal.path.name} does not read back")
    expected = sum(journal.end.frames for journal in journals)
    for name in journals[0].meta.cameras:
        newest = _files_of_session(root, f"{IMAGES}.{name}", first)
        found = sum(_count_video_frames(path) for path in newest)
        if found != expected:
            raise IngestFailed(f"{root}: camera {name} has {found} pictures for {expected} rows")


def _files_of_session(root: Path, camera_key: str, first_episode: int) -> list[Path]:
    """Video files that hold the episodes from ``first_episode`` on."""
    metadata = LeRobotDatasetMetadata(f"local/{root.name}", root=root)
    episodes = range(first_episode, metadata.total_episodes)
    return sorted({root / metadata.get_video_file_path(index, camera_key) for index in episodes})


def _count_video_frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for packet in container.demux(video=0) if packet.size)
