"""Journals and configurations for tests of ingest and the trainer."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from synthetic_pick import JOINTS, PLACE, demonstration

from agent.config import AgentConfig, load_config
from agent.recording.journal import EpisodeMeta, EpisodeWriter, Sample

CAMERA = "overhead"
HEIGHT, WIDTH = 48, 64


def write_config(folder: Path, training: str = "", federation: str = "") -> Path:
    path = folder / "agent.toml"
    path.write_text(
        f"""
[robot]
port = "{folder}/follower"
id = "arm-1"
[cameras.{CAMERA}]
source = 0
width = {WIDTH}
height = {HEIGHT}
[training]
held_out_every = 3
publish_every_s = 0.2
{training}
{federation}
[paths]
state_dir = "{folder}/state"
"""
    )
    return path


def configured(folder: Path, training: str = "", federation: str = "") -> AgentConfig:
    return load_config(write_config(folder, training, federation))


def picture(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A frame whose brightness tells its number: RGB uint8."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = 30 + 8 * (number % 24)
    image[..., 2] = 100
    return image


def write_episode(
    journal: Path,
    number: int,
    frames: int = 24,
    *,
    cameras: dict[str, tuple[int, int]] | None = None,
    late_camera: int = 0,
    fps: float = 30.0,
    picture_size: tuple[int, int] | None = None,
    policy: str | None = None,
    corrected: range = range(0),
    success: bool | None = None,
) -> Path:
    """A finished journal; its first ``late_camera`` ticks have no picture yet.

    With a ``policy`` it is a rollout, which a person corrected at the ticks ``corrected``.
    """
    shapes = {CAMERA: (HEIGHT, WIDTH)} if cameras is None else cameras
    meta = EpisodeMeta(
        episode_id=f"episode-{number:04d}",
        task="pick up the cube",
        fps=fps,
        robot_id="arm-1",
        state_names=JOINTS,
        action_names=JOINTS,
        environment_names=PLACE,
        cameras=shapes,
        started_unix_s=1_700_000_000.0 + number,
        calibration_digest="c" * 64,
        source="teleoperation" if policy is None else "rollout",
        policy=policy,
        policy_digest=None if policy is None else "d" * 64,
    )
    random = np.random.default_rng(number)
    x_m, y_m = random.uniform(0.16, 0.21), random.uniform(-0.06, 0.06)
    state, place, action = demonstration(x_m, y_m, frames, random)
    writer = EpisodeWriter(journal, meta)
    for tick in range(frames):
        jpegs, sequence = {}, {}
        for name, (height, width) in shapes.items():
            if tick >= late_camera:
                high, wide = picture_size or (height, width)
                rgb = picture(tick, high, wide)
                jpegs[name] = cv2.imencode(".jpg", rgb[..., ::-1])[1].tobytes()
                sequence[name] = tick
        observed_s = 100.0 + tick / fps + 0.001 * (tick % 3)  # ticks are never quite punctual
        writer.append(
            Sample(
                tick=tick,
                t_observed_s=observed_s,
                t_sent_s=observed_s + 0.004,
                state=state[tick],
                action=action[tick],
                requested=action[tick] + 1.0,
                environment=place[tick],
                intervention=tick in corrected,
                camera_sequence=sequence,
            ),
            jpegs,
        )
    return writer.finish(missed_deadlines=number, success=success)
