"""The expert on the leader, a teleoperation loop over both ports, the cube under the follower."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.system

EPISODES = 12


def test_the_follower_lifts_the_cube_in_nearly_every_demonstration(
    tmp_path: Any, twin_run: Any, teleoperation: Any, home: Any
) -> None:
    twin = twin_run(tmp_path / "twin", "--seed", "4")
    try:
        for arm in ("follower", "leader"):
            with twin.host(arm) as host:
                home(twin, host, arm)
        dice = np.random.default_rng(3)
        lifted = 0
        with teleoperation(twin) as loop:
            for _ in range(EPISODES):
                twin.do("rest")
                radius, azimuth = dice.uniform(0.16, 0.215), dice.uniform(-0.785, 0.785)
                twin.do("place", x_m=radius * math.cos(azimuth), y_m=radius * math.sin(azimuth))
                outcome = twin.do("demonstrate", skill="pick_lift")
                assert 3.3 < outcome["seconds"] < 4.2
                lifted += outcome["lifted"]
            twin.do("rest")
            assert loop.errors == set(), "no grasp overloads a servo"
        assert lifted >= EPISODES - 1
    finally:
        twin.end()
