"""Our asynchronous path beside LeRobot's synchronous engine: same twin, policy, latency.

    python benchmarks/asynchronous_inference.py [--trials 24] [--chunk 50] [--json FILE]

The lockstep twin picks and lifts in virtual time, so that a latency is exact and nothing depends
on this machine's load. The policy is the scripted expert behind a chunk interface: from an
observation it gives the next `--chunk` actions, each chunk off by its own error of 1° a joint, as
two chunks of a learned policy disagree. It is asked

- by LeRobot's own `ACTPolicy.select_action`, whose loop stands still while a chunk is computed;
  once with LeRobot's default for ACT, SmolVLA and pi0 (the whole chunk is played), once with half
  of it (Diffusion's default);
- through the agent's `ChunkScheduler` with the agent's default rules.

Figures a cell: `response_ms`, from a moment in the episode to the first action that reflects an
observation of that moment or later, mean over all moments; `response_half_ms`, the same to the
first action to which such an observation gives half of the weight (LeRobot's replace, ours blend);
`moving_share`, ticks with an action over all ticks; `decisions_hz`,
observations acted on a second; `tasks_a_minute`; `lifted_share`; `join_jerk`, the peak third
difference of the goals at chunk joins over the peak inside of the chunks, as the policy gave them.

Of throughput, a loop that plays a chunk of H ticks and stands still for L cannot be beaten by
more than (H + L) / H in ticks that move: 1.5 at L = H / 2. In decisions it can.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from lerobot.policies.act.modeling_act import ACTPolicy
from numpy.typing import NDArray

from agent.config import ControlConfig, RolloutConfig
from agent.control.chunk_scheduler import ChunkScheduler, Offer, ScheduleRules
from robot_io.limits import Limits, Ramp
from robot_io.twin.lockstep import CubePlacement, LockstepTwin
from robot_io.twin.trials import teleoperation

FPS = 30
LATENCIES_MS = (0, 100, 200, 300, 400, 500)
CHUNK_ERROR = 1.0  # joint units
PATIENCE = 3.0  # a trial may take so many times the expert's time
BARS = {"response_saved": 0.5, "throughput": 2.0, "join_jerk": 1.2}

Rows = NDArray[np.float64]


@dataclass
class Episode:
    """What was played: for each tick the goal, and the tick whose observation it reflects.

    The goals are those of the engine, before ramp and limits, which are the same for both.
    """

    goals: list[Rows] = field(default_factory=list)
    reflects: list[int] = field(default_factory=list)  # -1: nothing yet
    reflects_half: list[int] = field(default_factory=list)  # with half of the weight or more
    played: int = 0
    decisions: int = 0
    joins: list[int] = field(default_factory=list)  # ticks at which another chunk came in
    chunks: list[Rows] = field(default_factory=list)
    lifted: bool = False


def waits_ticks(reflects: list[int]) -> list[int]:
    """For each moment that was ever reflected, how long it took."""
    waits, tick = [], 0
    for moment in range(len(reflects)):
        tick = max(tick, moment)
        while tick < len(reflects) and reflects[tick] < moment:
            tick += 1
        if tick == len(reflects):
            break
        waits.append(tick - moment)
    return waits


class ExpertChunks:
    """The expert's motion from wherever the arm has come to, a chunk at a time.

    It knows its progress by what was played, as a policy does by what it sees.
    """

    def __init__(self, twin: LockstepTwin, size: int, seed: int) -> None:
        plan = twin.demonstration()
        self._goal = teleoperation(twin, plan)
        self._observation = twin.observe()
        self._dice = np.random.default_rng(seed)
        self.size = size
        self.progress = 0
        self.ticks = round(plan.duration_s * FPS)

    def chunk(self) -> Rows:
        """The next actions, [size, 6]."""
        rows = range(self.progress, self.progress + self.size)
        exact = np.stack([self._goal(self._observation, row) for row in rows])
        error = self._dice.normal(0.0, CHUNK_ERROR, exact.shape[1])
        return np.asarray(exact + error, np.float64)


class LeRobotEngine(ACTPolicy):
    """LeRobot's queue of actions, with the expert in the place of the network."""

    def __init__(self, chunks: ExpertChunks, steps: int) -> None:
        torch.nn.Module.__init__(self)  # no network, no configuration beyond what the queue reads
        self.config = SimpleNamespace(temporal_ensemble_coeff=None, n_action_steps=steps)
        self._action_queue: deque[torch.Tensor] = deque(maxlen=steps)
        self._chunks = chunks
        self.asked: list[Rows] = []

    @property
    def blocks(self) -> bool:
        """Whether the next `select_action` computes a chunk."""
        return not self._action_queue

    def predict_action_chunk(self, batch: dict[str, Any]) -> torch.Tensor:
        self.asked.append(self._chunks.chunk())
        return torch.from_numpy(self.asked[-1])[None]


