"""What differs from robot to robot: where its cubes lie, its light, table, cubes and camera. Pure.

It changes pictures alone, and where the sector says, placements; never the physics. `PLAIN` is
the scene without any difference.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, fields

import numpy as np

from robot_io.twin.layout import AZIMUTH_MAX_DEG, WHOLE_TABLE, TableSector
from robot_io.twin.objects import Rgb
from robot_io.twin.shared import Float

TABLE_RGB: Rgb = (0.62, 0.63, 0.62)
LIGHT_DIRECTION = (0.2, 0.1, -1.0)
SECTOR_WIDTH_DEG = 28.0

# Least and greatest of each number. A tracker must still find the red cube by its hue, and nothing
# else by it; the whole region of the tasks must stay in the picture.
_BOUNDS = {
    "light_gain": (0.75, 1.25),
    "light_tint": (0.92, 1.08),
    "light_direction": (-1.0, 0.6),
    "table_rgb": (0.40, 0.80),
    "cube_gain": (0.75, 1.10),
    "cube_turn_deg": (-8.0, 8.0),
    "camera_shift_m": (-0.010, 0.010),
    "camera_turn_deg": (-1.2, 1.2),
}


@dataclass(frozen=True, slots=True)
class SceneVariation:
    """One robot's scene.

    Attributes:
        sector: where its first cube is placed.
        light_gain, light_tint: of all light, and of its red, green and blue.
        light_direction: of the lamp.
        table_rgb: 0..1.
        cube_gain, cube_turn_deg: brightness and turn of hue of the cubes.
        camera_shift_m, camera_turn_deg: of the overhead camera, about its own three axes.

    Raises:
        ValueError: a number out of its bounds.
    """

    sector: TableSector = WHOLE_TABLE
    light_gain: float = 1.0
    light_tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    light_direction: tuple[float, float, float] = LIGHT_DIRECTION
    table_rgb: Rgb = TABLE_RGB
    cube_gain: float = 1.0
    cube_turn_deg: float = 0.0
    camera_shift_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    camera_turn_deg: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        for each in fields(self):
            if each.name in _BOUNDS:
                low, high = _BOUNDS[each.name]
                value = np.atleast_1d(getattr(self, each.name))
                if not ((low <= value) & (value <= high)).all():
                    raise ValueError(f"{each.name} must be within {low}..{high}, got {value}")

    def cube_rgb(self, rgb: Rgb) -> Rgb:
        """A cube's colour on this robot's table."""
        if (self.cube_gain, self.cube_turn_deg) == (1.0, 0.0):
            return rgb
        hue, saturation, value = colorsys.rgb_to_hsv(*rgb)
        return colorsys.hsv_to_rgb(
            (hue + self.cube_turn_deg / 360) % 1.0, saturation, min(1.0, value * self.cube_gain)
        )

    def lit(self, strength: float) -> Rgb:
        """Light of this strength: red, green and blue."""
        red, green, blue = (strength * self.light_gain * tint for tint in self.light_tint)
        return red, green, blue

    def camera_axes(self) -> Float:
        """Columns: the overhead camera's right, up and back in the base frame, [3, 3]."""
        straight_down = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
        axes: Float = straight_down
        for axis, angle in enumerate(np.radians(self.camera_turn_deg)):
            axes = axes @ _turn(axis, float(angle))
        return axes


PLAIN = SceneVariation()


def draw_variation(robot_seed: int) -> SceneVariation:
    """The scene of the robot with this seed; another seed, another scene."""
    dice = np.random.default_rng([robot_seed, 0x5CE7E])

    def three(name: str) -> tuple[float, float, float]:
        first, second, third = dice.uniform(*_BOUNDS[name], 3).tolist()
        return first, second, third

    middle_deg = dice.uniform(-1.0, 1.0) * (AZIMUTH_MAX_DEG - SECTOR_WIDTH_DEG / 2)
    half_deg = SECTOR_WIDTH_DEG / 2
    grey = dice.uniform(0.48, 0.72)
    return SceneVariation(
        sector=TableSector("own", middle_deg - half_deg, middle_deg + half_deg),
        light_gain=dice.uniform(*_BOUNDS["light_gain"]),
        light_tint=three("light_tint"),
        light_direction=(dice.uniform(-0.6, 0.6), dice.uniform(-0.6, 0.6), -1.0),
        table_rgb=_near(dice, grey, 0.06),
        cube_gain=dice.uniform(*_BOUNDS["cube_gain"]),
        cube_turn_deg=dice.uniform(*_BOUNDS["cube_turn_deg"]),
        camera_shift_m=three("camera_shift_m"),
        camera_turn_deg=three("camera_turn_deg"),
    )


def scene_of(robot_seed: int | None) -> SceneVariation:
    """`PLAIN` without a seed."""
    return PLAIN if robot_seed is None else draw_variation(robot_seed)


def _near(dice: np.random.Generator, grey: float, spread: float) -> Rgb:
    red, green, blue = (grey + dice.uniform(-spread, spread, 3)).tolist()
    return red, green, blue


def _turn(axis: int, angle_rad: float) -> Float:
    turn: Float = np.eye(3)
    first, second = (each for each in range(3) if each != axis)
    cosine, sine = np.cos(angle_rad), np.sin(angle_rad)
    turn[first, first] = turn[second, second] = cosine
    turn[second, first], turn[first, second] = sine, -sine
    return turn
