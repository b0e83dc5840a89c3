"""Where the tracker would put the cube, without a picture: rays from the overhead camera. Pure.

A ray stands for a pixel of a 128 by 96 picture. Those that meet the cube first are what the
camera sees of it; their centroid, at the height for which the homography holds, is what
`robot_io.tracker` gives. So a gripper over the cube hides it here as there. A camera that is
turned a little is taken as one that looks straight down from its place.
"""

from __future__ import annotations

import math
from typing import Any

import mujoco
import numpy as np

from robot_io.twin.objects import CUBE_SIZE_M
from robot_io.twin.scene import (
    CAMERA_SPAN_X_M,
    Scene,
    overhead_position_m,
)
from robot_io.twin.variation import PLAIN, SceneVariation

_PITCH_M = CAMERA_SPAN_X_M / 96
# Half of the cube's diagonal and of a pitch.
_WINDOW_M = 0.0195
# The tracker's least area is 4 pixels, but at an edge a pixel's hue is mixed: 5 and 6 agree best.
_LEAST_RAYS = 5
_HALF_SPAN_M = (CAMERA_SPAN_X_M / 2, CAMERA_SPAN_X_M * 2 / 3)


class Overlook:
    """Casts rays at the first cube; remembers nothing from look to look."""

    def __init__(self, scene: Scene, variation: SceneVariation = PLAIN) -> None:
        self._model: Any = scene.model
        self._cube_qpos = scene.cubes[0].qpos
        self._cube_geom = scene.cubes[0].geom
        self._eye = np.array(overhead_position_m(variation))
        reach = math.ceil(_WINDOW_M / _PITCH_M)
        offsets = np.arange(-reach, reach + 1) * _PITCH_M
        self._grid = np.stack(np.meshgrid(offsets, offsets, indexing="ij"), -1).reshape(-1, 2)
        self._depth_m = self._eye[2] - CUBE_SIZE_M / 2
        self._rays = np.full((len(self._grid), 3), -self._depth_m)
        self._geoms = np.empty(len(self._grid), np.int32)
        self._distances = np.empty(len(self._grid))

    def locate(self, data: Any) -> tuple[float, float] | None:
        """(x, y) in metres for the pose in ``data``, or None while nothing of the cube is seen."""
        # A step leaves the places of the geoms where they were before it.
        mujoco.mj_kinematics(self._model, data)
        x_m, y_m, z_m = data.qpos[self._cube_qpos : self._cube_qpos + 3].tolist()
        # Where the cube's centre appears, at the height of a cube that lies on the table.
        grown = self._depth_m / (self._eye[2] - z_m)
        offset = np.array(
            [
                round((at - eye) * grown / _PITCH_M) * _PITCH_M
                for at, eye in zip((x_m, y_m), self._eye[:2].tolist(), strict=True)
            ]
        )
        # Without what stands still: table and base hide nothing.
        self._rays[:, :2] = self._grid + offset
        mujoco.mj_multiRay(
            self._model, data, self._eye, self._rays.reshape(-1), None, 0, -1, self._geoms,
            self._distances, None, len(self._rays), mujoco.mjMAXVAL,
        )  # fmt: skip
        seen = self._rays[self._geoms == self._cube_geom, :2]
        seen = seen[(np.abs(seen) <= _HALF_SPAN_M).all(axis=1)]
        if len(seen) < _LEAST_RAYS:
            return None
        x_m, y_m = (seen.sum(axis=0) / len(seen) + self._eye[:2]).tolist()
        return x_m, y_m
