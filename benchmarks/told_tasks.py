"""Does one policy do the task that it is told? Success in closed loop, with and without words.

    python benchmarks/told_tasks.py [--seed 0] [--trials 40] [--cells pooled,fedavg]

Two tasks on the lockstep twin share scene, placements and observations: the red cube goes on the
white mark or on the black one. Only the words tell them apart. The policy is ACT on joints and the
cube's tracked place. One robot demonstrates each task; "pooled" is one trainer on both, "alone" one
on the first robot's, "fedavg" the fleet by the product's own trainer, codec, gate and strategy;
"fedavg-mixed" gives both robots half of both tasks. Each task is tried in words of its
demonstrations and in words that none of them had. ``other`` counts trials that did the other task.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.learning.fleet import Plan, alone, federated
from benchmarks.learning.report import wilson
from benchmarks.learning.scene import PLACE, Data, Driver, joint_names, normalizer
from coordinator.config import FedAvg
from policy.kinds import kind_of
from policy.spec import ACTION, ENVIRONMENT, STATE, PolicySpec
from policy.statistics import Normalizer
from policy.train import evaluating
from robot_io.twin.layout import CubePlacement, Layout, TableSector, TableState, at, draw_in
from robot_io.twin.lockstep import LockstepTwin
from robot_io.twin.objects import CUBE_SIZE_M, RED_CUBE, SceneObjects, TableMark
from robot_io.twin.route import Route
from robot_io.twin.tasks import grasping
from robot_io.twin.tasks.place import ON_MARK_M
from robot_io.twin.tasks.task import TwinTask, lies_on
from robot_io.twin.trials import demonstrate, run_trial

EPISODES, ROUNDS, STEPS, DECAY = 16, 12, 100, 0.85
WORDS = 128
_MARK_RADIUS_M, _MARK_AZIMUTH_RAD = 0.19, math.radians(37.0)
_SECTOR = TableSector("middle", -14.0, 14.0)
_MARKS = tuple(at(_MARK_RADIUS_M, side * _MARK_AZIMUTH_RAD) for side in (1.0, -1.0))
_OBJECTS = SceneObjects(
    (RED_CUBE,),
    (
        TableMark("white_mark", (0.93, 0.93, 0.93), (_MARKS[0].x_m, _MARKS[0].y_m)),
        TableMark("black_mark", (0.06, 0.06, 0.06), (_MARKS[1].x_m, _MARKS[1].y_m)),
    ),
)
_WAYS = (
    "put the red cube on the {} mark",
    "place the cube on the {} square",
    "move the red block onto the {} mark",
    "set the red cube down on {}",
)


def _task(mark: int, colour: str) -> TwinTask:
    def draw(dice: np.random.Generator, sector: TableSector) -> Layout:
        return (draw_in(dice, sector), *_MARKS)

    def show(route: Route, layout: Layout) -> None:
        cube, *marks = layout
        grasping.grasp(route, cube)
        grasping.lift(route, cube)
        grasping.put_down(route, marks[mark])

    def done(state: TableState) -> bool:
        return lies_on(state, 0, state.marks_m[mark], ON_MARK_M, CUBE_SIZE_M / 2)

    words = tuple(way.format(colour) for way in _WAYS)
    return TwinTask(f"to_{colour}", "pick_place", words, _OBJECTS, 10.0, draw, show, done)


COLOURS = ("white", "black")
_NEW = tuple(f"the red cube goes to the {colour} mark" for colour in COLOURS)
TASKS = tuple(_task(mark, colour) for mark, colour in enumerate(COLOURS))


def spec_of(words: int, decay: float) -> PolicySpec:
    """ACT on joints and the cube's place, told its task by so many numbers."""
    names = list(joint_names())
    return PolicySpec.from_json(
        {"kind": "act", "fps": 30, "learning_rate": 1e-3, "round_decay": decay, "words": words}
        | {"state_names": names, "action_names": names, "environment_names": list(PLACE)}
    )


def record(task: TwinTask, seed: int) -> Data:
    """Demonstrations of one task, each told in one of its ways."""
    dice = np.random.default_rng([seed, TASKS.index(task)])
    with LockstepTwin(task=task) as twin:
        tries = [demonstrate(twin, task.draw(dice, _SECTOR), seed + k) for k in range(EPISODES)]
    shown = [each for each in tries if each.succeeded]
    return Data(
        {
            STATE: np.concatenate([each.state for each in shown]),
            ENVIRONMENT: np.concatenate([each.environment for each in shown]),
            ACTION: np.concatenate([each.action for each in shown]),
        },
        np.empty(0),
        np.repeat(np.arange(len(shown)), [len(each.state) for each in shown]),
        tuple(task.words_for(each.seed) for each in shown),
    )


