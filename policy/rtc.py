"""Real-time chunking (Black et al. 2025): how much of the previous chunk binds the next one.

What the arm will have played when the next chunk comes binds it fully, what lies within the
horizon less and less, the rest not at all. Only numpy: the robot's scheduler asks.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from policy.weights import Array

type Schedule = Literal["LINEAR", "EXP"]


def prefix_weights(
    delay: int, horizon: int, chunk_size: int, schedule: Schedule = "LINEAR"
) -> Array:
    """Float32 [chunk_size]: LeRobot's ``RTCProcessor.get_prefix_weights``.

    ``delay``: rows that are played before the chunk can come; ``horizon``: rows of the previous
    chunk that are left, or fewer. Row 0 belongs to the observation's tick in both.
    """
    horizon = min(max(horizon, 0), chunk_size)
    delay = min(max(delay, 0), horizon)
    falling = np.linspace(1.0, 0.0, horizon - delay + 2)[1:-1]
    if schedule == "EXP":
        falling = falling * np.expm1(falling) / (math.e - 1.0)
    rest = np.zeros(chunk_size - horizon)
    return np.concatenate([np.ones(delay), falling, rest]).astype(np.float32)


def previous_chunk(left: Array, chunk_size: int) -> Array:
    """What is left of a chunk [N, A] (row 0: the observation's tick) as the graph's input [C, A].

    Rows that are missing have no weight; they repeat the last, so that nothing is far out.
    """
    rows = np.asarray(left, np.float32)[:chunk_size]
    return np.pad(rows, ((0, chunk_size - len(rows)), (0, 0)), mode="edge")
