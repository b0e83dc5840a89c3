"""The report's videos: two policies on one placement, equally long, each with its outcome."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import av
import pytest
from tiny_policy import tiny_spec, write_policy

from deploy.local_fleet.plan import Placement
from deploy.local_fleet.replay import HEIGHT, VIDEO_FPS, WIDTH, replay_pair
from robot_io.twin.errors import OutOfReach

PLACE = Placement("centre", 0.18, 0.02, 0.0)


def frames_of(mp4: bytes) -> list[tuple[int, int]]:
    with av.open(BytesIO(mp4)) as container:
        return [(frame.width, frame.height) for frame in container.decode(video=0)]


def test_a_pair_is_equally_long_and_tells_who_lifted_the_cube(tmp_path: Path) -> None:
    folders = {
        "local": write_policy(tmp_path / "local"),
        "active": write_policy(tmp_path / "active", tiny_spec(camera=(48, 64))),
    }
    clips = replay_pair("arm-1", folders, PLACE, seconds=1.0)
    assert [(clip.policy, clip.lifted) for clip in clips] == [("local", False), ("active", False)]
    for clip in clips:
        assert frames_of(clip.mp4) == [(WIDTH, HEIGHT)] * VIDEO_FPS


def test_a_cube_out_of_reach_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutOfReach):
        replay_pair("arm-1", {"local": write_policy(tmp_path)}, Placement("x", 0.6, 0.0, 0.0), 1.0)
