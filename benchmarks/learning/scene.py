"""Demonstrations and closed-loop trials on the lockstep twin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agent.control.chunk_scheduler import ChunkScheduler, ScheduleRules
from deploy.local_fleet.plan import make_plan
from policy.build import build_processors
from policy.kinds import kind_of
from policy.spec import ACTION, ENVIRONMENT, STATE, TASK, PolicySpec
from policy.statistics import Component, FeatureSketch, Normalizer, Sketch
from policy.train import evaluating
from policy.weights import Array
from robot_io.calibration import JOINTS, Vector
from robot_io.twin.lockstep import CONTROL_HZ, CubePlacement, LockstepTwin, TwinObservation
from robot_io.twin.scene import SceneCamera
from robot_io.twin.trials import demonstrate, run_trials

CAMERA = "overhead"
PLACE = ("cube.x", "cube.y")
LATENCY_TICKS = 1


@dataclass(frozen=True)
class Data:
    """One robot's demonstrations: float32 vectors [N, D], pictures uint8 [N, 3, H, W].

    ``words``: what each episode does, where the policy is told.
    """

    vectors: dict[str, Array]
    pictures: Array
    episode: Array
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """What robots demonstrated, and where all of them are tried."""

    robots: tuple[Data, ...]
    trials: tuple[tuple[str, CubePlacement], ...]  # sector and place


def camera(width: int, height: int) -> SceneCamera:
    return SceneCamera(CAMERA, width, height, CONTROL_HZ)


def make_task(
    folder: Path, robots: int, episodes: int, trials: int, seed: int, size: tuple[int, int]
) -> Task:
    """Sectors as in the demo; demonstrations are kept in ``folder``. ``trials``: in all."""
    plans = make_plan(robots, episodes, math.ceil(trials / robots), ("policy",), seed)
    places = [(trial.placement.sector, _place(trial.placement)) for trial in plans[0].trials]
    data = []
    for index, plan in enumerate(plans):
        path = folder / f"demonstrations-{robots}x{episodes}-{size[0]}x{size[1]}-{seed}-{index}.npz"
        if not path.exists():
            demonstrated = [_place(place) for place in plan.demonstrations]
            _record(path, demonstrated, 1000 * seed + 100 * index, size)
        data.append(_load(path))
    return Task(tuple(data), tuple(places))


def _place(placement: Any) -> CubePlacement:
    return CubePlacement(placement.x_m, placement.y_m, placement.yaw_rad)


def _record(path: Path, places: Sequence[CubePlacement], seed: int, size: tuple[int, int]) -> None:
    with LockstepTwin((camera(*size),)) as twin:
        shown = [demonstrate(twin, place, seed + k) for k, place in enumerate(places)]
    kept = [each for each in shown if each.lifted]
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        state=np.concatenate([each.state for each in kept]),
        action=np.concatenate([each.action for each in kept]),
        environment=np.concatenate([each.environment for each in kept]),
        pictures=np.concatenate([each.images[CAMERA] for each in kept]).transpose(0, 3, 1, 2),
        episode=np.repeat(np.arange(len(kept)), [len(each.state) for each in kept]),
    )


def _load(path: Path) -> Data:
    stored = np.load(path)
    vectors = {name: stored[key] for name, key in _VECTORS.items()}
    return Data(vectors, stored["pictures"], stored["episode"])


_VECTORS = {STATE: "state", ENVIRONMENT: "environment", ACTION: "action"}


def normalizer(robots: Sequence[Data], spec: PolicySpec) -> Normalizer:
    """The fleet's: from the merged sketches of all."""
    calibration = LockstepTwin().calibration
    bounds = {
        name: (float(low), float(high))
        for name, low, high in zip(joint_names(), calibration.lower, calibration.upper, strict=True)
    } | dict.fromkeys(PLACE, (-1.0, 1.0))
    sketches = [
        Sketch(
            {
                feature: FeatureSketch.measure(
                    [Component(name, *bounds[name]) for name in names], data.vectors[feature]
                )
                for feature, names in spec.vectors.items()
            }
        )
        for data in robots
    ]
    return Normalizer.from_sketches(sketches)


def joint_names() -> tuple[str, ...]:
    return tuple(f"{joint}.pos" for joint in JOINTS)


class Driver:
    """A policy behind the agent's scheduler; an answer takes one tick."""

    def __init__(
        self,
        twin: LockstepTwin,
        policy: torch.nn.Module,
        spec: PolicySpec,
        scale: Normalizer,
        words: str = "",
    ) -> None:
        self._twin, self._policy, self._spec, self._words = twin, policy, spec, words
        self._before, self._after = build_processors(spec, scale)
        self._kind = kind_of(spec.kind)
        self._scheduler = ChunkScheduler(
            ScheduleRules(fps=CONTROL_HZ),
            chunk_size=spec.chunk_size,
            action_size=len(spec.action_names),
            latencies_ticks=(LATENCY_TICKS,),
        )
        self._coming: list[tuple[int, int, Vector]] = []

    def __call__(self, observation: TwinObservation, tick: int) -> Vector:
        request = self._scheduler.ask(tick)
        if request is not None:
            self._coming.append((tick + LATENCY_TICKS, request, self._chunk(observation)))
        for due, number, chunk in self._coming:
            if due == tick:
                self._scheduler.offer(number, chunk, tick)
        self._coming = [each for each in self._coming if each[0] > tick]
        action = self._scheduler.step(tick, tick / CONTROL_HZ).action
        return self._twin.sent if action is None else action

    def _chunk(self, observation: TwinObservation) -> Vector:
        raw: dict[str, Any] = {STATE: torch.from_numpy(observation.state)[None]}
        raw[TASK] = [self._words]
        if ENVIRONMENT in self._spec.vectors:
            raw[ENVIRONMENT] = torch.from_numpy(observation.environment)[None]
        for each in self._spec.cameras:
            picture = torch.from_numpy(observation.images[each.name].copy())
            raw[each.key] = picture.permute(2, 0, 1)[None].float() / 255.0
        batch = self._kind.arrange(dict(self._before(raw)))
        chunk = self._policy.predict_action_chunk(batch)
        return np.asarray(self._after(chunk)[0].numpy(), np.float32)


def succeed(
    policy: torch.nn.Module, spec: PolicySpec, scale: Normalizer, task: Task, seed: int
) -> list[tuple[str, bool]]:
    """(sector, lifted) of every trial; the arm holds still until its first chunk."""
    cameras = tuple(camera(each.width, each.height) for each in spec.cameras)
    with LockstepTwin(cameras) as twin, evaluating(policy):
        results = run_trials(
            twin,
            lambda: Driver(twin, policy, spec, scale),
            [place for _, place in task.trials],
            seed=100_000 + 1000 * seed,
            duration_s=5.0,
        )
    return [
        (sector, result.lifted) for (sector, _), result in zip(task.trials, results, strict=True)
    ]
