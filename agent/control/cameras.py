"""The cameras and the tracker: what the robot sees at one tick, never a stale picture."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from agent.config import AgentConfig, CameraSettings
from agent.control.observation import Vector
from host.threads import spawn
from robot_io.cameras import Camera, CameraConfig, Frame
from robot_io.errors import CameraGone
from robot_io.tracker import BlobTracker, TrackerConfig

log = logging.getLogger(__name__)

OPEN_TIMEOUT_S = 5.0
REOPEN_S = 2.0


@dataclass(frozen=True)
class View:
    """One look. `missing` has one line for each camera without a fresh picture.

    `environment` is NaN where nothing was ever seen, or where the tracker's camera is missing.
    """

    frames: dict[str, Frame] = field(default_factory=dict)
    environment: Vector = field(default_factory=lambda: np.zeros(0, np.float32))
    missing: tuple[str, ...] = ()

    @property
    def located(self) -> bool:
        """True when every tracked place is known."""
        return bool(np.isfinite(self.environment).all())


class Cameras:
    """Opens every camera in the background, again and again, and looks through them on demand.

    A tracked object that is hidden keeps its last known place.
    """

    def __init__(self, config: AgentConfig) -> None:
        self._max_age_s = config.control.camera_max_age_s
        self._cameras = {
            name: Camera(_camera_config(name, settings, config.control.camera_max_age_s))
            for name, settings in config.cameras.items()
        }
        self._open: dict[str, bool] = dict.fromkeys(self._cameras, False)
        self._trouble: dict[str, str] = {}
        self._closing = threading.Event()
        self._tracker: BlobTracker | None = None
        self._tracker_camera = ""
        self._object = ""
        if (tracker := config.tracker) is not None:
            self._tracker = BlobTracker(
                TrackerConfig(
                    hue_min_deg=tracker.hue_min_deg,
                    hue_max_deg=tracker.hue_max_deg,
                    saturation_min=tracker.saturation_min,
                    value_min=tracker.value_min,
                    min_area_px=tracker.min_area_px,
                    homography=tracker.homography,
                )
            )
            self._tracker_camera = tracker.camera
            self._object = tracker.object
        self._place: Vector = np.full(len(config.environment_names), np.nan, np.float32)
        self._tracked_sequence = -1
        self.seen = False  # in the newest picture looked at

    def open(self) -> None:
        """Start opening the cameras; returns at once."""
        for name in self._cameras:
            open_it = partial(self._keep_opening, name)
            spawn(f"opener-{name}", open_it, partial(self._trouble.__setitem__, name))

    def look(self) -> View:
        """What is to be seen now. Cheap enough for every tick: a picture is tracked once."""
        frames: dict[str, Frame] = {}
        missing: list[str] = []
        for name, camera in self._cameras.items():
            if not self._open[name]:
                missing.append(self._trouble.get(name, f"camera {name} is being opened"))
                continue
            try:
                frames[name] = camera.latest(self._max_age_s)
            except CameraGone as error:
                missing.append(str(error))
        return View(frames, self._track(frames), tuple(missing))

    def unseen(self) -> str:
        """One line for an operator who wants to start while the object was never seen."""
        return (
            f"the {self._object} was not seen yet by camera {self._tracker_camera}: "
            "put it on the table in sight, or check [tracker] hue, saturation and value"
        )

    def status(self) -> dict[str, dict[str, int | bool]]:
        """Reconnects of each camera and whether it is open."""
        return {
            name: {"open": self._open[name], "reconnects": camera.reconnects}
            for name, camera in self._cameras.items()
        }

    def close(self) -> None:
        """End every camera."""
        self._closing.set()
        for camera in self._cameras.values():
            camera.close()

    def _track(self, frames: dict[str, Frame]) -> Vector:
        if self._tracker is None:
            return self._place
        frame = frames.get(self._tracker_camera)
        if frame is None:
            return np.full_like(self._place, np.nan)
        if frame.sequence != self._tracked_sequence:
            self._tracked_sequence = frame.sequence
            place = self._tracker.locate(frame.image)
            self.seen = place is not None
            if place is not None:
                self._place = np.array(place, np.float32)
        return self._place

    def _keep_opening(self, name: str) -> None:
        """Until a camera has opened once; after that its own thread reconnects."""
        while not self._closing.is_set():
            try:
                self._cameras[name].open(OPEN_TIMEOUT_S)
                self._open[name] = True
                return
            except CameraGone as error:
                if self._trouble.get(name) != str(error):
                    log.warning("%s", error)
                self._trouble[name] = str(error)
            self._closing.wait(REOPEN_S)


def _camera_config(name: str, settings: CameraSettings, max_age_s: float) -> CameraConfig:
    return CameraConfig(
        name=name,
        source=settings.source,
        width=settings.width,
        height=settings.height,
        fps=settings.fps,
        stall_s=max(2.0, max_age_s),
    )
