"""What differs between robots: bounded, seen in pictures, and never in the physics."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_io.tracker import BlobTracker, TrackerConfig
from robot_io.twin.layout import CubePlacement, at
from robot_io.twin.lockstep import LockstepTwin, TwinObservation
from robot_io.twin.scene import CUBE_HUE_DEG, SceneCamera, build_scene, table_homography
from robot_io.twin.trials import demonstrate
from robot_io.twin.variation import PLAIN, SceneVariation, draw_variation, scene_of

CAMERA = SceneCamera("overhead", 128, 96, 30)
CORNERS = [at(radius, math.radians(azimuth)) for radius in (0.165, 0.21) for azimuth in (-42, 42)]


@settings(max_examples=50)
@given(st.integers(0, 2**32))
def test_a_seed_is_a_scene_within_bounds(seed: int) -> None:
    variation = draw_variation(seed)  # its bounds are checked as it is made
    assert variation == draw_variation(seed)
    assert variation != PLAIN
    assert -42 <= variation.sector.azimuth_min_deg < variation.sector.azimuth_max_deg <= 42


def test_robots_differ_in_everything() -> None:
    scenes = [draw_variation(seed) for seed in range(5)]
    for name in SceneVariation.__slots__:
        assert len({getattr(scene, name) for scene in scenes}) == 5, name


def test_without_a_seed_the_scene_is_the_plain_one() -> None:
    assert scene_of(None) == PLAIN
    assert scene_of(3) == draw_variation(3)


@pytest.mark.parametrize(
    "change",
    [
        {"light_gain": 3.0},
        {"light_tint": (1.0, 1.0, math.nan)},
        {"table_rgb": (0.5, 0.5, 1.0)},
        {"cube_turn_deg": 90.0},
        {"camera_shift_m": (0.0, 0.0, 0.2)},
        {"camera_turn_deg": (9.0, 0.0, 0.0)},
    ],
)
def test_a_number_out_of_bounds_is_refused_by_name(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        SceneVariation(**change)


def seen_by(seed: int | None, placement: CubePlacement) -> TwinObservation:
    with LockstepTwin((CAMERA,), variation=scene_of(seed)) as twin:
        return twin.reset(placement)


def test_the_pictures_differ_and_the_physics_does_not() -> None:
    with LockstepTwin((CAMERA,)) as plain, LockstepTwin((CAMERA,), variation=scene_of(1)) as own:
        here = demonstrate(plain, CubePlacement(0.19, 0.05), 2)
        there = demonstrate(own, CubePlacement(0.19, 0.05), 2)
    np.testing.assert_array_equal(here.state, there.state)
    np.testing.assert_array_equal(here.action, there.action)
    off = np.abs(here.images["overhead"].astype(int) - there.images["overhead"])
    assert np.median(off) > 5


@pytest.mark.parametrize("seed", range(6))
def test_a_robots_own_homography_finds_its_own_cube(seed: int) -> None:
    variation = draw_variation(seed)
    low, high = CUBE_HUE_DEG
    rows = table_homography(CAMERA.width, CAMERA.height, variation)
    homography = tuple((float(a), float(b), float(c)) for a, b, c in rows)
    tracker = BlobTracker(TrackerConfig(low, high, 0.5, 0.2, 4, homography))
    with LockstepTwin((CAMERA,), variation=variation) as twin:
        for place in CORNERS:
            observation = twin.reset(place)
            found = tracker.locate(observation.images["overhead"])
            assert found is not None
            assert math.dist(found, (place.x_m, place.y_m)) < 0.003
            assert math.dist(observation.environment, (place.x_m, place.y_m)) < 0.003


def test_the_homography_of_a_turned_camera_is_its_projection() -> None:
    variation = draw_variation(4)
    scene = build_scene((CAMERA,), variation=variation)
    data = scene.new_data()
    camera = scene.model.camera("overhead").id
    focal = CAMERA.height / 2 / np.tan(np.radians(scene.model.cam_fovy[camera]) / 2)
    for x, y in ((0.16, 0.0), (0.2, 0.1), (0.1, -0.12)):
        point = np.array((x, y, 0.0125)) - data.cam_xpos[camera]
        right, up, back = data.cam_xmat[camera].reshape(3, 3).T @ point
        u = CAMERA.width / 2 + focal * right / -back - 0.5
        v = CAMERA.height / 2 - focal * up / -back - 0.5
        found = table_homography(CAMERA.width, CAMERA.height, variation) @ (u, v, 1.0)
        np.testing.assert_allclose(found[:2] / found[2], (x, y), atol=1e-9)
