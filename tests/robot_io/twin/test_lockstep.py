"""The lockstep twin: arm, cube, tracker and pictures of the real-time twin, without its clock."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from agent.control.chunk_scheduler import ChunkScheduler, ScheduleRules
from deploy.local_fleet.plan import make_plan
from robot_io.limits import Limits
from robot_io.tracker import BlobTracker, TrackerConfig
from robot_io.twin.errors import BadCameraSpec, OutOfReach
from robot_io.twin.layout import CubePlacement
from robot_io.twin.lockstep import LockstepTwin, TwinObservation
from robot_io.twin.objects import CUBE_SIZE_M
from robot_io.twin.scene import CUBE_HUE_DEG, SceneCamera, table_homography
from robot_io.twin.shared import Servo
from robot_io.twin.tasks.lift import LIFTED_M
from robot_io.twin.trials import (
    Source,
    demonstrate,
    run_trial,
    run_trials,
    teleoperation,
)

AHEAD = CubePlacement(0.19, 0.0)
CONTROL_PERIOD_S = 1 / 30


@pytest.fixture(scope="module")
def twin() -> LockstepTwin:
    return LockstepTwin()


@pytest.fixture(scope="module")
def seeing() -> Iterator[LockstepTwin]:
    cameras = (SceneCamera("overhead", 128, 96, 30), SceneCamera("wrist_cam", 64, 48, 30))
    with LockstepTwin(cameras) as twin:
        yield twin


def at(radius_m: float, azimuth_rad: float) -> CubePlacement:
    x_m, y_m = radius_m * math.cos(azimuth_rad), radius_m * math.sin(azimuth_rad)
    return CubePlacement(x_m, y_m, azimuth_rad)


def expert(twin: LockstepTwin) -> Source:
    return teleoperation(twin, twin.demonstration())


def still(twin: LockstepTwin) -> Source:
    return lambda _observation, _tick: twin.sent


class Chunked:
    """A chunk policy behind the agent's scheduler; an answer takes ``latency_ticks``."""

    CHUNK = 30

    def __init__(self, twin: LockstepTwin, latency_ticks: int) -> None:
        self._twin = twin
        self._latency = latency_ticks
        self._plan = expert(twin)
        self._scheduler = ChunkScheduler(
            ScheduleRules(fps=30),
            chunk_size=self.CHUNK,
            action_size=6,
            latencies_ticks=(latency_ticks,),
        )
        self._on_its_way: list[tuple[int, int, np.ndarray]] = []
        self.held_ticks = 0

    def __call__(self, observation: TwinObservation, tick: int) -> np.ndarray:
        request = self._scheduler.ask(tick)
        if request is not None:
            rows = range(tick, tick + self.CHUNK)
            chunk = np.stack([self._plan(observation, row) for row in rows])
            self._on_its_way.append((tick + self._latency, request, chunk))
        for due, number, chunk in self._on_its_way:
            if due == tick:
                self._scheduler.offer(number, chunk, tick)
        action = self._scheduler.step(tick, tick / 30).action
        self.held_ticks += action is None
        return self._twin.sent if action is None else action


def same(one: TwinObservation, other: TwinObservation) -> bool:
    return (
        one.tick == other.tick
        and one.state.tobytes() == other.state.tobytes()
        and one.environment.tobytes() == other.environment.tobytes()
        and one.cube_m.tobytes() == other.cube_m.tobytes()
        and all(np.array_equal(one.images[name], other.images[name]) for name in one.images)
    )


def test_equal_seeds_give_equal_trials_to_the_last_bit_in_any_twin_and_after_any_other() -> None:
    def track(twin: LockstepTwin) -> list[TwinObservation]:
        first = twin.reset(at(0.2, 0.4), seed=5)
        source = expert(twin)
        seen = [first]
        for tick in range(90):
            seen.append(twin.step(source(seen[-1], tick)))
        return seen

    fresh, used = LockstepTwin(), LockstepTwin()
    run_trial(used, lambda: expert(used), at(0.17, -0.5), seed=1)
    assert all(same(a, b) for a, b in zip(track(fresh), track(used), strict=True))


def test_another_seed_starts_from_another_pose_near_the_rest_pose(twin: LockstepTwin) -> None:
    starts = np.array([twin.reset(AHEAD, seed).state for seed in range(8)])
    assert np.ptp(starts, axis=0).min() > 0.2
    assert np.abs(starts - starts.mean(axis=0)).max() < 2.5


def test_the_expert_lifts_the_cube_wherever_the_demo_places_it(twin: LockstepTwin) -> None:
    placements = [
        CubePlacement(trial.placement.x_m, trial.placement.y_m, trial.placement.yaw_rad)
        for trial in make_plan(3, 1, 4, ("local",), seed=7)[0].trials
    ]
    results = run_trials(twin, lambda: expert(twin), placements, seed=20)
    assert all(result.lifted for result in results)
    assert [result.seed for result in results] == list(range(20, 32))
    assert all(result.highest_m > LIFTED_M for result in results)
    assert all(60 < result.ticks < 110 for result in results), "a trial ends when the cube is up"


