"""How much worse one policy is than another, and how sure that is."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.campaign.paired_comparison import (
    MOST_RATIO,
    RobotPairs,
    capped_weights,
    compare,
    log_ratio,
)


def pairs(*ratios: float, frames: int = 1000) -> RobotPairs:
    return RobotPairs(np.log(np.array(ratios)), frames)


def noisy(effect: float, robots: int, sigma: float, seed: int) -> dict[str, RobotPairs]:
    random = np.random.default_rng(seed)
    return {
        f"arm-{robot}": RobotPairs(math.log(effect) + sigma * random.normal(size=5), 1000)
        for robot in range(robots)
    }


def test_equal_errors_give_a_ratio_of_one_and_no_doubt() -> None:
    comparison = compare({"a": pairs(1, 1, 1), "b": pairs(1, 1)}, 0.95)
    assert (comparison.ratio, comparison.at_most, comparison.episodes) == (1.0, 1.0, 5)


def test_errors_below_what_a_servo_can_do_are_equal_and_one_episode_says_only_so_much() -> None:
    assert log_ratio(1e-9, 0.0) == log_ratio(0.009, 1e-3) == 0.0
    assert log_ratio(1e6, 0.0) == -log_ratio(0.0, 1e6) == math.log(MOST_RATIO)
    assert math.isnan(log_ratio(math.nan, 1.0)) or log_ratio(math.nan, 1.0) > 0


def test_no_weight_is_above_twice_the_median() -> None:
    assert capped_weights({"a": 100, "b": 120, "c": 2**53}) == {"a": 100, "b": 120, "c": 240}


def test_scatter_is_doubt() -> None:
    calm = compare({"a": pairs(1 / 1.01, 1.01, 1.0), "b": pairs(1 / 1.01, 1.01, 1.0)}, 0.95)
    wild = compare({"a": pairs(0.5, 2.0, 1.0), "b": pairs(0.5, 2.0, 1.0)}, 0.95)
    assert calm.ratio == pytest.approx(wild.ratio) == pytest.approx(1.0)
    assert calm.at_most < 1.02 < 1.3 < wild.at_most


@pytest.mark.parametrize("robots", [3, 5, 10])
def test_the_bound_is_below_the_truth_about_as_seldom_as_it_promises(robots: int) -> None:
    below = sum(compare(noisy(1.1, robots, 0.15, n), 0.95).at_most < 1.1 for n in range(300))
    assert below <= 300 * 0.05 + 3 * math.sqrt(300 * 0.05 * 0.95)


def test_equal_policies_are_seldom_taken_for_worse_by_more_than_a_tenth() -> None:
    """Five robots with five episodes, at the scatter of candidates a few rounds apart."""
    above = sum(compare(noisy(1.0, 5, 0.1, n), 0.95).at_most > 1.1 for n in range(200))
    assert above <= 200 * 0.05


ratios = st.floats(1 / MOST_RATIO, MOST_RATIO)
robot_pairs = st.builds(
    lambda values, frames: pairs(*values, frames=frames),
    st.lists(ratios, min_size=2, max_size=6),
    st.integers(1, 10**8),
)
fleets = st.dictionaries(st.sampled_from("abcdefg"), robot_pairs, min_size=1)


@settings(max_examples=40)
@given(fleets, st.data())
def test_the_order_of_robots_does_not_matter(
    fleet: dict[str, RobotPairs], data: st.DataObject
) -> None:
    shuffled = {agent: fleet[agent] for agent in data.draw(st.permutations(list(fleet)))}
    assert compare(shuffled, 0.95) == compare(fleet, 0.95)


@settings(max_examples=40)
@given(fleets, st.floats(0.5, 0.99))
def test_the_bound_is_never_below_the_ratio(
    fleet: dict[str, RobotPairs], confidence: float
) -> None:
    comparison = compare(fleet, confidence)
    assert comparison.at_most >= comparison.ratio > 0
