"""Pictures of a LeRobotDataset v3: where each episode's lie, in video or parquet, and reading them.

The video libraries are loaded when something is decoded: a policy without cameras never needs them.
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pyarrow
import pyarrow.parquet

from policy.errors import BadDataset
from policy.spec import CameraSpec
from policy.weights import Array

if TYPE_CHECKING:
    import av


@dataclass(frozen=True)
class EpisodePictures(ABC):
    """One episode of one camera: ``frames`` pictures in a file."""

    path: Path
    episode: int
    camera: CameraSpec
    frames: int

    def identity(self) -> str:
        """SHA-256 (hex) of all that its pictures at the camera's size depend on.

        A later version of the dataset shares the file, so it stays; raises BadDataset when the file
        is missing.
        """
        try:
            facts = self.path.stat()
        except OSError as error:
            raise BadDataset(f"{self.path}: no pictures ({error.strerror})") from error
        file = (self.path.parent.name, self.path.name, facts.st_size, facts.st_mtime_ns)
        size = (self.camera.key, self.camera.height, self.camera.width)
        text = json.dumps([*size, *file, self.frames, *self._place()])
        return hashlib.sha256(text.encode()).hexdigest()

    @abstractmethod
    def decode(self, wanted: Sequence[int] | None = None) -> Iterator[tuple[int, Array]]:
        """(number in the episode, uint8 [3,H,W] of the camera's size), ascending; all by default.

        Raises BadDataset when a picture is missing or the file cannot be read.
        """

    @abstractmethod
    def _place(self) -> tuple[float, ...]:
        """Where in the file they are."""

    def _sized(self, picture: Array) -> Array:
        height, width = self.camera.height, self.camera.width
        if picture.shape[:2] != (height, width):
            picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray(picture.transpose(2, 0, 1))

    def _missing(self, row: int) -> BadDataset:
        return BadDataset(
            f"{self.path}: episode {self.episode} has no picture {row} of camera {self.camera.name}"
        )


@dataclass(frozen=True)
class EpisodeVideo(EpisodePictures):
    """From ``start_s`` on in a video."""

    start_s: float
    fps: int

    def decode(self, wanted: Sequence[int] | None = None) -> Iterator[tuple[int, Array]]:
        rows = range(self.frames) if wanted is None else sorted(set(wanted))
        if not rows:
            return
        import av

        left = iter(rows)
        row = next(left)
        try:
            with av.open(str(self.path)) as container:
                for number, frame in self._numbered(container, row):
                    if number > row:
                        break
                    if number == row:
                        yield row, self._sized(frame.to_ndarray(format="rgb24"))
                        following = next(left, None)
                        if following is None:
                            return
                        row = following
        except (av.FFmpegError, OSError) as error:
            raise BadDataset(f"{self.path}: not a readable video ({error})") from error
        raise self._missing(row)

    def _numbered(
        self, container: av.container.InputContainer, first: int
    ) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decoded frames from the key frame before ``first`` on, with their number."""
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        wanted_s = self.start_s + first / self.fps
        container.seek(round(wanted_s / stream.time_base) - 1, stream=stream)
        for frame in container.decode(stream):
            if frame.pts is not None:
                after_s = float(frame.pts * stream.time_base) - self.start_s
                yield math.floor(after_s * self.fps + 0.5), frame

    def _place(self) -> tuple[float, ...]:
        return self.start_s, self.fps


@dataclass(frozen=True)
class EpisodeImages(EpisodePictures):
    """Compressed one by one in the rows of a parquet file."""

    def decode(self, wanted: Sequence[int] | None = None) -> Iterator[tuple[int, Array]]:
        rows = range(self.frames) if wanted is None else sorted(set(wanted))
        try:
            table = pyarrow.parquet.read_table(
                self.path,
                columns=[self.camera.key, "frame_index"],
                filters=[("episode_index", "=", self.episode)],
            )
        except (pyarrow.ArrowInvalid, pyarrow.ArrowKeyError, OSError) as error:
            raise BadDataset(f"{self.path}: unreadable ({error})") from error
        places = {number: place for place, number in enumerate(table["frame_index"].to_pylist())}
        for row in rows:
            stored = table[self.camera.key][places[row]].as_py() if row in places else {}
            content = np.frombuffer(stored.get("bytes") or b"", np.uint8)
            picture = cv2.imdecode(content, cv2.IMREAD_COLOR) if len(content) else None
            if picture is None:
                raise self._missing(row)
            yield row, self._sized(picture[..., ::-1])

    def _place(self) -> tuple[float, ...]:
        return (self.episode,)


def episode_pictures(
    root: Path, info: dict[str, Any], cameras: Sequence[CameraSpec], episodes: Sequence[int]
) -> list[EpisodePictures]:
    """Where the pictures of these episodes of the dataset at ``root`` lie. Raises BadDataset."""
    wanted = set(episodes)
    found = []
    for path in sorted((root / "meta" / "episodes").glob("*/*.parquet")):
        try:
            table = pyarrow.parquet.read_table(path)
            told = [name for name in table.column_names if not name.startswith("stats/")]
            for row in table.select(told).to_pylist():
                if row["episode_index"] in wanted:
                    wanted.discard(row["episode_index"])
                    found += [_pictures(root, info, camera, row) for camera in cameras]
        except (pyarrow.ArrowInvalid, KeyError, OSError) as error:
            raise BadDataset(f"{path}: unreadable ({error})") from error
    if wanted:
        raise BadDataset(f"{root}: no place of its pictures is told for episode {min(wanted)}")
    return sorted(found, key=lambda pictures: pictures.episode)


def _pictures(
    root: Path, info: dict[str, Any], camera: CameraSpec, row: dict[str, Any]
) -> EpisodePictures:
    """Raises KeyError."""
    is_video = info["features"][camera.key]["dtype"] == "video"
    place = f"videos/{camera.key}" if is_video else "data"
    relative = str(info["video_path" if is_video else "data_path"]).format(
        video_key=camera.key,
        chunk_index=row[f"{place}/chunk_index"],
        file_index=row[f"{place}/file_index"],
    )
    if not is_video:
        return EpisodeImages(root / relative, row["episode_index"], camera, row["length"])
    start_s = float(row[f"{place}/from_timestamp"])
    fps = int(info["fps"])
    return EpisodeVideo(root / relative, row["episode_index"], camera, row["length"], start_s, fps)


def require_cameras(info: dict[str, Any], cameras: Sequence[CameraSpec]) -> None:
    """Raise BadDataset unless the dataset has video of each camera, of the same aspect ratio."""
    for camera in cameras:
        feature = info["features"].get(camera.key)
        if feature is None:
            raise BadDataset(f"the dataset has no camera {camera.name}, which the policy needs")
        if feature["dtype"] not in ("video", "image"):
            raise BadDataset(f"camera {camera.name}: {feature['dtype']} is neither video nor image")
        height, width = feature["shape"][:2]
        if not camera.accepts(height, width):
            raise BadDataset(
                f"camera {camera.name}: recorded {width}x{height}, which cannot be scaled to "
                f"the policy's {camera.width}x{camera.height}"
            )
