"""How much faster than real time the lockstep twin is, on one core.

    python benchmarks/lockstep.py [--runs 5] [--trials 12] [--task lift]... [--core 0]
                                   [--json FILE]

Each run plays the expert's demonstrations of one task at placements over the whole reach, once
with state only and once with one 96 by 72 overhead picture a tick; tasks and cameras alternate.
Prints one JSON object: for each task, medians over the runs of the real-time factor of the stepping
alone, by processor time and by the wall's clock, and of whole trials with reset and planning. The
bars are 30 for state and 8 with the camera, by processor time and for every task: the work waits
for nothing, so that on a core of its own both are the same, and on a shared machine the wall's
tells who else is there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mujoco
import numpy as np

from robot_io.twin.layout import WHOLE_TABLE, Layout
from robot_io.twin.lockstep import LockstepTwin
from robot_io.twin.scene import SceneCamera
from robot_io.twin.tasks import TASKS
from robot_io.twin.tasks.task import TwinTask
from robot_io.twin.trials import teleoperation

BARS = {"state": 30.0, "camera_96x72": 8.0}
CAMERAS = {"state": (), "camera_96x72": (SceneCamera("overhead", 96, 72, 30),)}
WARM_UP_TRIALS = 2


def layouts(task: TwinTask, count: int) -> list[Layout]:
    """Over the whole reach."""
    dice = np.random.default_rng(11)
    return [task.draw(dice, WHOLE_TABLE) for _ in range(count)]


def run(twin: LockstepTwin, places: list[Layout]) -> dict[str, float]:
    """One run: real-time factors and the share of successes."""
    stepping_wall_s = stepping_cpu_s = simulated_s = 0.0
    succeeded = 0
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    for seed, layout in enumerate(places):
        observation = twin.reset(layout, seed)
        plan = twin.demonstration()
        source = teleoperation(twin, plan)
        ticks = round(plan.duration_s * twin.control_hz)
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        for tick in range(ticks):
            observation = twin.step(source(observation, tick))
        stepping_wall_s += time.perf_counter() - wall_s
        stepping_cpu_s += time.process_time() - cpu_s
        simulated_s += ticks / twin.control_hz
        succeeded += twin.succeeded
    return {
        "step_x_wall": simulated_s / stepping_wall_s,
        "step_x_cpu": simulated_s / stepping_cpu_s,
        "trial_x_wall": simulated_s / (time.perf_counter() - began_s),
        "trial_x_cpu": simulated_s / (time.process_time() - began_cpu_s),
        "success_share": succeeded / len(places),
    }


def median(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: round(statistics.median(each[key] for each in runs), 2) for key in runs[0]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--trials", type=int, default=12, help="demonstrations a run")
    parser.add_argument("--task", action="append", choices=TASKS, help="default: all")
    parser.add_argument("--core", type=int, help="default: the first this process may use")
    parser.add_argument("--json", type=Path, help="write the result there as well")
    arguments = parser.parse_args()

    core = min(os.sched_getaffinity(0)) if arguments.core is None else arguments.core
    os.sched_setaffinity(0, {core})
    load_before = os.getloadavg()[0]
    tasks = [TASKS[name] for name in arguments.task or TASKS]
    runs: dict[str, dict[str, list[dict[str, float]]]] = {
        task.name: {name: [] for name in BARS} for task in tasks
    }
    for _ in range(arguments.runs):
        for task in tasks:
            places = layouts(task, arguments.trials)
            for name, cameras in CAMERAS.items():
                with LockstepTwin(cameras, task=task) as twin:
                    run(twin, places[:WARM_UP_TRIALS])
                    runs[task.name][name].append(run(twin, places))
    medians = {
        task: {name: median(all_of) for name, all_of in rows.items()} for task, rows in runs.items()
    }
    result = {
        "benchmark": "lockstep",
        "machine": {
            "cpus": os.cpu_count(),
            "core": core,
            "python": platform.python_version(),
            "mujoco": mujoco.__version__,
            "load_before": round(load_before, 2),
        },
        "runs": arguments.runs,
        "trials_a_run": arguments.trials,
        "bars_step_x_cpu": BARS,
        "meets_bars": all(
            rows[name]["step_x_cpu"] >= bar
            for rows in medians.values()
            for name, bar in BARS.items()
        ),
        "medians": medians,
        "each_step_x_cpu": {
            task: {
                name: [round(each["step_x_cpu"], 1) for each in all_of]
                for name, all_of in rows.items()
            }
            for task, rows in runs.items()
        },
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")
    return 0 if result["meets_bars"] else 1


if __name__ == "__main__":
    sys.exit(main())