def synchronous(twin: LockstepTwin, chunks: ExpertChunks, latency: int, steps: int) -> Episode:
    """LeRobot's loop: while a chunk is computed nothing is sent, and the arm holds."""
    engine = LeRobotEngine(chunks, steps)
    episode = Episode()
    observed, goal = -1, np.array(twin.sent, np.float64)
    for _ in range(int(PATIENCE * chunks.ticks)):
        if engine.blocks:
            observed_now = len(episode.goals)
            action = engine.select_action({})
            for _ in range(latency):
                twin.step(twin.sent)
                episode.goals.append(goal)
                episode.reflects.append(observed)
            observed = observed_now
            episode.decisions += 1
            episode.joins.append(len(episode.goals))
        else:
            action = engine.select_action({})
        goal = action[0].numpy()
        twin.step(goal.astype(np.float32))
        episode.goals.append(goal)
        episode.reflects.append(observed)
        episode.played += 1
        chunks.progress += 1
        if twin.lifted:
            break
    episode.chunks, episode.lifted = engine.asked, twin.lifted
    return episode


def asynchronous(
    twin: LockstepTwin, chunks: ExpertChunks, latency: int, rules: ScheduleRules
) -> Episode:
    """The agent's loop: one action a tick, the next chunk on its way meanwhile."""
    scheduler = ChunkScheduler(
        rules, chunk_size=chunks.size, action_size=6, latencies_ticks=(latency + 1,)
    )
    episode = Episode()
    on_its_way: deque[tuple[int, int, int, Rows]] = deque()
    coming: list[tuple[int, int]] = []  # from which tick on, the observation that is reflected
    goal = np.array(twin.sent, np.float64)
    ramp = Ramp(ControlConfig().ramp_s)  # the agent's handover to whoever takes command
    for tick in range(int(PATIENCE * chunks.ticks)):
        request = scheduler.ask(tick)
        if request is not None:
            on_its_way.append((tick + latency, request, tick, chunks.chunk()))
        while on_its_way and on_its_way[0][0] <= tick:
            _, number, observed, rows = on_its_way.popleft()
            if scheduler.offer(number, rows.astype(np.float32), tick) is Offer.JOINED:
                coming.append((tick, observed))
                episode.chunks.append(rows)
                episode.decisions += 1
                episode.joins.append(tick)
        step = scheduler.step(tick, tick / FPS)
        if step.action is None:
            twin.step(twin.sent)
        else:
            if not episode.played:
                ramp.start(twin.sent, tick / FPS)
            twin.step(ramp.apply(step.action, tick / FPS))
        goal = goal if step.action is None else step.action.astype(np.float64)
        episode.goals.append(goal)
        half = tick - rules.blend_ticks // 2
        episode.reflects.append(coming[-1][1] if coming else -1)
        by_half = [at for since, at in coming if since <= half or at == coming[0][1]]
        episode.reflects_half.append(by_half[-1] if by_half else -1)
        if step.action is not None:
            episode.played += 1
        chunks.progress += 1  # rows belong to ticks: a policy that is late is not waited for
        if twin.lifted:
            break
    episode.lifted = twin.lifted
    return episode


def peak(differences: Rows) -> float:
    """The largest of a joint's, over all."""
    return float(np.abs(differences).max()) if differences.size else 0.0


