"""Where a coloured object lies on the table, from one camera image. Pure, and cheap enough for
every tick of the control loop."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from robot_io.errors import BadImage


@dataclass(frozen=True, slots=True)
class TrackerConfig:
    """What the object looks like and how pixels map to the table.

    Attributes:
        hue_min_deg, hue_max_deg: hue on the colour circle; a range over 0 (red) has min > max.
        saturation_min, value_min: 0..1, to leave out grey and dark.
        min_area_px: smaller blobs are noise.
        homography: 3 rows of 3; maps (u, v, 1) in pixels, u to the right and v downwards from
            the centre of the first pixel, to (x, y, w) on the table; x/w and y/w are metres in the
            arm's base frame.
    """

    hue_min_deg: float
    hue_max_deg: float
    saturation_min: float
    value_min: float
    min_area_px: float
    homography: tuple[tuple[float, float, float], ...]

    def __post_init__(self) -> None:
        for name in ("hue_min_deg", "hue_max_deg"):
            if not 0.0 <= getattr(self, name) <= 360.0:
                raise ValueError(f"tracker.{name} must be within 0..360")
        for name in ("saturation_min", "value_min"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"tracker.{name} must be within 0..1")
        if not self.min_area_px > 0:
            raise ValueError("tracker.min_area_px must be above 0")
        matrix = np.array(self.homography, np.float64)
        if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
            raise ValueError("tracker.homography must be 3 rows of 3 numbers")
        if abs(np.linalg.det(matrix)) == 0.0:
            raise ValueError("tracker.homography maps the image to a line: measure it again")


class BlobTracker:
    """Finds the largest blob of one colour and tells where on the table its centre is."""

    def __init__(self, config: TrackerConfig) -> None:
        self.config = config
        self._homography = np.array(config.homography, np.float64)

    def locate(self, image: NDArray[np.uint8]) -> tuple[float, float] | None:
        """(x, y) in metres of the object's centre, or None when it is not to be seen.

        Args:
            image: uint8 [H, W, 3] RGB.

        Raises:
            BadImage: another shape or type.
        """
        centre = self.locate_pixel(image)
        return None if centre is None else self.to_table(*centre)

    def locate_pixel(self, image: NDArray[np.uint8]) -> tuple[float, float] | None:
        """(u, v) in pixels of the object's centre, weighed over its pixels, or None."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise BadImage(f"an image is uint8 [H, W, 3], got {image.dtype} {image.shape}")
        count, _, stats, centroids = cv2.connectedComponentsWithStats(self._mask(image))
        if count < 2:
            return None
        largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
        if stats[largest, cv2.CC_STAT_AREA] < self.config.min_area_px:
            return None
        u, v = centroids[largest]
        return float(u), float(v)

    def to_table(self, u: float, v: float) -> tuple[float, float] | None:
        """Metres of a pixel, or None for a pixel on the horizon."""
        x, y, w = self._homography @ (u, v, 1.0)
        return None if w == 0.0 else (float(x / w), float(y / w))

    def _mask(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        config = self.config
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        # OpenCV keeps hue in steps of two degrees, 0..179.
        low, high = config.hue_min_deg / 2, config.hue_max_deg / 2
        floor = (config.saturation_min * 255, config.value_min * 255)
        if low <= high:
            return np.asarray(cv2.inRange(hsv, (low, *floor), (high, 255, 255)), np.uint8)
        above = cv2.inRange(hsv, (low, *floor), (180, 255, 255))
        below = cv2.inRange(hsv, (0, *floor), (high, 255, 255))
        return np.asarray(cv2.bitwise_or(above, below), np.uint8)
