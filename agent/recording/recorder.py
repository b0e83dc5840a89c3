"""The journal as a subscriber of the loop: a bounded queue and one thread that writes.

The loop only puts references into the queue; JSON, JPEG and the disk are the thread's. A tick that
finds the queue full fails the whole episode, with a reason: an episode has all its ticks, or it is
not an episode. A thread that dies fails the episode, and every later one.
"""

from __future__ import annotations

import logging
import queue
import shutil
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from agent.errors import JournalError
from agent.recording.journal import EpisodeMeta, EpisodeWriter, Sample, recover
from host.threads import OnCrash, only_logged, spawn

log = logging.getLogger(__name__)


class Picture(Protocol):
    """What the recorder needs of a camera's frame."""

    @property
    def sequence(self) -> int:
        """The frame's number; the same number is the same picture."""
        ...

    @property
    def image(self) -> NDArray[np.uint8]:
        """[H, W, 3] RGB."""
        ...

    @property
    def jpeg(self) -> bytes | None:
        """The bytes as the camera sent them, if it sends JPEG."""
        ...


@dataclass(frozen=True)
class _Start:
    meta: EpisodeMeta
    done: Future[None]


@dataclass(frozen=True)
class _Append:
    sample: Sample
    pictures: Mapping[str, Picture]


@dataclass(frozen=True)
class _Finish:
    missed_deadlines: int
    success: bool | None
    done: Future[Path]


@dataclass(frozen=True)
class _Discard:
    done: Future[None]


@dataclass(frozen=True)
class _Close:
    pass


_Item = _Start | _Append | _Finish | _Discard | _Close


