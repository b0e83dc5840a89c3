"""Where things stand on the table, and where they may be drawn. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from robot_io.twin.shared import Float

# The vertical gripper reaches a cube on the table between these radii about the base.
RADIUS_MIN_M = 0.165
RADIUS_MAX_M = 0.210
AZIMUTH_MAX_DEG = 42.0
YAW_JITTER_RAD = 0.10


@dataclass(frozen=True, slots=True)
class CubePlacement:
    """Where a cube, or a mark, stands: its centre in the arm's base frame, and its turn.

    Raises:
        ValueError: a number is not finite.
    """

    x_m: float
    y_m: float
    yaw_rad: float = 0.0

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.x_m, self.y_m, self.yaw_rad))):
            raise ValueError(f"a placement is three finite numbers, got {self}")

    def distance_m(self, other: CubePlacement) -> float:
        """Between the centres."""
        return math.hypot(self.x_m - other.x_m, self.y_m - other.y_m)

    @property
    def parked(self) -> bool:
        """Whether it is one that a layout does not need."""
        return self.distance_m(PARKED) < _PARKING_M


type Layout = tuple[CubePlacement, ...]
"""A placement for each object of a task: its cubes, then its marks."""

# Where what a layout does not need lies: beyond the arm's reach and out of the overhead picture.
PARKED = CubePlacement(-0.4, 0.4)
_PARKING_M = 0.05


@dataclass(frozen=True, slots=True)
class TableSector:
    """A slice of the table, by azimuth about the arm's base, 0° straight ahead."""

    name: str
    azimuth_min_deg: float
    azimuth_max_deg: float

    def __post_init__(self) -> None:
        if not -90.0 <= self.azimuth_min_deg < self.azimuth_max_deg <= 90.0:
            raise ValueError(f"a sector's azimuths grow, within -90..90°, got {self}")


WHOLE_TABLE = TableSector("whole", -AZIMUTH_MAX_DEG, AZIMUTH_MAX_DEG)


def table_sectors(count: int) -> tuple[TableSector, ...]:
    """Equal slices of the reachable table, from the arm's right to its left.

    Raises:
        ValueError: a count outside 1..64.
    """
    if not 1 <= count <= 64:
        raise ValueError(f"{count} sectors: 1 to 64 are possible")
    names = ("right", "centre", "left") if count == 3 else tuple(f"s{i + 1}" for i in range(count))
    width_deg = 2 * AZIMUTH_MAX_DEG / count
    edges = pairwise([-AZIMUTH_MAX_DEG + i * width_deg for i in range(count + 1)])
    return tuple(
        TableSector(name, low, high) for name, (low, high) in zip(names, edges, strict=True)
    )


def at(radius_m: float, azimuth_rad: float, yaw_rad: float | None = None) -> CubePlacement:
    """A placement in polar coordinates about the base; turned to the base unless told."""
    yaw_rad = azimuth_rad if yaw_rad is None else yaw_rad
    return CubePlacement(
        radius_m * math.cos(azimuth_rad), radius_m * math.sin(azimuth_rad), yaw_rad
    )


def draw_in(
    dice: np.random.Generator,
    sector: TableSector,
    radius_m: tuple[float, float] = (RADIUS_MIN_M, RADIUS_MAX_M),
) -> CubePlacement:
    """A cube in the sector, turned to the base up to `YAW_JITTER_RAD`."""
    radius = dice.uniform(*radius_m)
    azimuth = math.radians(dice.uniform(sector.azimuth_min_deg, sector.azimuth_max_deg))
    return at(radius, azimuth, azimuth + dice.uniform(-YAW_JITTER_RAD, YAW_JITTER_RAD))


@dataclass(frozen=True, slots=True)
class TableState:
    """What there is to judge success by.

    Attributes:
        cubes_m: [N, 3], the cubes' centres.
        speeds_m_s: [N].
        highest_m: [N], the highest that each centre has been since it was placed.
        marks_m: [K, 2].
        grip_m: [3], where a held cube's centre would be.
    """

    cubes_m: Float
    speeds_m_s: Float
    highest_m: Float
    marks_m: Float
    grip_m: Float
