"""How often the release gate errs: an equal or better candidate refused, a worse one released.

    python benchmarks/release_gate.py [--trials 1000] [--seed 0]

Prints one JSON object. Each trial makes held-out reports and asks the gate itself, with its
defaults. An episode's error is that of the last release times the candidate's true ratio times
scatter: `sigma` is the standard deviation of the paired log ratio between the episodes of a robot.
What both policies share of an episode's difficulty cancels in the pair, however large it is.

Closed-loop trials are judged apart: both policies are tried at the same places, of which `apart` is
the share where only one of them succeeds although they are equally good.

Measured on the demo's three datasets (FedAvg, 12 rounds of 100 steps): sigma is 0.03 to 0.10 for
candidates one to three rounds apart, whose log errors correlate by 0.9 to 0.99, and 0.13 to 0.16
for six rounds apart (by 0.7 to 0.8).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from coordinator.campaign.release_gate import judge
from coordinator.campaign.state import Candidate
from coordinator.campaign.trials_gate import non_inferior
from coordinator.config import ReleaseGateConfig
from protocol.messages import (
    MAX_ACTION_ERROR,
    MAX_EPISODE_FRAMES,
    EpisodeError,
    HeldOutReport,
)

RULES = ReleaseGateConfig()
SIGMAS = (0.05, 0.10, 0.12, 0.15, 0.20, 0.25, 0.30)
EPISODES = 5
TRIAL_PLACES = (50, 100, 200, 400)
TRIAL_APART = (0.05, 0.1, 0.2)
DIFFICULTY = 0.5  # standard deviation of the log error between episodes, shared by both policies
type Array = NDArray[np.float64]
type Claim = Callable[[Array], Array]


def report(errors: Array, frames: int) -> HeldOutReport:
    """Errors by episode as a robot reports them; the baselines are easily beaten."""
    return HeldOutReport(
        round=1,
        action_mae=float(errors.mean()),
        loss=0.0,
        frames=frames * len(errors),
        episodes=tuple(
            EpisodeError(
                key=f"{number:016x}", frames=frames, error=float(error), hold_still=50, nearest=50
            )
            for number, error in enumerate(errors)
        ),
    )


def released(
    random: np.random.Generator,
    robots: int,
    sigma: float,
    ratio: float,
    between: float = 0.0,
    liar: Claim | None = None,
) -> bool:
    """One candidate of that true ratio; `between` scatters the ratio around it among robots."""
    last, new = {}, {}
    apart = between * random.normal(size=robots)
    apart -= apart.mean()
    for robot in range(robots):
        frames = int(random.integers(100, 600))
        before = 2.0 * np.exp(DIFFICULTY * random.normal(size=EPISODES))
        own = math.log(ratio) + apart[robot]
        after = before * np.exp(own + sigma * random.normal(size=EPISODES))
        if liar is not None and robot == 0:
            after, frames = liar(after), MAX_EPISODE_FRAMES
        last[f"arm-{robot}"] = report(before, frames)
        new[f"arm-{robot}"] = report(after, frames)
    candidate = Candidate(round=2, digest="0" * 64, members=sorted(new), deadline_unix_s=0.0)
    verdict = judge([candidate], {candidate.digest: new}, last, RULES, 2, 1.0)
    assert verdict is not None
    return verdict.refusal is None


def rate(trials: int, seed: int, wanted: bool, **world: object) -> float:
    """Share of trials in which the gate did what was not wanted of it."""
    random = np.random.default_rng(seed)
    wrong = sum(released(random, **world) is not wanted for _ in range(trials))  # type: ignore[arg-type]
    return round(wrong / trials, 4)


def error_rates(trials: int, seed: int, **world: object) -> dict[str, float]:
    """Of the three candidates that matter."""
    return {
        "false_refusal_equal": rate(trials, seed, True, ratio=1.0, **world),
        "false_refusal_10_percent_better": rate(trials, seed, True, ratio=0.9, **world),
        "false_pass_10_percent_worse": rate(trials, seed, False, ratio=1.1, **world),
    }


def best_possible_sigma(robots: int, ratio: float) -> float:
    """The most scatter at which any rule can keep both errors at 5 %.

    Neyman and Pearson's test between two means of robots x episodes normal log ratios of known
    scatter; no rule without that knowledge does better.
    """
    apart = math.log(1.1) - math.log(ratio)
    return round(apart * math.sqrt(robots * EPISODES) / (2 * NormalDist().inv_cdf(0.95)), 3)


def trials_released(
    random: np.random.Generator, places: int, apart: float, difference: float
) -> bool:
    """Whether a candidate whose success rate differs by `difference` passes its trials."""
    gained_share = apart / 2 + max(difference, 0.0)
    lost_share = apart / 2 + max(-difference, 0.0)
    shares = [gained_share, lost_share, 1.0 - gained_share - lost_share]
    gained, lost, _ = random.multinomial(places, shares)
    return non_inferior(int(gained), int(lost), places, RULES.trials_margin) >= RULES.confidence


def trials_rate(
    trials: int, seed: int, wanted: bool, places: int, apart: float, difference: float
) -> float:
    """Share of trials in which the closed-loop rule did what was not wanted of it."""
    random = np.random.default_rng(seed)
    wrong = sum(
        trials_released(random, places, apart, difference) is not wanted for _ in range(trials)
    )
    return round(wrong / trials, 4)


def closed_loop_cells(trials: int, seed: int) -> list[dict[str, float]]:
    """False refusals and passes by the number of places and how often the two differ by chance."""
    return [
        {
            "places": places,
            "apart": apart,
            "false_refusal_equal": trials_rate(trials, seed, True, places, apart, 0.0),
            "false_refusal_10_points_better": trials_rate(trials, seed, True, places, apart, 0.1),
            "false_pass_10_points_worse": trials_rate(trials, seed, False, places, apart, -0.1),
            "false_pass_20_points_worse": trials_rate(trials, seed, False, places, apart, -0.2),
        }
        for places in TRIAL_PLACES
        for apart in TRIAL_APART
    ]


def measure(trials: int, seed: int) -> dict[str, object]:
    """All cells."""
    started = time.monotonic()
    cells = [
        {"robots": robots, "sigma": sigma} | error_rates(trials, seed, robots=robots, sigma=sigma)
        for robots in (3, 5, 10)
        for sigma in SIGMAS
    ]
    five = {"robots": 5, "sigma": 0.12}
    return {
        "rules": RULES.model_dump(),
        "trials": trials,
        "seed": seed,
        "episodes_per_robot": EPISODES,
        "cells": cells,
        "ratio_differs_between_robots_by_5_percent": error_rates(
            trials, seed, **five, between=0.05
        ),
        "one_robot_three_times_worse_released": rate(
            trials, seed, False, **five, ratio=1.0, liar=lambda errors: errors * 3.0
        ),
        "ten_percent_worse_released_with_one_liar_for_it": rate(
            trials, seed, False, **five, ratio=1.1, liar=lambda errors: errors * 0.0
        ),
        "twenty_percent_worse_released_with_one_liar_for_it": rate(
            trials, seed, False, **five, ratio=1.2, liar=lambda errors: errors * 0.0
        ),
        "equal_refused_with_one_liar_against_it": rate(
            trials, seed, True, **five, ratio=1.0,
            liar=lambda errors: errors * 0.0 + MAX_ACTION_ERROR,
        ),
        "closed_loop": closed_loop_cells(trials, seed),
        "best_possible_sigma": {
            str(robots): {
                "equal": best_possible_sigma(robots, 1.0),
                "10_percent_better": best_possible_sigma(robots, 0.9),
            }
            for robots in (3, 5, 10)
        },
        "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(json.dumps(measure(options.trials, options.seed), indent=2))


if __name__ == "__main__":
    main()