@pytest.mark.parametrize("latency_ticks", [0, 3, 8])
def test_a_chunk_policy_drives_through_the_agents_scheduler_at_a_stated_latency(
    twin: LockstepTwin, latency_ticks: int
) -> None:
    sources: list[Chunked] = []

    def new_source() -> Source:
        sources.append(Chunked(twin, latency_ticks))
        return sources[-1]

    assert run_trial(twin, new_source, at(0.2, 0.3)).lifted
    assert sources[0].held_ticks == latency_ticks


def test_an_arm_that_holds_still_lifts_nothing_and_uses_its_whole_time(twin: LockstepTwin) -> None:
    result = run_trial(twin, lambda: still(twin), AHEAD, duration_s=2.0)
    assert not result.lifted
    assert result.ticks == 60
    assert result.highest_m == pytest.approx(CUBE_SIZE_M / 2, abs=5e-4)
    assert result.cube_m[:2] == pytest.approx((AHEAD.x_m, AHEAD.y_m), abs=1e-3)


def test_a_hand_that_reaches_where_the_cube_is_not_lifts_nothing(twin: LockstepTwin) -> None:
    twin.reset(at(0.19, 0.5))
    elsewhere = twin.demonstration()
    assert not run_trial(twin, lambda: teleoperation(twin, elsewhere), at(0.19, -0.5)).lifted


@pytest.mark.parametrize(("x_m", "y_m"), [(0.45, 0.0), (0.0, 0.40), (0.07, 0.0), (0.0, 0.0)])
def test_a_cube_that_the_jaws_cannot_be_brought_around_is_refused(
    twin: LockstepTwin, x_m: float, y_m: float
) -> None:
    with pytest.raises(OutOfReach, match="mm off a cube"):
        twin.reset(CubePlacement(x_m, y_m))


@pytest.mark.parametrize("place", [(math.nan, 0.0), (0.19, math.inf), (0.19, 0.0, math.nan)])
def test_a_place_that_is_no_number_is_refused(place: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="finite"):
        CubePlacement(*place)


def test_goals_beyond_the_calibrated_range_end_at_it(twin: LockstepTwin) -> None:
    twin.reset(AHEAD)
    calibration = twin.calibration
    seen = twin.step(np.array([999, 0, 0, 0, 0, 999], np.float32))
    np.testing.assert_allclose(twin.sent[[0, 5]], calibration.upper[[0, 5]])
    for _ in range(60):
        seen = twin.step(np.array([999, 0, 0, 0, 0, 999], np.float32))
    assert seen.state[0] == pytest.approx(calibration.upper[0], abs=1.5)
    assert (seen.state <= calibration.upper + 0.5).all()


def test_limits_bound_how_fast_and_how_far_a_goal_moves() -> None:
    twin = LockstepTwin()
    limits = Limits.within(twin.calibration, max_step=8.0, max_velocity=30.0)
    slow = LockstepTwin(limits=limits)
    before = slow.reset(AHEAD)
    sent = before.state
    far = before.state + np.float32(40.0)
    for _ in range(30):
        seen = slow.step(far)
        assert (np.abs(slow.sent - sent) <= 30.0 * CONTROL_PERIOD_S + 1e-3).all()
        sent = slow.sent
    assert np.abs(seen.state - before.state).max() < 31.0
    slow.step(np.full(6, np.nan, np.float32))
    np.testing.assert_allclose(slow.sent, sent, atol=0.5, err_msg="no number: it stays")


@pytest.mark.parametrize("goal", [np.full(6, np.nan), np.zeros(5), np.full(6, np.inf)])
def test_a_goal_that_is_not_six_numbers_is_refused(twin: LockstepTwin, goal: np.ndarray) -> None:
    twin.reset(AHEAD)
    with pytest.raises(ValueError, match="six finite"):
        twin.step(goal.astype(np.float32))


def test_a_grasp_that_slips_not_overloads_no_servo(twin: LockstepTwin) -> None:
    demonstration = demonstrate(twin, AHEAD)
    assert demonstration.lifted
    assert (twin.servos[:, Servo.ERROR] == 0).all()
    assert twin.servos[5, Servo.LOAD] < -0.05, "the jaws hold the cube"


def test_a_tick_is_a_thirtieth_of_a_second_of_physics(twin: LockstepTwin) -> None:
    twin.reset(AHEAD)
    began_s = twin.time_s
    for tick in range(1, 31):
        assert twin.step(twin.sent).tick == tick
        assert twin.time_s - began_s == pytest.approx(tick * CONTROL_PERIOD_S, abs=0.005)
    assert twin.time_s - began_s == pytest.approx(1.0, abs=1e-9)


