"""A camera that is larger than the policy's drives it all the same; a squeezed one does not."""

from __future__ import annotations

import cv2
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from agent.inference.process import _scaled
from agent.policies.compatibility import RobotSignature, incompatibilities
from policy.kinds.act import ActSpec
from policy.spec import CameraSpec

JOINTS = tuple(f"joint_{number}.pos" for number in range(6))
SPEC = ActSpec(
    kind="act",
    state_names=JOINTS,
    action_names=JOINTS,
    cameras=(CameraSpec(name="overhead", height=48, width=64),),
    fps=30,
)


def robot(height: int, width: int) -> RobotSignature:
    return RobotSignature(30, JOINTS, JOINTS, cameras={"overhead": (height, width)})


def test_a_picture_comes_to_the_policy_at_its_size_made_as_for_its_training() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    scaled = _scaled({"observation.images.overhead": picture}, SPEC)["observation.images.overhead"]
    assert np.array_equal(scaled, cv2.resize(picture, (64, 48), interpolation=cv2.INTER_AREA))


@given(st.integers(1, 200), st.integers(1, 200))
def test_what_is_said_to_fit_is_what_is_scaled(height: int, width: int) -> None:
    picture = np.zeros((height, width, 3), np.uint8)
    scaled = _scaled({"observation.images.overhead": picture}, SPEC)["observation.images.overhead"]
    fits = not incompatibilities(SPEC, robot(height, width))
    assert (scaled.shape == (48, 64, 3)) == fits


def test_a_squeezed_camera_is_refused_with_its_size() -> None:
    (reason,) = incompatibilities(SPEC, robot(640, 480))
    assert reason == (
        "the policy takes camera 'overhead' at 64x48, "
        "this robot's gives 480x640, which has another shape"
    )
