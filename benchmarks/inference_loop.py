"""The control loop keeps its time whatever the inference process does.

A loop at 30 Hz drives an untrained ACT (state and object, or with one camera) in a real inference
process that is healthy, then stopped (SIGSTOP), then killed (SIGKILL). Out comes JSON: latency of
chunk requests, duration of `PolicySource.action`, lateness of the loop, ticks until hold and fault.
Like the agent, the loop takes real-time priority where it may.

    python benchmarks/inference_loop.py [--seconds 5] [--camera 480x640] [--realtime 20]
                                        [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.config import FEATURES, load_config
from agent.control.observation import Observation
from agent.control.policy_source import PolicySource
from agent.inference.channel import PolicyChannel
from policy.kinds.act import ActSpec
from policy.release.manifest import POLICY_NAME, write_manifest
from policy.spec import CameraSpec, PolicySpec

FPS = 30
MAX_HOLD_S = 1.0
CONFIG = """
[robot]
port = "/dev/null"
[cameras.overhead]
source = "http://127.0.0.1:9/"
height = {height}
width = {width}
[tracker]
camera = "overhead"
hue_min_deg = 350
hue_max_deg = 10
homography = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
[control]
fps = {fps}
[rollout]
max_hold_s = {hold_s}
[paths]
state_dir = "state"
"""


def write_policy(folder: Path, spec: PolicySpec) -> None:
    """Export an untrained policy in the store's layout. Run in a child: torch brings threads."""
    from policy.build import build_policy
    from policy.export import export_policy
    from policy.statistics import FeatureScale, Normalizer

    scales = {
        name: FeatureScale(names=parts, mean=(0.0,) * len(parts), std=(30.0,) * len(parts))
        for name, parts in spec.vectors.items()
    }
    normalizer = Normalizer(features=scales)
    policy = build_policy(spec, normalizer, seed=0)
    exported = export_policy(policy, spec, normalizer, folder / POLICY_NAME, version=1)
    write_manifest(
        folder, exported.described, evaluation={}, contributors=(), created_unix_s=time.time()
    )


@contextlib.contextmanager
def inference_process(config_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "agent.inference.process", "--config", str(config_path)]
    with (config_path.parent / "inference.log").open("ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def milliseconds(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    p50, p99 = np.percentile(values, [50, 99])
    return {
        "p50_ms": round(float(p50) * 1000, 4),
        "p99_ms": round(float(p99) * 1000, 4),
        "max_ms": round(max(values) * 1000, 4),
    }


def drive(
    source: PolicySource,
    frame: Any,
    seconds: float,
    stop: tuple[int, subprocess.Popen[bytes], signal.Signals] | None = None,
) -> dict[str, Any]:
    """Run one episode; at tick `stop[0]` signal the process."""
    took, spent, late = [], [], []
    state: NDArray[np.float32] = np.zeros(6, np.float32)
    first_hold: int | None = None
    first_fault: int | None = None
    reason: str | None = None
    gc.collect()
    begun_s = time.monotonic()
    for tick in range(int(seconds * FPS)):
        due_s = begun_s + tick / FPS
        time.sleep(max(0.0, due_s - time.monotonic()))
        now_s = time.monotonic()
        late.append(now_s - due_s)
        if stop is not None and tick == stop[0]:
            stop[1].send_signal(stop[2])
        frames = {"overhead": frame}
        seen = Observation(tick, now_s, state, np.zeros(2, np.float32), frames)
        before_s, before_cpu_s = time.perf_counter(), time.thread_time()
        if tick == 0:
            source.begin(seen, now_s)
        action = source.action(seen, now_s)
        spent.append(time.thread_time() - before_cpu_s)
        took.append(time.perf_counter() - before_s)
        if action.goal is not None:
            state = action.goal
        elif action.fault is None and tick > FPS // 2 and first_hold is None:
            first_hold = tick
        if action.fault is not None and first_fault is None:
            first_fault, reason = tick, action.fault
    status = source.status()
    latencies = {key: status[key] for key in ("latency_p50_ms", "latency_max_ms")}
    source.end()
    counted = ("asked", "joined", "dropped", "played_ticks", "held_ticks")
    return {
        "ticks": len(took),
        "loop_late": milliseconds(late),
        "action_wall": milliseconds(took),
        "action_cpu": milliseconds(spent),
        "chunk_seen_by_loop": latencies,
        **{key: status[key] for key in counted},
        "signalled_at_tick": None if stop is None else stop[0],
        "first_hold_tick": first_hold,
        "first_fault_tick": first_fault,
        "fault": reason,
    }


def take_priority(priority: int) -> bool:
    """As the control process does; children are not real-time."""
    if priority == 0:
        return False
    try:
        policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, policy, os.sched_param(priority))
    except OSError:
        return False
    return True


