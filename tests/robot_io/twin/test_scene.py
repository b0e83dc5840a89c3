"""The scene: where the arm rests, what the camera's homography says."""

from __future__ import annotations

import colorsys

import mujoco
import numpy as np
import pytest

from robot_io.twin.errors import BadCameraSpec
from robot_io.twin.objects import CUBE_SIZE_M
from robot_io.twin.scene import (
    CUBE_HUE_DEG,
    REST_JOINTS_RAD,
    SceneCamera,
    build_scene,
    check_names,
    joint_ranges_rad,
    parse_camera,
    table_homography,
)

CUBE_NAME = "cube"


def test_the_rest_pose_is_within_every_range_and_touches_nothing() -> None:
    scene = build_scene()
    ranges = joint_ranges_rad(scene.model)
    rest = np.array(REST_JOINTS_RAD)
    assert (rest > ranges[:, 0]).all()
    assert (rest < ranges[:, 1]).all()
    data = scene.new_data()
    arm = set(scene.arm_geoms)
    lowest = {int(geom) for contact in data.contact for geom in contact.geom} & arm
    moving = {geom for geom in lowest if scene.model.geom_bodyid[geom] > 2}
    assert not moving


def test_the_middle_of_every_range_is_the_models_zero_but_for_the_gripper() -> None:
    middle = joint_ranges_rad(build_scene().model).mean(axis=1)
    np.testing.assert_allclose(middle[:5], 0.0, atol=1e-6)


def test_nothing_but_the_cube_has_the_cubes_hue() -> None:
    model = build_scene().model
    low, high = CUBE_HUE_DEG
    for index in range(model.ngeom):
        hue, saturation, _ = colorsys.rgb_to_hsv(*model.geom_rgba[index][:3])
        red = saturation > 0.2 and (hue * 360 >= low or hue * 360 <= high)
        assert red == (model.geom(index).name == CUBE_NAME)


@pytest.mark.parametrize(("width", "height"), [(128, 96), (320, 240), (64, 64)])
def test_the_homography_is_the_cameras_projection_at_the_cubes_centre(
    width: int, height: int
) -> None:
    scene = build_scene((SceneCamera("overhead", width, height, 30),))
    data = scene.new_data()
    camera = scene.model.camera("overhead").id
    focal = height / 2 / np.tan(np.radians(scene.model.cam_fovy[camera]) / 2)
    homography = table_homography(width, height)
    for x, y in ((0.16, 0.0), (0.2, 0.1), (0.1, -0.12)):
        point = np.array((x, y, CUBE_SIZE_M / 2)) - data.cam_xpos[camera]
        right, up, back = data.cam_xmat[camera].reshape(3, 3).T @ point
        u = width / 2 + focal * right / -back - 0.5
        v = height / 2 - focal * up / -back - 0.5
        np.testing.assert_allclose(homography @ (u, v, 1.0), (x, y, 1.0), atol=1e-9)


def test_the_camera_sees_the_whole_region_of_the_task() -> None:
    homography = np.linalg.inv(table_homography(128, 96))
    for radius in (0.16, 0.215):
        for azimuth in np.radians([-45, 0, 45]):
            u, v, _ = homography @ (radius * np.cos(azimuth), radius * np.sin(azimuth), 1.0)
            assert 6 < u < 121
            assert 6 < v < 89


def test_an_arm_without_torque_stays_near_its_rest_pose() -> None:
    scene = build_scene()
    data = scene.new_data()
    scene.model.actuator_gainprm[:, 0] = 0
    scene.model.actuator_biasprm[:] = 0
    for _ in range(2000):
        mujoco.mj_step(scene.model, data)
    assert np.abs(data.qpos[:6] - REST_JOINTS_RAD).max() < 0.15
    np.testing.assert_allclose(data.qpos[6:8], (0.19, 0.0), atol=2e-3)


@pytest.mark.parametrize(
    "text", ["overhead", "overhead:128@30", "overhead:128x96", "a:1x1@30", "a:64x64@0", "a:x@b"]
)
def test_a_camera_that_does_not_read_right_is_refused(text: str) -> None:
    with pytest.raises(BadCameraSpec):
        parse_camera(text)


def test_a_camera_that_the_model_has_not_is_refused_with_those_it_has() -> None:
    with pytest.raises(BadCameraSpec, match="overhead"):
        check_names([SceneCamera("ceiling", 64, 64, 30)])
    with pytest.raises(BadCameraSpec, match="twice"):
        check_names([SceneCamera("overhead", 64, 64, 30)] * 2)
