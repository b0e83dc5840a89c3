"""Episodes from journals into a LeRobotDataset v3 with h264 video. The only user of its writer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from lerobot.configs import RGBEncoderConfig
from lerobot.datasets import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.datasets.video_utils import StreamingVideoEncoder
from numpy.typing import NDArray

from agent.dataset.errors import EpisodeRefused, IngestFailed
from agent.dataset.features import OBSERVED, SENT, dataset_features
from agent.dataset.validation import Journal
from agent.recording.journal import EpisodeMeta, EpisodeReader, Sample
from agent.training.demonstrations import INTERVENTION
from policy.batches import load_frames, read_info
from policy.errors import PolicyError
from policy.spec import ACTION, ENVIRONMENT, IMAGES, STATE

log = logging.getLogger(__name__)

ROBOT_TYPE = "so101_follower"
_QUEUE_FRAMES = 30
_DECODER = "pyav"  # nothing is decoded here; the default would try to load another library first

type Image = NDArray[np.uint8]


def append_episodes(root: Path, journals: Sequence[Journal], alive: Callable[[], None]) -> None:
    """Add sound episodes to the dataset at ``root``, close it, verify it.

    Makes the dataset when it does not exist. Raises BadJournal and UnreadableJournal, which name
    the journal, when one of them turns out unfit now; IngestFailed when what was written does not
    read back. Calls ``alive`` before each journal.
    """
    dataset = _open(root, journals[0].meta)
    try:
        for journal in journals:
            alive()
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


def _append(dataset: LeRobotDataset, journal: Journal) -> None:
    pictures = _Pictures(journal)
    start_s: float | None = None
    for sample, jpegs in EpisodeReader(journal.path).samples():
        start_s = sample.t_observed_s if start_s is None else start_s
        frame = _vectors(journal.meta, sample)
        frame[OBSERVED] = np.array([sample.t_observed_s - start_s])
        frame[SENT] = np.array([sample.t_sent_s - start_s])
        frame[INTERVENTION] = np.array([sample.intervention])
        for name in journal.meta.cameras:
            frame[f"{IMAGES}.{name}"] = pictures.decode(name, jpegs)
        dataset.add_frame({**frame, "task": journal.meta.task})
    dataset.save_episode(parallel_encoding=False)


def _vectors(meta: EpisodeMeta, sample: Sample) -> dict[str, NDArray[Any]]:
    """The action is the one that was sent to the servos, not the one that was asked for."""
    frame: dict[str, NDArray[Any]] = {
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
        if picture is None or picture.shape[:2] != self._journal.meta.cameras[camera]:
            raise EpisodeRefused(
                self._journal.path, f"a picture of camera {camera} cannot be decoded"
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
        for name, values in journal.vectors.items():
            if not np.array_equal(written[name], values):
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
