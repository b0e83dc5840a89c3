"""The lockstep twin beside the real-time twin: the same placements, the same hand."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_io.twin.layout import CubePlacement, Layout
from robot_io.twin.lockstep import LockstepTwin
from robot_io.twin.tasks import TASKS
from robot_io.twin.tasks.lift import LIFTED_M
from robot_io.twin.trials import demonstrate

pytestmark = pytest.mark.system

# How much farther out than where the hand reaches the cube lies: held, pushed away or missed.
MISS_M = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -0.020, -0.016, -0.012, 0.012, 0.016, 0.019, 0.022)
AFTER_PLANNING_S = 0.4  # and before the gripper is there
# The leader is read up to a physics step and a tick apart, so that the arm is at another place of
# the same path; both come to rest at its end. A cube's place in the jaws adds to that.
END_RAD = math.radians(0.1)  # an encoder's tick is 0.088°; at most 0.05° was seen
END_M = 0.002  # at most 0.7 mm was seen
# Tasks whose hand lets go of the cube again, or has a tool: a few layouts of each.
OTHER_TASKS = ("place", "push")
OTHER_EPISODES = 4
PUT_DOWN_M = 0.004  # letting go moves a cube by some more


@dataclass(frozen=True)
class Lived:
    """One demonstration on the real-time twin: the leader's ticks, and how it ended."""

    placement: CubePlacement
    miss_m: float
    goals: np.ndarray
    joints_rad: np.ndarray
    cube_m: np.ndarray
    lifted: bool


def placed(radius_m: float, azimuth_rad: float) -> dict[str, float]:
    x_m, y_m = radius_m * math.cos(azimuth_rad), radius_m * math.sin(azimuth_rad)
    return {"x_m": x_m, "y_m": y_m, "yaw_rad": azimuth_rad}


@pytest.fixture(scope="module")
def lived(
    tmp_path_factory: pytest.TempPathFactory, twin_run: Any, teleoperation: Any, home: Any
) -> list[Lived]:
    folder: Path = tmp_path_factory.mktemp("t")
    twin = twin_run(folder / "twin", "--seed", "6")
    episodes = []
    try:
        for arm in ("follower", "leader"):
            with twin.host(arm) as host:
                home(twin, host, arm)
        dice = np.random.default_rng(8)
        with teleoperation(twin) as loop, ThreadPoolExecutor(1) as people:
            for miss_m in MISS_M:
                twin.do("rest")
                radius, azimuth = dice.uniform(0.165, 0.21), dice.uniform(-0.733, 0.733)
                twin.do("place", **placed(radius, azimuth))
                first = len(loop.goals)
                demonstrating = people.submit(twin.do, "demonstrate")
                if miss_m:
                    time.sleep(AFTER_PLANNING_S)
                    twin.do("place", **placed(radius + miss_m, azimuth))
                lifted = demonstrating.result()["lifted"]
                goals = np.array(loop.goals[first:])
                truth = twin.do("truth")
                cube = truth["cube"]
                episodes.append(
                    Lived(
                        CubePlacement(**placed(radius + miss_m, azimuth)),
                        miss_m,
                        goals,
                        np.array(truth["joints_rad"]["follower"]),
                        np.array([cube["x_m"], cube["y_m"], cube["z_m"]]),
                        lifted,
                    )
                )
            twin.do("rest")
    finally:
        twin.end()
    return episodes


def test_the_expert_succeeds_as_often_in_lockstep(lived: list[Lived]) -> None:
    twin = LockstepTwin()
    aimed = [each for each in lived if not each.miss_m]
    here = [demonstrate(twin, each.placement, seed).lifted for seed, each in enumerate(aimed)]
    assert abs(sum(here) - sum(each.lifted for each in aimed)) <= 1


def test_a_hand_played_back_in_lockstep_ends_where_it_ended(lived: list[Lived]) -> None:
    twin = LockstepTwin(start_spread=0.0)
    angles_off_rad, cubes_off_m = [], []
    for each in lived:
        end_m = replay(twin, each)
        angles_off_rad.append(np.abs(twin.joints_rad - each.joints_rad).max())
        if not each.miss_m:
            cubes_off_m.append(np.linalg.norm(end_m - each.cube_m))
    assert np.median(angles_off_rad) < END_RAD
    assert np.median(cubes_off_m) < END_M


def test_a_hand_that_misses_by_so_much_drops_the_cube_in_both(lived: list[Lived]) -> None:
    twin = LockstepTwin(start_spread=0.0)
    here = [bool(replay(twin, each)[2] > LIFTED_M) for each in lived]
    there = [each.lifted for each in lived]
    assert 2 <= sum(there) <= len(lived) - 2, "the misses tell success from failure"
    assert sum(a != b for a, b in zip(here, there, strict=True)) <= 1


def replay(twin: LockstepTwin, episode: Lived) -> np.ndarray:
    """Where the cube's centre ends, [3] in metres."""
    observation = twin.reset(episode.placement)
    for ticks in episode.goals:
        observation = twin.step(twin.calibration.to_units(ticks))
    return observation.cube_m


@dataclass(frozen=True)
class Done:
    """One demonstration of another task on the real-time twin."""

    layout: Layout
    goals: np.ndarray
    cube_m: np.ndarray
    succeeded: bool


@pytest.fixture(scope="module", params=OTHER_TASKS)
def other(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    twin_run: Any,
    teleoperation: Any,
    home: Any,
) -> tuple[str, list[Done]]:
    folder: Path = tmp_path_factory.mktemp("t")
    twin = twin_run(folder / "twin", "--seed", "6", "--task", request.param)
    episodes = []
    try:
        for arm in ("follower", "leader"):
            with twin.host(arm) as host:
                home(twin, host, arm)
        with teleoperation(twin) as loop:
            for seed in range(OTHER_EPISODES):
                twin.do("rest")
                drawn = twin.do("draw", seed=seed)["objects"]
                first = len(loop.goals)
                outcome = twin.do("demonstrate", skill=TASKS[request.param].skill)
                goals = np.array(loop.goals[first:])
                truth = twin.do("truth")
                assert truth["succeeded"] == outcome["succeeded"]
                cube = truth["cube"]
                layout = tuple(
                    CubePlacement(at["x_m"], at["y_m"], at["yaw_rad"]) for at in drawn.values()
                )
                where = np.array([cube["x_m"], cube["y_m"], cube["z_m"]])
                episodes.append(Done(layout, goals, where, outcome["succeeded"]))
            twin.do("rest")
    finally:
        twin.end()
    return request.param, episodes


def test_another_task_ends_alike_in_both(other: tuple[str, list[Done]]) -> None:
    name, episodes = other
    twin = LockstepTwin(start_spread=0.0, task=TASKS[name])
    off_m = []
    for episode in episodes:
        observation = twin.reset(episode.layout)
        for ticks in episode.goals:
            observation = twin.step(twin.calibration.to_units(ticks))
        off_m.append(float(np.linalg.norm(observation.cube_m - episode.cube_m)))
        assert twin.succeeded == episode.succeeded
    assert sum(episode.succeeded for episode in episodes) >= len(episodes) - 1
    assert np.median(off_m) < PUT_DOWN_M
