"""How long a loaded policy takes on this host."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from policy.session import OnnxPolicy


def measure_latency_ms(
    policy: OnnxPolicy,
    observation: Mapping[str, NDArray[Any]],
    *,
    runs: int,
    within_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Return the milliseconds of at most `runs` inferences begun `within_s`, after one unmeasured.

    The first run allocates. Raises PolicyError.
    """
    policy.infer(observation)
    end_s = clock() + within_s
    times: list[float] = []
    while len(times) < runs and (not times or clock() < end_s):
        begun_s = clock()
        policy.infer(observation)
        times.append((clock() - begun_s) * 1000.0)
    return times


def percentile(values: list[float], percent: float) -> float:
    """Return the smallest value that `percent` per cent of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100.0) - 1)]
