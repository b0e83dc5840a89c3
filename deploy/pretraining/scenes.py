"""Pictures of the twin's table in random light and colours, and what is to be seen in them.

Nothing of a task is in them: the arm stands in any pose and does nothing, the cube lies anywhere.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence

import mujoco
import numpy as np
from numpy.typing import NDArray

from robot_io.twin.layout import CubePlacement
from robot_io.twin.objects import CUBE_SIZE_M
from robot_io.twin.painter import Painter
from robot_io.twin.scene import (
    CAMERA_CENTRE_M,
    CAMERA_HEIGHT_M,
    GRASP_SITE,
    REST_JOINTS_RAD,
    Scene,
    SceneCamera,
    build_scene,
    overhead_fovy_deg,
)

# To be found: the cube's centre, the point between the fingertips, three of the arm's bodies.
_BODIES = ("gripper", "wrist", "lower_arm")
THINGS = 2 + len(_BODIES)

# Wider than where a task's motions lead, within what the camera sees; rad.
_LOW_RAD = (-1.0, -1.75, -0.6, 0.3, -0.4, 0.0)
_HIGH_RAD = (1.0, 0.6, 1.5, 1.7, 0.4, 0.7)
_CUBE_RADIUS_M = (0.11, 0.26)
_CUBE_AZIMUTH_RAD = 1.0
_HELD_SHARE = 0.15  # of the pictures, with the cube between the fingertips
_REST_SHARE = 0.4  # with the arm near its rest pose
_REST_SPREAD_RAD = 0.1
_CAMERA_SHIFT_M = 0.006
_N_JOINTS = 6


class RandomScenes:
    """Draws pictures uint8 [N, 3, H, W] and places float32 [N, THINGS, 2] from a seed.

    A place is x and y in the picture, -1..1 from its left and its top.
    """

    def __init__(self, size: tuple[int, int], random: np.random.Generator) -> None:
        self._camera = SceneCamera("overhead", *size, 30.0)
        self._random = random
        self._scene: Scene = build_scene((self._camera,))
        self._painter = Painter((self._camera,), self._scene)
        self._data = self._scene.new_data()
        model = self._scene.model
        self._colours = model.geom_rgba.copy()
        self._cube, self._table = model.geom("cube").id, model.geom("table").id
        self._view = model.camera("overhead").id

    def draw(self, count: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        shots = [self._one() for _ in range(count)]
        pictures = np.stack([picture for picture, _ in shots]).transpose(0, 3, 1, 2)
        return np.ascontiguousarray(pictures), np.stack([label for _, label in shots])

    def close(self) -> None:
        """Give the graphics context back."""
        self._painter.close()

    def _one(self) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        self._dress()
        tips = self._pose_arm()
        while tips[2] < 0.005:  # in the table
            tips = self._pose_arm()
        things = [self._place_cube(tips), tips, *(self._data.body(name).xpos for name in _BODIES)]
        self._painter.set_pose(self._scene.pose(self._data))
        return self._painter.draw(self._camera), self._seen_at(np.array(things))

    def _seen_at(self, places_m: NDArray[np.float64]) -> NDArray[np.float32]:
        """The camera looks straight down; the picture's top is +x, its left +y."""
        off = places_m - self._scene.model.cam_pos[self._view]
        half = -off[:, 2] * math.tan(math.radians(overhead_fovy_deg()) / 2)
        aspect = self._camera.width / self._camera.height
        seen = np.stack((-off[:, 1] / (half * aspect), -off[:, 0] / half), axis=1)
        return np.clip(seen, -1.0, 1.0).astype(np.float32)

    def _pose_arm(self) -> NDArray[np.float64]:
        random = self._random
        if random.random() < _REST_SHARE:
            spread = random.normal(0.0, _REST_SPREAD_RAD, _N_JOINTS)
            self._data.qpos[:_N_JOINTS] = np.array(REST_JOINTS_RAD) + spread
        else:
            self._data.qpos[:_N_JOINTS] = random.uniform(_LOW_RAD, _HIGH_RAD)
        mujoco.mj_kinematics(self._scene.model, self._data)
        return np.array(self._data.site(GRASP_SITE).xpos)

    def _place_cube(self, tips: NDArray[np.float64]) -> NDArray[np.float64]:
        random, scene = self._random, self._scene
        radius_m = random.uniform(*_CUBE_RADIUS_M)
        azimuth = random.uniform(-_CUBE_AZIMUTH_RAD, _CUBE_AZIMUTH_RAD)
        x_m, y_m = radius_m * math.cos(azimuth), radius_m * math.sin(azimuth)
        turned = random.uniform(-math.pi, math.pi)
        scene.place(self._data, 0, CubePlacement(x_m, y_m, turned))
        first = scene.cubes[0].qpos
        if random.random() < _HELD_SHARE:
            held = (tips[0], tips[1], max(tips[2], CUBE_SIZE_M / 2))
            self._data.qpos[first : first + 3] = held
        return np.array(self._data.qpos[first : first + 3])

    def _dress(self) -> None:
        random, model = self._random, self._scene.model
        model.geom_rgba[:, :3] = np.clip(
            self._colours[:, :3] * random.uniform(0.7, 1.3)
            + random.uniform(-0.06, 0.06, self._colours[:, :3].shape),
            0.0,
            1.0,
        )
        grey, tint = random.uniform(0.25, 0.9), random.uniform(-0.08, 0.08, 3)
        model.geom_rgba[self._table, :3] = np.clip(grey + tint, 0.0, 1.0)
        # Red most often, as in the tasks, but any saturated colour that the arm does not wear.
        hue = random.normal(0.0, 0.03) if random.random() < 0.6 else random.uniform(0.25, 1.0)
        model.geom_rgba[self._cube, :3] = colorsys.hsv_to_rgb(
            hue % 1.0, random.uniform(0.75, 1.0), random.uniform(0.5, 1.0)
        )
        model.light_diffuse[0] = random.uniform(0.25, 0.65)
        model.light_dir[0] = (*random.uniform(-0.6, 0.6, 2), -1.0)
        model.vis.headlight.ambient[:] = random.uniform(0.3, 0.65)
        shift = random.uniform(-_CAMERA_SHIFT_M, _CAMERA_SHIFT_M, 3)
        model.cam_pos[self._view] = np.array((*CAMERA_CENTRE_M, CAMERA_HEIGHT_M)) + shift


def draw_scenes(
    sizes: Sequence[tuple[int, int]], count: int, seed: int
) -> list[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
    """``count`` pictures and labels of each size (width, height)."""
    drawn = []
    for index, size in enumerate(sizes):
        scenes = RandomScenes(size, np.random.default_rng((seed, index)))
        drawn.append(scenes.draw(count))
        scenes.close()
    return drawn
