"""Cameras: a thread each keeps the newest frame and when it was captured.

`Camera.latest` hands out a frame only while it is fresh; a stalled camera raises, it never shows
an old picture as a new one. A camera that goes away is looked for again until it is closed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from host.threads import spawn
from robot_io.errors import BadImage, CameraGone
from robot_io.mjpeg import MjpegStream

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CameraConfig:
    """One camera.

    Attributes:
        name: what policies and recordings call it.
        source: http(s) address of an MJPEG stream, or a V4L2 device by number or path.
        width, height: pixels that every frame must have.
        fps: frames per second to ask the device for.
        stall_s: a camera silent for so long is taken for gone and opened again.
        retry_s: pause before it is opened again.
    """

    name: str
    source: str | int
    width: int
    height: int
    fps: float
    stall_s: float = 2.0
    retry_s: float = 0.5


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture.

    Attributes:
        sequence: rises by one with each frame of this camera, also over reconnects.
        t_captured_s: clock when the frame had come.
        image: uint8 [H, W, 3] RGB, read-only.
        jpeg: the bytes as the camera sent them, None where the device sends raw pixels.
    """

    sequence: int
    t_captured_s: float
    image: NDArray[np.uint8]
    jpeg: bytes | None


class _Source(Protocol):
    """An open device; `next` blocks until there is a picture."""

    def next(self) -> tuple[NDArray[np.uint8], bytes | None, float]: ...

    def close(self) -> None: ...


class Camera:
    """One camera and its thread.

    Args:
        config: see `CameraConfig`.
        clock: monotonic seconds, the one by which frames are stamped.
    """

    def __init__(self, config: CameraConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.config = config
        self.reconnects = 0
        self._clock = clock
        self._changed = threading.Condition()
        self._frame: Frame | None = None
        self._sequence = 0
        self._fault = "it has not sent a frame yet"
        self._source: _Source | None = None
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def open(self, timeout_s: float = 5.0) -> None:
        """Start the thread and wait for a first frame. Does nothing when it is open.

        Raises:
            CameraGone: no frame within ``timeout_s``; the thread is ended again.
        """
        if self._thread is not None:
            return
        self._closing.clear()
        self._thread = spawn(f"camera-{self.config.name}", self._run, self._died)
        with self._changed:
            arrived = self._changed.wait_for(lambda: self._frame is not None, timeout_s)
            fault = self._fault
        if not arrived:
            self.close()
            raise CameraGone(self._line(fault))

    def latest(self, max_age_s: float) -> Frame:
        """The newest frame, if it is not older than ``max_age_s``.

        Raises:
            CameraGone: it is older, or there is none; the line says why.
        """
        with self._changed:
            frame, fault = self._frame, self._fault
        if frame is None:
            raise CameraGone(self._line(fault))
        age_s = self._clock() - frame.t_captured_s
        if age_s > max_age_s:
            why = fault or f"its newest frame is {age_s * 1000:.0f} ms old"
            raise CameraGone(self._line(why))
        return frame

    def close(self) -> None:
        """End the thread. Never raises and may be called twice."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._closing.set()
        with self._changed:
            source = self._source
        if isinstance(source, _StreamSource):
            source.interrupt()
        thread.join(self.config.stall_s + 1.0)
        with self._changed:
            self._frame, self._fault = None, "it is closed"

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _line(self, why: str) -> str:
        return (
            f"camera {self.config.name} ({self.config.source}) is gone: {why}; "
            "check its cable and its address"
        )

    # -- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._capture()
            except (CameraGone, BadImage) as error:
                if self._closing.is_set():
                    return
                with self._changed:
                    fresh = self._fault != str(error)
                    self._fault = str(error)
                if fresh:
                    log.warning("camera %s: %s", self.config.name, error)
                self.reconnects += 1
            self._closing.wait(self.config.retry_s)

    def _died(self, line: str) -> None:
        with self._changed:
            self._fault = line

    def _capture(self) -> None:
        source = _open_source(self.config, self._clock)
        with self._changed:
            self._source = source
        try:
            while not self._closing.is_set():
                image, jpeg, t_captured_s = source.next()
                self._publish(image, jpeg, t_captured_s)
        finally:
            with self._changed:
                self._source = None
            source.close()

    def _publish(self, image: NDArray[np.uint8], jpeg: bytes | None, t_captured_s: float) -> None:
        expected = (self.config.height, self.config.width, 3)
        if image.shape != expected:
            raise BadImage(
                f"it sends {image.shape[1]}x{image.shape[0]}, "
                f"the configuration says {self.config.width}x{self.config.height}"
            )
        image.flags.writeable = False
        with self._changed:
            self._frame = Frame(self._sequence, t_captured_s, image, jpeg)
            self._sequence += 1
            self._fault = ""
            self._changed.notify_all()


def _open_source(config: CameraConfig, clock: Callable[[], float]) -> _Source:
    if isinstance(config.source, str) and config.source.startswith(("http://", "https://")):
        return _StreamSource(config, clock)
    return _DeviceSource(config, clock)


class _StreamSource:
    """MJPEG over HTTP."""

    def __init__(self, config: CameraConfig, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._stream = MjpegStream(str(config.source), config.stall_s)

    def next(self) -> tuple[NDArray[np.uint8], bytes | None, float]:
        pictures: list[bytes] = []
        while not pictures:
            pictures = self._stream.read()
        t_captured_s = self._clock()
        # Decoding what a newer picture has overtaken would only add to its delay.
        jpeg = pictures[-1]
        image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
        if image is None:
            raise BadImage("it sent a picture that is no JPEG")
        return np.asarray(image, np.uint8), jpeg, t_captured_s

    def interrupt(self) -> None:
        self._stream.interrupt()

    def close(self) -> None:
        self._stream.close()


class _DeviceSource:
    """A V4L2 device through OpenCV."""

    def __init__(self, config: CameraConfig, clock: Callable[[], float]) -> None:
        self._clock = clock
        source = config.source
        if isinstance(source, str) and source.isdigit():
            source = int(source)
        self._capture = cv2.VideoCapture(source)
        if not self._capture.isOpened():
            self._capture.release()
            raise CameraGone("no such device, or another program uses it")
        self._capture.set(cv2.CAP_PROP_FRAME_WIDTH, config.width)
        self._capture.set(cv2.CAP_PROP_FRAME_HEIGHT, config.height)
        self._capture.set(cv2.CAP_PROP_FPS, config.fps)
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)

    def next(self) -> tuple[NDArray[np.uint8], bytes | None, float]:
        good, image = self._capture.read()
        t_captured_s = self._clock()
        if not good:
            raise CameraGone("the device sends no more frames")
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8), None, t_captured_s

    def close(self) -> None:
        self._capture.release()
