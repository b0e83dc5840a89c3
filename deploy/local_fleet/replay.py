"""Two policies on one placement, in the twin without a clock, seen by one who stands beside it.

The demo's own trials run in real time through the agents. Here their policies are run once more,
for the pictures: a chunk is asked for when half of the last one is played, and nothing is late.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from deploy.local_fleet.plan import Placement
from deploy.local_fleet.video import encode_mp4
from policy.release.folder import read_policy_folder
from policy.session import OnnxPolicy
from policy.spec import ENVIRONMENT, IMAGES, STATE
from robot_io.calibration import Vector
from robot_io.twin.layout import CubePlacement
from robot_io.twin.lockstep import CONTROL_HZ, LockstepTwin, TwinObservation
from robot_io.twin.scene import SceneCamera

VIEW = SceneCamera("bystander", 640, 480, CONTROL_HZ)
WIDTH, HEIGHT = 320, 240  # of the video: drawn at twice the size, which smooths edges
EVERY_TICKS = 2
VIDEO_FPS = round(CONTROL_HZ / EVERY_TICKS)
LINGER_S = 0.8  # after success


@dataclass(frozen=True)
class ReplayClip:
    """One attempt: whose policy, where, how it ended in this replay, and an MP4."""

    robot_id: str
    policy: str
    placement: Placement
    lifted: bool
    mp4: bytes


def replay_pair(
    robot_id: str, folders: Mapping[str, Path], placement: Placement, seconds: float
) -> list[ReplayClip]:
    """A clip of each policy (name -> folder) on one placement, all equally long.

    Raises:
        PolicyError: a folder is damaged, or a graph cannot be run.
        OutOfReach: no cube can be grasped there.
    """
    runs = {name: _replay(folder, placement, seconds) for name, folder in folders.items()}
    longest = max(len(frames) for frames, _ in runs.values())
    videos = {name: encode_mp4(_held(each, longest), VIDEO_FPS) for name, (each, _) in runs.items()}
    return [
        ReplayClip(robot_id, name, placement, lifted, videos[name])
        for name, (_, lifted) in runs.items()
    ]


def _replay(
    folder: Path, placement: Placement, seconds: float
) -> tuple[list[NDArray[np.uint8]], bool]:
    policy = read_policy_folder(folder)
    spec, session = policy.spec, OnnxPolicy(policy.onnx_path)
    seen = [SceneCamera(each.name, each.width, each.height, spec.fps) for each in spec.cameras]
    frames: list[NDArray[np.uint8]] = []
    with LockstepTwin([VIEW, *seen], control_hz=spec.fps) as twin:
        observation = twin.reset(CubePlacement(placement.x_m, placement.y_m, placement.yaw_rad))
        act = _chunks(session, spec.chunk_size)
        left = round(seconds * spec.fps)
        while left > 0:
            if observation.tick % EVERY_TICKS == 0:
                view = observation.images[VIEW.name]
                small = cv2.resize(view, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
                frames.append(small.astype(np.uint8))
            observation = twin.step(act(observation))
            left -= 1
            if twin.lifted:
                left = min(left, round(LINGER_S * spec.fps))
        return frames, twin.lifted


def _chunks(session: OnnxPolicy, size: int) -> Callable[[TwinObservation], Vector]:
    chunk: list[Vector] = []

    def act(observation: TwinObservation) -> Vector:
        if len(chunk) <= size // 2:
            inputs = {STATE: observation.state, ENVIRONMENT: observation.environment}
            pictures = {f"{IMAGES}.{name}": each for name, each in observation.images.items()}
            chunk[:] = list(session.infer({**inputs, **pictures}))
        return chunk.pop(0)

    return act


def _held(frames: list[NDArray[np.uint8]], count: int) -> NDArray[np.uint8]:
    return np.stack([*frames, *[frames[-1]] * (count - len(frames))])
