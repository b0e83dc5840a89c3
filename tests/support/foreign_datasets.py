"""LeRobotDatasets as others record them: version 3 by LeRobot itself, version 2.1 by its layout."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pyarrow
import pyarrow.parquet

JOINT_NAMES = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
OLD_NAMES = tuple(f"main_{name}" for name in JOINT_NAMES)
NEW_NAMES = tuple(f"{name}.pos" for name in JOINT_NAMES)
CAMERAS = ("top", "wrist")
HEIGHT, WIDTH = 48, 64
FPS = 30
TASKS = ("stack the cubes", "sort the cubes")


def numbers(episode: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """State and action [T,6] float32, within every convention's bounds."""
    random = np.random.default_rng(episode)
    steps = random.uniform(-1.0, 1.0, (frames, 6)).cumsum(axis=0)
    state = (np.array([5, 80, 100, 10, -5, 30]) + steps).astype(np.float32)
    return state, (state + random.uniform(-0.5, 0.5, state.shape)).astype(np.float32)


def frame(episode: int, tick: int, camera: int, height: int = HEIGHT, width: int = WIDTH):
    """RGB uint8; its grey tells episode, tick and camera after any codec."""
    grey = 20 + 40 * camera + 60 * (episode % 2) + 4 * (tick % 20)
    return np.full((height, width, 3), grey, np.uint8)


def _features(names: tuple[str, ...], height: int, width: int, dtype: str) -> dict:
    vector = {"dtype": "float32", "shape": [6], "names": list(names)}
    picture = {
        "dtype": dtype,
        "shape": [height, width, 3],
        "names": ["height", "width", "channels"],
    }
    return {
        "action": vector,
        "observation.state": vector,
        **{f"observation.images.{name}": picture for name in CAMERAS},
    }


def write_v30(
    root: Path,
    lengths: tuple[int, ...] = (12, 9),
    names: tuple[str, ...] = NEW_NAMES,
    height: int = HEIGHT,
    width: int = WIDTH,
    dtype: str = "video",
) -> Path:
    """By LeRobot's own writer: all episodes in one data file and one video a camera."""
    from lerobot.datasets import LeRobotDataset

    dataset = LeRobotDataset.create(
        "someone/else",
        fps=FPS,
        features={
            name: {**feature, "shape": tuple(feature["shape"])}
            for name, feature in _features(names, height, width, dtype).items()
        },
        root=root,
        robot_type="so100_follower",
        use_videos=dtype == "video",
        video_backend="pyav",
    )
    for episode, length in enumerate(lengths):
        state, action = numbers(episode, length)
        for tick in range(length):
            shown = {
                f"observation.images.{name}": frame(episode, tick, place, height, width)
                for place, name in enumerate(CAMERAS)
            }
            dataset.add_frame(
                {
                    "observation.state": state[tick],
                    "action": action[tick],
                    "task": TASKS[episode % len(TASKS)],
                    **shown,
                }
            )
        dataset.save_episode()
    dataset.finalize()
    return root


def write_v21(
    root: Path,
    lengths: tuple[int, ...] = (12, 9),
    names: tuple[str, ...] = OLD_NAMES,
    height: int = HEIGHT,
    width: int = WIDTH,
) -> Path:
    """By hand: one data file and one video a camera for each episode, and lines of JSON."""
    meta = root / "meta"
    meta.mkdir(parents=True)
    info = {
        "codebase_version": "v2.1",
        "robot_type": "so100",
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "total_tasks": len(TASKS),
        "total_videos": len(lengths) * len(CAMERAS),
        "total_chunks": 1,
        "chunks_size": 1000,
        "fps": FPS,
        "splits": {"train": f"0:{len(lengths)}"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": (
            "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
        ),
        "features": _features(names, height, width, "video"),
    }
    (meta / "info.json").write_text(json.dumps(info))
    tasks = [{"task_index": place, "task": task} for place, task in enumerate(TASKS)]
    (meta / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tasks))
    rows = [
        {"episode_index": index, "tasks": [TASKS[index % len(TASKS)]], "length": length}
        for index, length in enumerate(lengths)
    ]
    (meta / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    begun = 0
    for index, length in enumerate(lengths):
        state, action = numbers(index, length)
        table = pyarrow.table(
            {
                "action": pyarrow.FixedSizeListArray.from_arrays(action.ravel(), 6),
                "observation.state": pyarrow.FixedSizeListArray.from_arrays(state.ravel(), 6),
                "timestamp": np.arange(length, dtype=np.float32) / FPS,
                "frame_index": np.arange(length),
                "episode_index": np.full(length, index),
                "index": np.arange(begun, begun + length),
                "task_index": np.full(length, index % len(TASKS)),
            }
        )
        begun += length
        path = root / "data" / "chunk-000" / f"episode_{index:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(table, path)
        for place, name in enumerate(CAMERAS):
            folder = root / "videos" / "chunk-000" / f"observation.images.{name}"
            folder.mkdir(parents=True, exist_ok=True)
            pictures = [frame(index, tick, place, height, width) for tick in range(length)]
            _write_video(folder / f"episode_{index:06d}.mp4", pictures)
    return root


def _write_video(path: Path, pictures: list[np.ndarray]) -> None:
    height, width = pictures[0].shape[:2]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