def figures(episodes: list[Episode], blend: int) -> dict[str, float]:
    """One cell of the table."""
    ticks = sum(len(episode.goals) for episode in episodes)
    joins = inside = 0.0
    for episode in episodes:
        jerk = np.diff(np.stack(episode.goals), 3, axis=0)
        for at in episode.joins[1:]:
            joins = max(joins, peak(jerk[max(0, at - 3) : at + blend + 1]))
        inside = max([inside, *(peak(np.diff(chunk, 3, axis=0)) for chunk in episode.chunks)])
    waits = [wait for episode in episodes for wait in waits_ticks(episode.reflects)]
    half = [wait for e in episodes for wait in waits_ticks(e.reflects_half or e.reflects)]
    return {
        "response_ms": round(1000.0 * statistics.mean(waits) / FPS, 1),
        "response_half_ms": round(1000.0 * statistics.mean(half) / FPS, 1),
        "moving_share": round(sum(episode.played for episode in episodes) / ticks, 3),
        "decisions_hz": round(FPS * sum(episode.decisions for episode in episodes) / ticks, 2),
        "tasks_a_minute": round(60 * FPS * sum(e.lifted for e in episodes) / ticks, 2),
        "lifted_share": round(sum(e.lifted for e in episodes) / len(episodes), 3),
        "join_jerk": round(joins / inside, 2),
    }


def placements(count: int) -> list[CubePlacement]:
    """Where the demo's cubes lie."""
    dice = np.random.default_rng(11)
    drawn = []
    for _ in range(count):
        radius_m, azimuth_rad = dice.uniform(0.165, 0.21), dice.uniform(-0.733, 0.733)
        x_m, y_m = radius_m * math.cos(azimuth_rad), radius_m * math.sin(azimuth_rad)
        drawn.append(CubePlacement(x_m, y_m, azimuth_rad))
    return drawn


def compare(ours: dict[str, float], theirs: dict[str, float]) -> dict[str, float]:
    """Ours against theirs."""
    return {
        "response_saved": round(1 - ours["response_ms"] / theirs["response_ms"], 3),
        "response_half_saved": round(1 - ours["response_half_ms"] / theirs["response_ms"], 3),
        "moving": round(ours["moving_share"] / theirs["moving_share"], 2),
        "decisions": round(ours["decisions_hz"] / theirs["decisions_hz"], 2),
        "tasks_a_minute": round(ours["tasks_a_minute"] / theirs["tasks_a_minute"], 2)
        if theirs["tasks_a_minute"]
        else math.inf,
        "lifted": round(ours["lifted_share"] - theirs["lifted_share"], 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=24, help="placements a cell")
    parser.add_argument("--chunk", type=int, default=50, help="actions; LeRobot's for SmolVLA")
    parser.add_argument("--json", type=Path, help="write the result there as well")
    arguments = parser.parse_args()
    size = arguments.chunk
    rules = ScheduleRules(FPS, blend_ticks=RolloutConfig().blend_ticks)
    control = ControlConfig()
    places = placements(arguments.trials)
    cells = []
    with LockstepTwin() as probe:
        limits = Limits.within(probe.calibration, control.max_step, control.max_velocity_per_s)
    with LockstepTwin(limits=limits) as twin:

        def run(play: Callable[[ExpertChunks], Episode]) -> list[Episode]:
            episodes = []
            for seed, placement in enumerate(places):
                twin.reset(placement, seed)
                episodes.append(play(ExpertChunks(twin, size, seed)))
            return episodes

        for latency_ms in LATENCIES_MS:
            latency = math.ceil(latency_ms * FPS / 1000)
            whole = figures(run(lambda c, n=latency: synchronous(twin, c, n, size)), 0)
            half = figures(run(lambda c, n=latency: synchronous(twin, c, n, size // 2)), 0)
            ours = figures(
                run(lambda c, n=latency: asynchronous(twin, c, n, rules)), rules.blend_ticks
            )
            cells.append(
                {
                    "latency_ms": latency_ms,
                    "latency_over_chunk": round(latency / size, 2),
                    "most_moving_ratio": round((size + latency) / size, 2),
                    "may_drive": 2 * latency + rules.blend_ticks + rules.margin_ticks <= size,
                    "lerobot_whole_chunk": whole,
                    "lerobot_half_chunk": half,
                    "armada": ours,
                    "beside_whole_chunk": compare(ours, whole),
                    "beside_half_chunk": compare(ours, half),
                }
            )
            print(json.dumps(cells[-1]), file=sys.stderr, flush=True)
    result = {
        "benchmark": "asynchronous_inference",
        "machine": {"cpus": os.cpu_count()},
        "trials": arguments.trials,
        "chunk": size,
        "rules": vars(rules),
        "bars": BARS,
        "cells": cells,
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
