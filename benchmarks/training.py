"""What a robot's training costs in time and memory, beside LeRobot's own loader.

    python benchmarks/training.py [--episodes 50] [--frames 120] [--steps 3] [--json FILE]

Made-up episodes with two cameras are written by LeRobot's own writer as h264. Then, by turns and on
the same frames: batches out of our frame cache; batches out of LeRobot's DataLoader and
LeRobotDataset; the same with an optimiser step of a full-size ACT behind each. Prints one JSON
object: samples a second, their ratios, seconds to make the cache, and the most memory that our
side took (in a process of its own). On a small disk give --cache a folder with room:
episodes x frames x cameras x 3 x height x width bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

import numpy as np
import torch
from synthetic_pick import JOINTS, demonstration, normalizer_of

from policy.batches import Batches, batches_of, hold_pictures, load_frames
from policy.build import Tensors, build_policy, build_processors
from policy.frame_cache import FrameCache
from policy.kinds.act import ActSpec
from policy.spec import ACTION, STATE, CameraSpec
from policy.train import LocalTraining

CAMERAS = ("overhead", "wrist")
FPS = 30
FULL_ACT = {
    "chunk_size": 100,
    "dim_model": 512,
    "n_heads": 8,
    "dim_feedforward": 3200,
    "n_encoder_layers": 4,
    "use_vae": True,
    "n_vae_encoder_layers": 4,
    "latent_dim": 32,
    "dropout": 0.1,
    "backbone": "resnet18",
}


def spec_of(options: argparse.Namespace) -> ActSpec:
    """ACT at LeRobot's own size, for the recorded frames."""
    cameras = [
        CameraSpec(name=name, height=options.height, width=options.width) for name in CAMERAS
    ]
    return ActSpec.model_validate(
        {
            "state_names": JOINTS,
            "action_names": JOINTS,
            "cameras": cameras,
            "fps": FPS,
            "batch_size": options.batch_size,
            **FULL_ACT,
        }
    )


def write_dataset(root: Path, options: argparse.Namespace) -> None:
    """Episodes of noise on a gradient, a square that moves: as hard for a codec as a table."""
    from lerobot.configs import RGBEncoderConfig
    from lerobot.datasets import LeRobotDataset

    size = (options.height, options.width, 3)
    vector = {"dtype": "float32", "shape": (len(JOINTS),), "names": list(JOINTS)}
    video = {"dtype": "video", "shape": size, "names": ["height", "width", "channels"]}
    encoder = RGBEncoderConfig(vcodec="h264", pix_fmt="yuv420p", g=2, crf=23, preset="ultrafast")
    dataset = LeRobotDataset.create(
        "local/benchmark",
        fps=FPS,
        root=root,
        features={STATE: vector, ACTION: vector}
        | {f"observation.images.{name}": video for name in CAMERAS},
        rgb_encoder=encoder,
        streaming_encoding=True,
        encoder_queue_maxsize=options.frames + 1,
        encoder_threads=1,
        video_backend="pyav",
    )
    dice = np.random.default_rng(0)
    table = np.linspace(40, 160, options.width, dtype=np.float32)[None, :, None]
    noise = dice.normal(0.0, 4.0, (8, *size)).astype(np.float32)
    pictures = np.clip(table + noise, 0, 255).astype(np.uint8)
    for _ in range(options.episodes):
        state, _, action = demonstration(
            *dice.uniform((0.16, -0.06), (0.21, 0.06)), options.frames, dice
        )
        for tick in range(options.frames):
            frame: dict[str, Any] = {STATE: state[tick], ACTION: action[tick], "task": "pick"}
            for name in CAMERAS:
                picture = pictures[tick % len(pictures)].copy()
                left = tick * (options.width - 40) // options.frames
                picture[20:60, left : left + 40] = (200, 30, 30)
                frame[f"observation.images.{name}"] = picture
            dataset.add_frame(frame)
        dataset.save_episode(parallel_encoding=False)
    dataset.finalize()


def ours(root: Path, cache: Path, spec: ActSpec) -> tuple[Batches, float]:
    """Batches out of our cache, and the seconds that it took to make it."""
    frames = load_frames(root, list(spec.vectors))
    normalizer = normalizer_of(frames, spec)
    began_s = time.perf_counter()
    pictures = hold_pictures(FrameCache(cache), root, spec, frames.episodes)
    while pictures.prepare() is not None:
        pass
    made_s = time.perf_counter() - began_s
    return batches_of(frames, spec, normalizer, pictures), made_s