class Recorder:
    """At most one episode at a time.

    `append` and `fail` are for the loop and never wait. `start`, `finish`, `discard` and `close`
    wait for the disk and are for another thread.
    """

    def __init__(
        self,
        folder: Path,
        *,
        min_free_mb: int,
        queue_ticks: int,
        jpeg_quality: int,
        on_crash: OnCrash = only_logged,
    ) -> None:
        self._folder = folder
        self._min_free_mb = min_free_mb
        self._jpeg_quality = jpeg_quality
        self._queue: queue.Queue[_Item] = queue.Queue(maxsize=queue_ticks)
        self._writer: EpisodeWriter | None = None  # the thread's alone
        self._active: EpisodeMeta | None = None
        self._failure: str | None = None
        self._frames = 0
        self._item: _Item | None = None  # in work
        self._dead: str | None = None  # the thread's last line
        self._on_crash = on_crash
        self._thread = spawn("journal", self._run, self._died)

    @property
    def active(self) -> EpisodeMeta | None:
        """The running episode."""
        return self._active

    @property
    def failure(self) -> str | None:
        """Why the running episode cannot be saved; None while all is well."""
        return self._failure

    @property
    def frames(self) -> int:
        """Samples taken from the loop in the running episode."""
        return self._frames

    def start(self, meta: EpisodeMeta, timeout_s: float = 10.0) -> None:
        """Open the episode's file. Raises JournalError."""
        if self._active is not None:
            raise JournalError("an episode is already being recorded; finish or discard it first")
        self._check_space()
        done: Future[None] = Future()
        self._failure = None
        self._frames = 0
        self._put(_Start(meta, done), timeout_s)
        done.result(timeout_s)
        self._active = meta

    def append(self, sample: Sample, pictures: Mapping[str, Picture]) -> None:
        """Take one tick into the running episode."""
        if self._active is None or self._failure is not None:
            return
        try:
            self._queue.put_nowait(_Append(sample, pictures))
        except queue.Full:
            self.fail(
                f"the disk did not keep up: {self._queue.maxsize} ticks wait to be written; "
                "the episode cannot be saved"
            )
            return
        self._frames += 1

    def fail(self, reason: str) -> None:
        """Mark the running episode as one that cannot be saved."""
        if self._active is not None and self._failure is None:
            self._failure = reason
            log.error("recording: %s", reason)

    def finish(
        self, missed_deadlines: int, success: bool | None = None, timeout_s: float = 30.0
    ) -> Path:
        """Make the episode durable; returns its place. Raises JournalError.

        An episode that failed is kept aside as unfinished, and the reason is raised.
        """
        if self._active is None:
            raise JournalError("no episode is being recorded")
        self._active = None  # from here on the loop's ticks are not the episode's
        done: Future[Path] = Future()
        self._put(_Finish(missed_deadlines, success, done), timeout_s)
        return done.result(timeout_s)

    def discard(self, timeout_s: float = 30.0) -> None:
        """Remove the running episode. Raises JournalError."""
        if self._active is None:
            raise JournalError("no episode is being recorded")
        self._active = None
        done: Future[None] = Future()
        self._put(_Discard(done), timeout_s)
        done.result(timeout_s)

    def close(self, timeout_s: float = 5.0) -> None:
        """End the thread; a running episode stays as unfinished."""
        self._active = None
        if self._dead is not None:
            return
        self._put(_Close(), timeout_s)
        self._thread.join(timeout_s)

    def _put(self, item: _Item, timeout_s: float) -> None:
        if self._dead is not None:
            raise JournalError(self._dead)
        try:
            self._queue.put(item, timeout=timeout_s)
        except queue.Full as error:
            raise JournalError(
                f"the disk took nothing for {timeout_s:.0f} s; the episode is kept as unfinished"
            ) from error
        self._refuse_waiting()

    # The thread.

    def _died(self, line: str) -> None:
        self._dead = line
        self.fail(line)
        self._refuse_waiting()
        self._on_crash(line)

    def _refuse_waiting(self) -> None:
        """Answer whoever waits for the thread, if it is dead."""
        if self._dead is None:
            return
        items = [self._item] if self._item is not None else []
        while not self._queue.empty():
            items.append(self._queue.get())
        for item in items:
            if isinstance(item, _Start | _Finish | _Discard) and not item.done.done():
                item.done.set_exception(JournalError(self._dead))

    def _run(self) -> None:
        while True:
            item = self._item = self._queue.get()
            match item:
                case _Start(meta, done):
                    try:
                        self._writer = EpisodeWriter(self._folder, meta)
                        done.set_result(None)
                    except JournalError as error:
                        done.set_exception(error)
                case _Append(sample, pictures):
                    self._write(sample, pictures)
                case _Finish():
                    self._end(item)
                case _Discard(done):
                    try:
                        if self._writer is not None:
                            self._writer.discard()
                        done.set_result(None)
                    except JournalError as error:
                        done.set_exception(error)
                    self._writer = None
                case _Close():
                    self._set_aside()
                    return

    def _write(self, sample: Sample, pictures: Mapping[str, Picture]) -> None:
        if self._writer is None or self._failure is not None:
            return
        try:
            jpegs = {
                name: picture.jpeg if picture.jpeg is not None else self._encode(picture.image)
                for name, picture in pictures.items()
            }
            self._writer.append(sample, jpegs)
        except (JournalError, ValueError, cv2.error) as error:
            self.fail(f"the episode cannot be written: {error}")

    def _encode(self, image: NDArray[np.uint8]) -> bytes:
        settings = [cv2.IMWRITE_JPEG_QUALITY, self._jpeg_quality]
        ok, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), settings)
        if not ok:
            raise JournalError("a picture could not be encoded as JPEG")
        return bytes(data)

    def _end(self, asked: _Finish) -> None:
        writer = self._writer
        try:
            if writer is None or self._failure is not None:
                self._set_aside()
                raise JournalError(self._failure or "the episode was never opened")
            asked.done.set_result(writer.finish(asked.missed_deadlines, asked.success))
        except JournalError as error:
            asked.done.set_exception(error)
        self._writer = None

    def _set_aside(self) -> None:
        """Close the running episode's file and keep it among the unfinished ones."""
        if self._writer is None:
            return
        try:
            self._writer.abandon()
            recover(self._folder)
        except JournalError as error:
            log.error("%s", error)  # noqa: TRY400
        self._writer = None

    def _check_space(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        free_mb = shutil.disk_usage(self._folder).free >> 20
        if free_mb < self._min_free_mb:
            raise JournalError(
                f"only {free_mb} MB are free at {self._folder}; "
                f"recording.min_free_mb asks for {self._min_free_mb}"
            )
