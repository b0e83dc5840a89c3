"""Who demonstrates what, and who is tried where: pure, from a seed.

Three robots each see their own sector of the table, so that no robot alone has data for the whole
of it. Trials lie in every sector, on placements at least `CLEARANCE_M` from any demonstrated one.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from robot_io.twin.layout import (
    RADIUS_MAX_M,
    RADIUS_MIN_M,
    YAW_JITTER_RAD,
    TableSector,
    table_sectors,
)

TASK = "Pick up the red cube"

CLEARANCE_M = 0.002


@dataclass(frozen=True)
class Placement:
    """Where the cube stands: table coordinates in the arm's base frame."""

    sector: str
    x_m: float
    y_m: float
    yaw_rad: float


@dataclass(frozen=True)
class Trial:
    """One closed-loop attempt: which policy, on which placement."""

    policy: str
    placement: Placement


@dataclass(frozen=True)
class RobotPlan:
    """What one robot does in the demo."""

    robot_id: str
    seed: int
    sector: TableSector
    demonstrations: tuple[Placement, ...]
    trials: tuple[Trial, ...]


def _draw(rng: random.Random, sector: TableSector) -> Placement:
    radius_m = rng.uniform(RADIUS_MIN_M, RADIUS_MAX_M)
    azimuth_rad = math.radians(rng.uniform(sector.azimuth_min_deg, sector.azimuth_max_deg))
    return Placement(
        sector.name,
        radius_m * math.cos(azimuth_rad),
        radius_m * math.sin(azimuth_rad),
        azimuth_rad + rng.uniform(-YAW_JITTER_RAD, YAW_JITTER_RAD),
    )


def _draw_clear(rng: random.Random, sector: TableSector, taken: list[Placement]) -> Placement:
    while True:
        candidate = _draw(rng, sector)
        if all(
            math.hypot(candidate.x_m - other.x_m, candidate.y_m - other.y_m) >= CLEARANCE_M
            for other in taken
        ):
            return candidate


def make_plan(
    robots: int, episodes: int, trials_per_sector: int, policies: tuple[str, ...], seed: int
) -> tuple[RobotPlan, ...]:
    """Draw the demo's placements.

    Every robot tries every policy on the same placements, so that the policies are compared
    pairwise; the policies alternate from placement to placement, so that a slow drift of the
    machine favours none.

    Raises:
        ValueError: a count below one.
    """
    if min(robots, episodes, trials_per_sector) < 1 or not policies:
        raise ValueError("robots, episodes, trials per sector and policies must be at least one")
    rng = random.Random(seed)  # noqa: S311 - placements are not secrets
    slices = table_sectors(robots)
    demonstrated = {
        sector.name: tuple(_draw(rng, sector) for _ in range(episodes)) for sector in slices
    }
    everywhere = [place for places in demonstrated.values() for place in places]
    plans = []
    for index, own in enumerate(slices):
        placements = [
            _draw_clear(rng, sector, everywhere)
            for _ in range(trials_per_sector)
            for sector in slices
        ]
        trials = [
            Trial(policy, placement)
            for number, placement in enumerate(placements)
            for policy in (policies if number % 2 == 0 else policies[::-1])
        ]
        plans.append(
            RobotPlan(f"arm-{index + 1}", seed + index, own, demonstrated[own.name], tuple(trials))
        )
    return tuple(plans)
