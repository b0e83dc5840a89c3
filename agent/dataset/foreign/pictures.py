"""The pictures of one episode of a LeRobotDataset, in order, as RGB uint8."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from agent.dataset.errors import BadForeignDataset
from agent.dataset.foreign.layout import CameraPlace, ForeignEpisode

MAX_PICTURE_BYTES = 64 << 20

type Image = NDArray[np.uint8]


def pictures(episode: ForeignEpisode, key: str, fps: float) -> Iterator[Image]:
    """Exactly one picture [H,W,3] a frame. Raises BadForeignDataset when one is missing."""
    place = episode.places[key]
    found = 0
    shown = _in_rows(episode, key) if place.path is None else _in_video(place, episode.frames, fps)
    for picture in shown:
        found += 1
        yield picture
    if found != episode.frames:
        raise BadForeignDataset(
            f"{place.path or key}: episode {episode.index} has {found} pictures "
            f"for {episode.frames} frames"
        )


def _in_video(place: CameraPlace, frames: int, fps: float) -> Iterator[Image]:
    """Frames from `start_s` on. A file holds several episodes, and a seek lands before a frame."""
    half_s = 0.5 / fps
    given = 0
    try:
        with av.open(str(place.path)) as container:
            stream: Any = container.streams.video[0]
            container.seek(round(place.start_s / stream.time_base), stream=stream, backward=True)
            for frame in container.decode(stream):
                if frame.time is None or frame.time < place.start_s - half_s:
                    continue
                if frame.time > place.start_s + (given + 0.5) / fps + half_s:
                    raise BadForeignDataset(
                        f"{place.path}: no picture at {place.start_s + given / fps:.3f} s"
                    )
                yield frame.to_ndarray(format="rgb24")
                given += 1
                if given == frames:
                    return
    except (av.error.FFmpegError, OSError, IndexError) as error:
        raise BadForeignDataset(f"{place.path}: cannot be decoded ({error})") from error


def _in_rows(episode: ForeignEpisode, key: str) -> Iterator[Image]:
    for row in episode.rows[key]:
        content = row.as_py()
        data = content.get("bytes") if isinstance(content, dict) else None
        if not isinstance(data, bytes) or len(data) > MAX_PICTURE_BYTES:
            raise BadForeignDataset(f"episode {episode.index}: {key} holds no picture's bytes")
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        if picture is None:
            raise BadForeignDataset(f"episode {episode.index}: a picture of {key} is damaged")
        yield np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), dtype=np.uint8)