def test_no_clock_is_read_and_nothing_sleeps(
    twin: LockstepTwin, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> float:
        raise AssertionError("the lockstep twin knows no time but its own")

    with monkeypatch.context() as patch:
        for name in ("time", "monotonic", "perf_counter", "time_ns", "monotonic_ns", "sleep"):
            patch.setattr(time, name, refuse)
        lifted = run_trial(twin, lambda: expert(twin), AHEAD).lifted
    assert lifted


def test_a_demonstration_is_a_training_set_of_its_ticks(seeing: LockstepTwin) -> None:
    demonstration = demonstrate(seeing, at(0.19, 0.2), seed=3)
    ticks = len(demonstration.state)
    assert demonstration.lifted
    assert ticks == 105
    assert demonstration.state.shape == demonstration.action.shape == (ticks, 6)
    assert demonstration.environment.shape == (ticks, 2)
    for rows in (demonstration.state, demonstration.action, demonstration.environment):
        assert rows.dtype == np.float32
        assert np.isfinite(rows).all()
    assert demonstration.images["overhead"].shape == (ticks, 96, 128, 3)
    assert demonstration.images["wrist_cam"].shape == (ticks, 48, 64, 3)
    assert all(images.dtype == np.uint8 for images in demonstration.images.values())
    lag = np.abs(demonstration.action[:-3, :5] - demonstration.state[3:, :5])
    assert np.median(lag) < 2.0, "an action is the goal of its own tick"


def test_a_demonstration_played_back_ends_where_it_ended(twin: LockstepTwin) -> None:
    demonstration = demonstrate(twin, at(0.2, -0.3), seed=9)
    end = twin.joints_rad
    twin.reset(at(0.2, -0.3), seed=9)
    for goal in demonstration.action:
        twin.step(goal)
    np.testing.assert_array_equal(twin.joints_rad, end)


def test_pictures_show_the_moment_of_their_observation(seeing: LockstepTwin) -> None:
    here = seeing.reset(at(0.19, -0.5)).images["overhead"]
    there = seeing.reset(at(0.19, 0.5)).images["overhead"]
    assert here.shape == (96, 128, 3)
    assert here.dtype == np.uint8
    tracker = tracker_of(128, 96)
    for image, placement in ((here, at(0.19, -0.5)), (there, at(0.19, 0.5))):
        seen = tracker.locate(image)
        assert seen is not None
        assert math.dist(seen, (placement.x_m, placement.y_m)) < 0.002


def test_two_twins_that_draw_do_not_disturb_each_other() -> None:
    camera = (SceneCamera("overhead", 96, 72, 30),)
    with LockstepTwin(camera) as one:
        closed, dropped = LockstepTwin(camera), LockstepTwin(camera)
        before = one.reset(AHEAD).images["overhead"]
        closed.close()
        assert np.array_equal(one.reset(AHEAD).images["overhead"], before)
        del dropped
        assert np.array_equal(one.reset(AHEAD).images["overhead"], before)
        assert before.std() > 10.0


def test_a_camera_that_the_scene_has_not_is_refused() -> None:
    with pytest.raises(BadCameraSpec, match="overhead"):
        LockstepTwin((SceneCamera("ceiling", 64, 48, 30),))


def test_the_environment_is_what_the_tracker_makes_of_the_picture(seeing: LockstepTwin) -> None:
    tracker = tracker_of(128, 96)
    off_m = []
    for azimuth in (-0.6, 0.0, 0.6):
        observation = seeing.reset(at(0.19, azimuth))
        source, place = expert(seeing), tracker.locate(observation.images["overhead"])
        for tick in range(105):
            observation = seeing.step(source(observation, tick))
            place = tracker.locate(observation.images["overhead"]) or place
            assert place is not None
            off_m.append(math.dist(place, observation.environment))
    assert np.mean(off_m) < 0.002
    assert np.quantile(off_m, 0.95) < 0.006


def test_a_hidden_cube_keeps_its_last_place(twin: LockstepTwin) -> None:
    observation = twin.reset(AHEAD)
    source = expert(twin)
    places = []
    for tick in range(105):
        observation = twin.step(source(observation, tick))
        places.append(observation.environment)
    assert np.isfinite(places).all()
    kept = [np.array_equal(a, b) for a, b in pairwise(places)]
    assert sum(kept) > 30, "under the gripper it is hidden"


def tracker_of(width: int, height: int) -> BlobTracker:
    low, high = CUBE_HUE_DEG
    rows = table_homography(width, height)
    homography = tuple((float(a), float(b), float(c)) for a, b, c in rows)
    return BlobTracker(TrackerConfig(low, high, 0.5, 0.2, 4, homography))
