"""The park trajectory as a source. (The leader as a source is tested on the wire.)"""

from __future__ import annotations

import numpy as np
import pytest

from agent.control.observation import Observation
from agent.control.sources import ParkSource

REST = np.array([0, -97, 89, 66, 0, 20], np.float32)


def observation(state: np.ndarray) -> Observation:
    return Observation(1, 0.0, state, np.zeros(0, np.float32), {})


def test_parking_begins_where_the_arm_is_and_ends_at_rest_within_its_speed() -> None:
    start = np.array([40, 0, 0, 0, 90, 80], np.float32)
    source = ParkSource(REST, max_speed=60.0)
    source.begin(observation(start), now_s=100.0)
    assert not source.done(100.0)
    now_s, goals = 100.0, []
    while not source.done(now_s):
        action = source.action(observation(start), now_s)
        assert action.goal is not None and action.fault is None
        goals.append(action.goal)
        now_s += 1 / 30
        assert now_s < 110.0
    assert goals[0] == pytest.approx(start)
    steps = np.abs(np.diff(goals, axis=0)) * 30
    assert steps.max() <= 60.0 * 1.01
    last = source.action(observation(start), now_s).goal
    assert last is not None and last == pytest.approx(REST)


def test_before_it_begins_it_holds() -> None:
    source = ParkSource(REST, max_speed=60.0)
    assert source.action(observation(REST), 0.0).goal is None
    assert not source.done(1e9)