def tried(
    policy: torch.nn.Module, spec: PolicySpec, scale: Normalizer, trials: int, seed: int
) -> dict[str, Any]:
    """By task: trials that did it, and whose cube came to the other mark. Equal placements."""
    counts: dict[str, Any] = {}
    told = kind_of(spec.kind).reads_words(spec)
    for mark, task in enumerate(TASKS):
        tellings = {task.name: task.words}
        if told:
            tellings[f"{task.name}, new words"] = (_NEW[mark],)
        for name, ways in tellings.items():
            dice = np.random.default_rng([seed, 0x7121])
            done = other = 0
            with LockstepTwin(task=task) as twin, evaluating(policy):
                for trial in range(trials):
                    new_driver = partial(Driver, twin, policy, spec, scale, ways[trial % len(ways)])
                    layout = task.draw(dice, _SECTOR)
                    result = run_trial(twin, new_driver, layout, 100_000 + trial)
                    done += result.succeeded
                    place = CubePlacement(*result.cube_m[:2])
                    other += place.distance_m(_MARKS[1 - mark]) < ON_MARK_M
            low, high = wilson(done, trials)
            counts[name] = {
                "done": done, "trials": trials, "low": low, "high": high, "other": other
            }  # fmt: skip
    return counts


# Whether the policy is told; how it is trained. 48 rounds of 25 steps are as many as 12 of 100.
CELLS = {
    "pooled": (True, None),
    "fedavg": (True, Plan(FedAvg(), rounds=ROUNDS, steps=STEPS)),
    "fedavg-often": (True, Plan(FedAvg(), rounds=4 * ROUNDS, steps=STEPS // 4)),
    "fedavg-mixed": (True, Plan(FedAvg(), rounds=ROUNDS, steps=STEPS)),
    "pooled-not-told": (False, None),
    "alone": (True, None),
}


def mixed(robots: Sequence[Data]) -> list[Data]:
    """As many robots, each with its share of every one's episodes."""
    count = len(robots)
    dealt = []
    for which in range(count):
        parts = [(each, each.episode % count == which) for each in robots]
        starts = np.cumsum([0, *(len(each.words) for each in robots)])
        dealt.append(
            Data(
                {
                    name: np.concatenate([each.vectors[name][keep] for each, keep in parts])
                    for name in robots[0].vectors
                },
                np.empty(0),
                np.concatenate(
                    [
                        each.episode[keep] + start
                        for (each, keep), start in zip(parts, starts[:-1], strict=True)
                    ]
                ),
                tuple(word for each in robots for word in each.words),
            )
        )
    return dealt


def trained(name: str, robots: Sequence[Data], seed: int) -> tuple[PolicySpec, torch.nn.Module]:
    """The policy of a cell; "alone" is the first robot's."""
    told, plan = CELLS[name]
    rounds = ROUNDS if plan is None else plan.rounds
    spec = spec_of(WORDS if told else 0, DECAY ** (ROUNDS / rounds))
    scale = normalizer(robots, spec)
    if plan is not None:
        data = mixed(robots) if name == "fedavg-mixed" else robots
        return spec, federated(data, spec, scale, plan, seed)[0]
    data = robots[:1] if name == "alone" else robots
    return spec, alone(data, spec, scale, ROUNDS, STEPS, seed)


def main() -> None:
    """Print all cells as JSON, and each count to stderr as it is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--cells", default=",".join(CELLS))
    asked = parser.parse_args()
    logging.disable(logging.INFO)  # Flower tells each aggregation
    torch.set_num_threads(1)
    robots = [record(task, 1000 * asked.seed) for task in TASKS]
    results: dict[str, Any] = {
        "seed": asked.seed,
        "demonstrations": {t.name: len(d.words) for t, d in zip(TASKS, robots, strict=True)},
        "cells": {},
    }
    began_s = time.monotonic()
    for name in asked.cells.split(","):
        spec, policy = trained(name, robots, asked.seed)
        trained_s = time.monotonic()
        scale = normalizer(robots, spec)
        counts = tried(policy, spec, scale, asked.trials, asked.seed)
        results["cells"][name] = {"train_s": round(trained_s - began_s, 1), "tasks": counts}
        for task, count in counts.items():
            print(
                f"{name}: {task}: {count['done']} of {count['trials']} "
                f"({count['low']:.0%}-{count['high']:.0%}), {count['other']} on the other mark",
                file=sys.stderr,
                flush=True,
            )
        began_s = time.monotonic()
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
