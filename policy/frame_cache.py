"""Pictures decoded once: a file of uint8 for each episode and camera, at the policy's size.

A video gives up a picture in ten milliseconds or more, a file in a tenth of one. What is read is
copied out of the file, not mapped: the memory that holds it is the page cache, which the host may
take back at any time, and none of it counts as the trainer's.

A file is whole or absent, and its name says all that its pictures depend on. A picture that is not
as it was written is noticed when it is first read; the file is then made anew. What nobody wants
any more is deleted. Beyond ``max_bytes``, and where the disk is short, pictures are decoded each
time that they are drawn.
"""

from __future__ import annotations

import logging
import os
import shutil
import struct
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from host.files import durable_file
from policy.errors import BadDataset
from policy.pictures import EpisodePictures
from policy.weights import Array

log = logging.getLogger(__name__)

_SUFFIX = ".frames"
_HEADER = struct.Struct("<8s64sIII")  # version, identity, frames, height, width
_VERSION = b"ARMFRM01"
_DATA_AT = 4096
_GAP = 8  # farther apart, pictures are sought for one by one


class DamagedFrames(BadDataset):
    """A file of the cache that does not hold what was written."""


class FrameFile:
    """The pictures of one episode and camera. Layout: header, pictures, CRC-32 of each, of all."""

    def __init__(self, path: Path, video: EpisodePictures, checks: Array) -> None:
        self._path = path
        self._camera = video.camera
        self._checks = checks  # uint32 [frames]
        self._seen = np.zeros(len(checks), bool)

    @classmethod
    def make(cls, path: Path, video: EpisodePictures) -> Self:
        """Decode the episode into a new file. Raises BadDataset, OSError."""
        checks = np.zeros(video.frames, "<u4")
        head = _head(video)
        with durable_file(path) as stream:
            stream.write(head.ljust(_DATA_AT, b"\0"))
            for row, picture in video.decode():
                content = picture.tobytes()
                checks[row] = zlib.crc32(content)
                stream.write(content)
            stream.write(checks.tobytes())
            stream.write(struct.pack("<I", zlib.crc32(head + checks.tobytes())))
        return cls(path, video, checks)

    @classmethod
    def open(cls, path: Path, video: EpisodePictures) -> Self:
        """Raises DamagedFrames, FileNotFoundError. No picture is read."""
        with path.open("rb") as stream:
            head = stream.read(_HEADER.size)
            if head != _head(video) or os.fstat(stream.fileno()).st_size != file_bytes(video):
                raise DamagedFrames(f"{path}: not the pictures that its name promises")
            stream.seek(_DATA_AT + video.frames * _picture_bytes(video))
            table = stream.read(4 * video.frames)
            (check,) = struct.unpack("<I", stream.read(4))
        if zlib.crc32(head + table) != check:
            raise DamagedFrames(f"{path}: the table of checks is damaged")
        return cls(path, video, np.frombuffer(table, "<u4"))

    def read(self, rows: Sequence[int], out: Sequence[Array]) -> None:
        """Copy picture ``rows[i]`` to ``out[i]``, uint8 [3,H,W]. Raises DamagedFrames."""
        try:
            with self._path.open("rb", buffering=0) as stream:
                for row, picture in zip(rows, out, strict=True):
                    self._read(stream.fileno(), row, picture)
        except FileNotFoundError as error:
            raise DamagedFrames(f"{self._path}: it is gone") from error

    def _read(self, descriptor: int, row: int, picture: Array) -> None:
        size = picture.nbytes
        if os.preadv(descriptor, [picture.data], _DATA_AT + row * size) != size:
            raise DamagedFrames(f"{self._path}: it ends in picture {row}")
        if not self._seen[row]:
            if zlib.crc32(picture) != self._checks[row]:
                raise DamagedFrames(f"{self._path}: picture {row} is damaged")
            self._seen[row] = True

    def expect(self, rows: Sequence[int]) -> None:
        """Let the host read these ahead of their use; nothing waits for it."""
        if not hasattr(os, "posix_fadvise"):
            return
        size = 3 * self._camera.height * self._camera.width
        try:
            with self._path.open("rb", buffering=0) as stream:
                for row in rows:
                    place = _DATA_AT + row * size
                    os.posix_fadvise(stream.fileno(), place, size, os.POSIX_FADV_WILLNEED)
        except FileNotFoundError:
            return  # reading it will tell


