"""A policy in the lockstep twin as it drives an arm: chunks, latency and blending of the agent.

The schedule is the agent's own, with its defaults; the latency is stated, not measured, so that
equal seeds give equal trials on any machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from agent.config import FEATURES, RolloutConfig
from agent.control.chunk_scheduler import ChunkScheduler, ScheduleRules
from deploy.closed_loop.errors import CannotTry
from policy.spec import ENVIRONMENT, STATE, PolicySpec
from robot_io.calibration import Vector
from robot_io.twin.lockstep import TwinObservation
from robot_io.twin.scene import SceneCamera

TRACKED = ("cube.x_m", "cube.y_m")
_ROLLOUT = RolloutConfig()


class ChunkModel(Protocol):
    """What of `policy.session.OnnxPolicy` is used."""

    def infer(self, observation: Mapping[str, NDArray[Any]], task: str = "") -> NDArray[Any]:
        """Actions [C, 6] for an observation, and for a task where the policy takes words."""


def cameras_of(spec: PolicySpec) -> tuple[SceneCamera, ...]:
    """The twin's cameras at the policy's size.

    Raises:
        CannotTry: the twin gives not what the policy sees or does.
    """
    if spec.state_names != FEATURES or spec.action_names != FEATURES:
        raise CannotTry(
            f"the policy is not of an SO-101: its state is {', '.join(spec.state_names)}"
        )
    unknown = [name for name in spec.environment_names if name not in TRACKED]
    if unknown:
        raise CannotTry(
            f"the policy needs {', '.join(unknown)}; the twin tracks {', '.join(TRACKED)}"
        )
    if not 1 <= spec.fps <= 200:
        raise CannotTry(f"the policy acts at {spec.fps} Hz; the twin's physics has 200")
    return tuple(SceneCamera(each.name, each.width, each.height, spec.fps) for each in spec.cameras)


def observed(spec: PolicySpec, observation: TwinObservation) -> dict[str, NDArray[Any]] | None:
    """The policy's view of an observation; None while what it needs of the tracker is not seen."""
    inputs: dict[str, NDArray[Any]] = {STATE: observation.state}
    if spec.environment_names:
        place = observation.environment[[TRACKED.index(name) for name in spec.environment_names]]
        if not np.isfinite(place).all():
            return None
        inputs[ENVIRONMENT] = place
    for camera in spec.cameras:
        inputs[camera.key] = observation.images[camera.name]
    return inputs


class ChunkedPolicy:
    """A source of goals for one trial. ``held`` tells the goal to hold while there is no action.

    ``held_ticks`` counts on how many that was.
    """

    def __init__(
        self,
        model: ChunkModel,
        spec: PolicySpec,
        latency_ms: float,
        held: Callable[[], Vector],
        words: str = "",
    ) -> None:
        self._model = model
        self._words = words
        self._spec = spec
        self._held = held
        # A reply is picked up at the tick after it came.
        self._latency_ticks = math.ceil(latency_ms / 1000 * spec.fps - 1e-9)
        rules = ScheduleRules(
            fps=spec.fps,
            blend_ticks=_ROLLOUT.blend_ticks,
            latency_percentile=_ROLLOUT.latency_percentile,
            max_hold_s=_ROLLOUT.max_hold_s,
        )
        self._scheduler = ChunkScheduler(
            rules.for_chunk(spec.chunk_size),
            chunk_size=spec.chunk_size,
            action_size=len(spec.action_names),
            latencies_ticks=(self._latency_ticks + 1,),
        )
        self._on_its_way: list[tuple[int, int, NDArray[np.float32]]] = []

    @property
    def held_ticks(self) -> int:
        """On so many the policy had no action ready."""
        return self._scheduler.counts.held_ticks

    def __call__(self, observation: TwinObservation, tick: int) -> Vector:
        """The goal [6] of this tick. Raises PolicyError where the graph cannot be run."""
        scheduler = self._scheduler
        if scheduler.due(tick):
            inputs = observed(self._spec, observation)
            request = None if inputs is None else scheduler.ask(tick)
            if inputs is not None and request is not None:
                chunk = np.asarray(self._model.infer(inputs, self._words), np.float32)
                self._on_its_way.append((tick + self._latency_ticks, request, chunk))
        while self._on_its_way and self._on_its_way[0][0] <= tick:
            _, request, chunk = self._on_its_way.pop(0)
            scheduler.offer(request, chunk, tick)
        action = scheduler.step(tick, tick / self._spec.fps).action
        return self._held() if action is None else action