def measure(
    folder: Path, seconds: float, camera: tuple[int, int] | None, priority: int
) -> dict[str, Any]:
    height, width = camera or (96, 128)
    config_path = folder / "agent.toml"
    config_path.write_text(CONFIG.format(height=height, width=width, fps=FPS, hold_s=MAX_HOLD_S))
    config = load_config(config_path)
    seen = () if camera is None else (CameraSpec(name="overhead", height=height, width=width),)
    spec = ActSpec(
        state_names=FEATURES,
        action_names=FEATURES,
        environment_names=config.environment_names,
        cameras=seen,
        fps=FPS,
    )
    policy = folder / "policy"
    policy.mkdir()
    builder = multiprocessing.get_context("spawn").Process(target=write_policy, args=(policy, spec))
    builder.start()
    builder.join()
    if builder.exitcode != 0:
        raise SystemExit("the policy could not be exported; see the traceback above")
    frame = SimpleNamespace(image=np.zeros((height, width, 3), np.uint8))
    channel = PolicyChannel(config.inference_socket, priority)
    channel.open()
    source = PolicySource.from_config(config, channel)
    stop_tick = FPS  # one second in, the first chunks are joined
    long_enough_s = 1.0 + spec.chunk_size / FPS + MAX_HOLD_S + 0.5
    realtime = take_priority(priority)
    try:
        with inference_process(config_path) as process:
            loaded = source.load(policy, 30.0)
            healthy = drive(source, frame, seconds)
            stopped = drive(source, frame, long_enough_s, (stop_tick, process, signal.SIGSTOP))
            process.send_signal(signal.SIGCONT)
            let_go = drive(source, frame, 1.5)
            killed = drive(source, frame, long_enough_s, (stop_tick, process, signal.SIGKILL))
        with inference_process(config_path):
            began_s = time.monotonic()
            source.load(policy, 30.0)
            restart_s = time.monotonic() - began_s
            restarted = drive(source, frame, 1.5)
    finally:
        channel.close()
    return {
        "policy": {
            "chunk_size": spec.chunk_size,
            "camera": None if camera is None else f"{width}x{height}",
            "warm_up_median_ms": round(loaded.latency_ms, 3),
        },
        "realtime": realtime,
        "healthy": healthy,
        "stopped": stopped,
        "let_go": let_go,
        "killed": killed,
        "restarted": {"start_and_load_s": round(restart_s, 2), **restarted},
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of the healthy episode")
    parser.add_argument("--camera", help="HEIGHTxWIDTH of a picture the policy sees")
    parser.add_argument("--realtime", type=int, default=20, help="SCHED_FIFO priority; 0: none")
    parser.add_argument("--json", type=Path, help="write the result there, too")
    arguments = parser.parse_args()
    camera = None
    if arguments.camera:
        height, width = map(int, arguments.camera.split("x"))
        camera = (height, width)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), arguments.seconds, camera, arguments.realtime)
    result["host"] = {
        "cpus": os.cpu_count(),
        "load_1min": round(os.getloadavg()[0], 2),
        "machine": platform.machine(),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