class FrameCache:
    """The files of one policy's pictures in ``folder``. One process at a time may use it.

    With ``folder`` None there is none: every picture is decoded when it is drawn.
    """

    def __init__(
        self, folder: Path | None, max_bytes: int = sys.maxsize, keep_free_bytes: int = 0
    ) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._keep_free_bytes = keep_free_bytes
        self._videos: dict[tuple[int, str], EpisodePictures] = {}
        self._paths: dict[tuple[int, str], Path] = {}  # those that are to be cached
        self._files: dict[tuple[int, str], FrameFile] = {}

    def hold(self, videos: Sequence[EpisodePictures]) -> None:
        """From now on these are what is wanted; files of others are deleted. Raises BadDataset."""
        self._videos = {(video.episode, video.camera.key): video for video in videos}
        self._paths, self._files = {}, {}
        if self._folder is None:
            return
        total = 0
        for key, video in self._videos.items():
            total += file_bytes(video)
            if total > self._max_bytes:
                log.warning(
                    "pictures of %d of %d episodes are cached: the rest is beyond %d MB",
                    len({episode for episode, _ in self._paths}),
                    len({episode for episode, _ in self._videos}),
                    self._max_bytes >> 20,
                )
                break
            self._paths[key] = self._folder / f"{video.identity()}{_SUFFIX}"
        kept = {path.name for path in self._paths.values()}
        for path in self._folder.glob("*") if self._folder.is_dir() else ():
            if path.name not in kept:  # of another size or dataset, or left by a kill
                path.unlink()

    def prepare(self) -> tuple[int, int] | None:
        """Have the next file ready; how many of how many are, None when all were. Seconds."""
        for key in self._paths:
            if key not in self._files:
                self._file(key)
                return len(self._files), len(self._paths)
        return None

    def read(
        self, episode: int, camera_key: str, rows: Sequence[int], out: Sequence[Array]
    ) -> None:
        """Picture ``rows[i]`` of an episode to ``out[i]``, uint8 [3,H,W]. Raises BadDataset."""
        key = episode, camera_key
        for _ in range(2):
            file = self._file(key)
            if file is None:
                break
            try:
                return file.read(rows, out)
            except DamagedFrames as error:
                log.warning("made anew: %s", error)
                self._files.pop(key, None)
                self._paths[key].unlink(missing_ok=True)
        self._decode(self._videos[key], rows, out)
        return None

    def expect(self, episode: int, camera_key: str, rows: Sequence[int]) -> None:
        """These will be read soon."""
        file = self._files.get((episode, camera_key))
        if file is not None:
            file.expect(rows)

    def _file(self, key: tuple[int, str]) -> FrameFile | None:
        """Opened or made; None when it is not to be cached."""
        path = self._paths.get(key)
        if path is None or key in self._files:
            return self._files.get(key)
        video = self._videos[key]
        try:
            self._files[key] = self._open_or_make(path, video)
        except OSError as error:
            log.warning("pictures of episode %d are not cached: %s", key[0], error)
            del self._paths[key]
        return self._files.get(key)

    def _open_or_make(self, path: Path, video: EpisodePictures) -> FrameFile:
        try:
            return FrameFile.open(path, video)
        except FileNotFoundError:
            pass
        except DamagedFrames as error:
            log.warning("made anew: %s", error)
        path.parent.mkdir(parents=True, exist_ok=True)
        left = shutil.disk_usage(path.parent).free - file_bytes(video)
        if left < self._keep_free_bytes:
            raise OSError(f"the disk would have {left >> 20} MB left")
        return FrameFile.make(path, video)

    @staticmethod
    def _decode(video: EpisodePictures, rows: Sequence[int], out: Sequence[Array]) -> None:
        for run in _runs(rows):
            decoded = dict(video.decode(run))
            for row, picture in zip(rows, out, strict=True):
                if row in decoded:
                    picture[:] = decoded[row]


def file_bytes(video: EpisodePictures) -> int:
    """What the cache needs for it."""
    return _DATA_AT + video.frames * (_picture_bytes(video) + 4) + 4


def _picture_bytes(video: EpisodePictures) -> int:
    return 3 * video.camera.height * video.camera.width


def _head(video: EpisodePictures) -> bytes:
    size = video.frames, video.camera.height, video.camera.width
    return _HEADER.pack(_VERSION, video.identity().encode(), *size)


def _runs(rows: Sequence[int]) -> Iterator[list[int]]:
    """The rows, ascending, in groups that are worth one pass through the video."""
    run: list[int] = []
    for row in sorted(set(rows)):
        if run and row - run[-1] > _GAP:
            yield run
            run = []
        run.append(row)
    if run:
        yield run
