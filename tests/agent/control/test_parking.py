"""When a park is over: settled at rest, or after its longest time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from agent.config import AgentConfig
from agent.control.observation import Observation
from agent.control.parking import EXTRA_S, SETTLE_S, Parking
from robot_io.calibration import JOINTS, Calibration, JointCalibration

CALIBRATION = Calibration(
    {name: JointCalibration(i + 1, 0, 0, 1000, 3000) for i, name in enumerate(JOINTS)}
)


def parking(tmp_path: Path, speed: float) -> Parking:
    config = AgentConfig.model_validate(
        {
            "robot": {"port": "/dev/null", "park_pose": (60, 0, 0, 0, 0, 50)},
            "control": {"park_speed_per_s": speed},
            "paths": {"state_dir": str(tmp_path)},
        }
    )
    return Parking(config, CALIBRATION, now_s=100.0)


@pytest.mark.parametrize("speed", [15.0, 30.0, 60.0])
def test_a_park_takes_as_long_as_its_speed_asks_and_then_settles(
    tmp_path: Path, speed: float
) -> None:
    park = parking(tmp_path, speed)
    state = np.array([0, 0, 0, 0, 0, 50], np.float32)
    park.source.begin(Observation(1, 0.0, state, np.zeros(0, np.float32), {}), 100.0)
    way_s = 1.5 * 60.0 / speed
    assert not park.over(100.0 + way_s - 0.01)
    assert not park.over(100.0 + way_s)
    assert not park.over(100.0 + way_s + SETTLE_S - 0.01)
    assert park.over(100.0 + way_s + SETTLE_S)


@pytest.mark.parametrize("speed", [15.0, 60.0])
def test_a_park_that_never_begins_is_ended_after_the_longest_way(
    tmp_path: Path, speed: float
) -> None:
    park = parking(tmp_path, speed)
    longest_s = 1.5 * 360.0 / speed + EXTRA_S
    assert not park.over(100.0 + longest_s - 0.01)
    assert park.over(100.0 + longest_s)
