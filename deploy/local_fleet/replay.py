"""Two policies on one placement, in the twin without a clock, seen by one who stands beside it.

The demo's own trials run in real time through the agents. Here their policies are run once more,
for the pictures, as `armada trials` runs them: the agent's schedule and limits, a stated latency.
The arm starts exactly parked, where the demo's arms began every demonstration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from deploy.closed_loop.chunked_policy import ChunkedPolicy
from deploy.closed_loop.matrix_file import LATENCY_MS
from deploy.closed_loop.trials import load_folder, open_twin
from deploy.local_fleet.plan import TASK, Placement
from deploy.local_fleet.video import encode_mp4
from robot_io.twin.layout import CubePlacement
from robot_io.twin.lockstep import CONTROL_HZ
from robot_io.twin.scene import SceneCamera
from robot_io.twin.tasks.lift import LIFT

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
        CannotTry: the twin gives not what a policy sees.
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
    loaded = load_folder(folder, threads=1)
    spec = loaded.folder.spec
    frames: list[NDArray[np.uint8]] = []
    with open_twin(loaded, LIFT, None, start_spread=0.0, beside=(VIEW,)) as twin:
        observation = twin.reset(CubePlacement(placement.x_m, placement.y_m, placement.yaw_rad))
        source = ChunkedPolicy(loaded.model, spec, LATENCY_MS, lambda: twin.sent, TASK)
        left = round(seconds * spec.fps)
        while left > 0:
            if observation.tick % EVERY_TICKS == 0:
                view = observation.images[VIEW.name]
                small = cv2.resize(view, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
                frames.append(small.astype(np.uint8))
            observation = twin.step(source(observation, observation.tick))
            left -= 1
            if twin.lifted:
                left = min(left, round(LINGER_S * spec.fps))
        return frames, twin.lifted


def _held(frames: list[NDArray[np.uint8]], count: int) -> NDArray[np.uint8]:
    return np.stack([*frames, *[frames[-1]] * (count - len(frames))])