def theirs(root: Path, spec: ActSpec, workers: int) -> Iterator[Tensors]:
    """Batches as lerobot-train makes them: its dataset, its DataLoader, its processor."""
    from lerobot.datasets import LeRobotDataset

    chunk = [step / FPS for step in range(spec.chunk_size)]
    dataset = LeRobotDataset(
        "local/benchmark",
        root=root,
        delta_timestamps={ACTION: chunk},
        return_uint8=True,
        video_backend="pyav",
    )
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=spec.batch_size,
        shuffle=True,
        num_workers=workers,
        prefetch_factor=2 if workers else None,
        generator=torch.Generator().manual_seed(0),
        drop_last=True,
    )
    normalizer = normalizer_of(load_frames(root, list(spec.vectors)), spec)
    preprocess, _ = build_processors(spec, normalizer)
    while True:
        for raw in loader:
            for camera in spec.cameras:
                raw[camera.key] = raw[camera.key].to(torch.float32) / 255.0
            yield preprocess(raw)


def rate(draw: Callable[[], Any], batches: int, batch_size: int) -> float:
    """Samples a second."""
    began_s = time.perf_counter()
    for _ in range(batches):
        draw()
    return batches * batch_size / (time.perf_counter() - began_s)


def compare(options: argparse.Namespace, root: Path, cache: Path) -> dict[str, Any]:
    """Loaders alone and with a step behind, by turns; medians of the turns."""
    spec = spec_of(options)
    batches, made_s = ours(root, cache, spec)
    their_batches = theirs(root, spec, options.workers)
    normalizer = normalizer_of(load_frames(root, list(spec.vectors)), spec)
    policy = build_policy(spec, normalizer, 0)
    training = LocalTraining(policy, spec, micro_batch=options.micro_batch or None)
    next(their_batches)  # its workers start
    draws = {
        "armada_loader": (batches.draw, options.batches),
        "lerobot_loader": (lambda: next(their_batches), options.batches),
        "armada_step": (lambda: training.step(batches.draw()), options.steps),
        "lerobot_step": (lambda: training.step(next(their_batches)), options.steps),
    }
    found: dict[str, list[float]] = {name: [] for name in draws}
    for _ in range(options.turns):
        for name, (draw, count) in draws.items():
            if count:
                found[name].append(rate(draw, count, spec.batch_size))
    medians = {name: statistics.median(rates) for name, rates in found.items() if rates}
    result: dict[str, Any] = {
        "samples_per_s": {name: round(value, 3) for name, value in medians.items()},
        "all_turns": {name: [round(value, 3) for value in rates] for name, rates in found.items()},
        "loader_ratio": round(medians["armada_loader"] / medians["lerobot_loader"], 2),
        "cache_s": round(made_s, 1),
        "cache_mb": sum(path.stat().st_size for path in cache.iterdir()) >> 20,
    }
    if options.steps:
        result["step_ratio"] = round(medians["armada_step"] / medians["lerobot_step"], 2)
    return result


def train_alone(options: argparse.Namespace, root: Path, cache: Path) -> dict[str, Any]:
    """In a process of its own: the cache is made, steps are trained, and the peak is told."""
    spec = spec_of(options)
    batches, made_s = ours(root, cache, spec)
    normalizer = normalizer_of(load_frames(root, list(spec.vectors)), spec)
    training = LocalTraining(
        build_policy(spec, normalizer, 0), spec, micro_batch=options.micro_batch or None
    )
    for _ in range(max(2, options.steps)):
        training.step(batches.draw())
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_rss_gb": round(peak_kb / 2**20, 2), "first_cache_s": round(made_s, 1)}


def main() -> int:
    """Make the episodes, measure, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--frames", type=int, default=120, help="of each episode")
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--micro-batch", type=int, default=0, help="frames at once; 0: all")
    parser.add_argument("--batches", type=int, default=10, help="of the loader alone, a turn")
    parser.add_argument("--steps", type=int, default=2, help="of ACT, a turn; 0: none")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--workers", type=int, default=4, help="of LeRobot's loader; its default")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--cache", type=Path, help="folder for episodes and cache")
    parser.add_argument("--json", type=Path, help="write the result there as well")
    parser.add_argument("--alone", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.alone is not None:
        print(json.dumps(train_alone(options, *options.alone)))
        return 0
    with tempfile.TemporaryDirectory(dir=options.cache) as folder:
        root, cache = Path(folder) / "dataset", Path(folder) / "cache"
        os.environ["HF_DATASETS_CACHE"] = str(Path(folder) / "datasets")
        write_dataset(root, options)
        alone = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--alone", str(root), str(cache)],
            check=True,
            capture_output=True,
            text=True,
        )
        result = {
            "episodes": options.episodes,
            "frames": options.frames,
            "cameras": f"{len(CAMERAS)} x {options.width}x{options.height}",
            "batch_size": options.batch_size,
            "threads": options.threads,
            "load": [round(value, 1) for value in os.getloadavg()],
            **json.loads(alone.stdout.splitlines()[-1]),
            **compare(options, root, cache),
        }
    text = json.dumps(result, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
