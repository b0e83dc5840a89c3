"""How much worse or better one policy is than another on the same episodes, and how sure that is.

Each robot's episodes give log ratios of errors. A robot counts by their mean, the fleet by the
trimmed mean of its robots: of three to nine robots the lowest and the highest are left out, so that
no single one decides. Episodes are drawn again within each robot (bootstrap) to see how far the
fleet's ratio may lie by chance. Pure; equal input gives equal output.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist, median

import numpy as np
from numpy.typing import NDArray

type Array = NDArray[np.float64]

MIN_EPISODES = 2  # of one episode nobody can say how it scatters
ERROR_FLOOR = 0.01  # raw joint units: a ninth of a servo's step; below it errors are equal
MOST_RATIO = 10.0  # what one episode may say, either way
WEIGHT_CAP = 2.0  # times the median robot's frames
TRIMMED_SHARE = 5  # one robot in so many at either end, and at least one
RESAMPLES = 1000


@dataclass(frozen=True)
class RobotPairs:
    """One robot's episodes that both were scored on."""

    log_ratios: Array  # float64 [n], n >= MIN_EPISODES, of `log_ratio`
    frames: int

    @property
    def ratio(self) -> float:
        """Geometric mean over the episodes."""
        return math.exp(float(self.log_ratios.mean()))


@dataclass(frozen=True)
class Comparison:
    """Errors of the one as a multiple of the other's."""

    ratio: float
    at_most: float  # upper bound at `confidence`, one-sided
    confidence: float
    robots: dict[str, float]  # each robot's own ratio
    episodes: int

    def line(self, what: str) -> str:
        """With all its numbers."""
        return (
            f"held-out error is {self.ratio:.3f} times {what} and with {self.confidence:.0%} "
            f"confidence at most {self.at_most:.3f} times "
            f"({len(self.robots)} robots, {self.episodes} episodes)"
        )


def log_ratio(error: float, other: float) -> float:
    """Of two mean errors; NaN when one is NaN."""
    ratio = math.log(max(error, ERROR_FLOOR) / max(other, ERROR_FLOOR))
    most = math.log(MOST_RATIO)
    return ratio if math.isnan(ratio) else min(max(ratio, -most), most)


def capped_weights(frames: Mapping[str, int]) -> dict[str, float]:
    """Frames as weights, none above WEIGHT_CAP times the median."""
    most = WEIGHT_CAP * median(frames.values())
    return {agent: min(float(count), most) for agent, count in frames.items()}


def compare(pairs: Mapping[str, RobotPairs], confidence: float) -> Comparison:
    """The fleet's ratio. `pairs` by robot, at least one; their order does not matter."""
    agents = sorted(pairs)
    weights = capped_weights({agent: pairs[agent].frames for agent in agents})
    weight = np.array([weights[agent] for agent in agents])
    means = np.array([pairs[agent].log_ratios.mean() for agent in agents])
    fleet = float(_trimmed_mean(means[None, :], weight)[0])
    sizes = [len(pairs[agent].log_ratios) for agent in agents]
    # Few episodes hide how far they scatter: Student's t instead of the normal distribution, to
    # its first order. By the median, so that a robot with many episodes makes nobody surer.
    z = NormalDist().inv_cdf(confidence)
    freedom = len(agents) * (median(sizes) - 1)
    widened = 1.0 + (z * z + 1.0) / (4.0 * freedom)
    random = np.random.default_rng(0)
    drawn = np.stack(
        [
            mean + widened * _resampled(pairs[agent].log_ratios, random)
            for agent, mean in zip(agents, means, strict=True)
        ],
        axis=1,
    )
    bound = float(np.quantile(_trimmed_mean(drawn, weight), confidence))
    return Comparison(
        ratio=math.exp(fleet),
        at_most=math.exp(max(bound, fleet)),
        confidence=confidence,
        robots={agent: pairs[agent].ratio for agent in agents},
        episodes=sum(sizes),
    )


def _resampled(values: Array, random: np.random.Generator) -> Array:
    """Deviations of RESAMPLES bootstrapped means, with the scatter of the whole population."""
    count = len(values)
    residuals = (values - values.mean()) * math.sqrt(count / (count - 1))
    return residuals[random.integers(count, size=(RESAMPLES, count))].mean(axis=1)


def _trimmed_mean(means: Array, weight: Array) -> Array:
    """Of each row of [R, robots]: the weighted mean without the lowest and highest robots."""
    robots = means.shape[1]
    cut = max(1, robots // TRIMMED_SHARE) if robots > 2 else 0
    kept = np.argsort(means, axis=1, kind="stable")[:, cut : robots - cut]
    share = weight[kept]
    return (np.take_along_axis(means, kept, axis=1) * share).sum(axis=1) / share.sum(axis=1)
