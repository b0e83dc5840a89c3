"""A fleet in one process, by the product's own parts: trainer, codec, gate and strategies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.learning.pictures import MemoryBatches
from benchmarks.learning.scene import Data
from coordinator.campaign.reply import ContributionReply
from coordinator.config import AnyStrategy
from coordinator.federation.gate import Received, Standing, judge
from coordinator.federation.orders import GateConfig
from coordinator.federation.strategies import aggregate
from policy.build import build_policy, read_weights, write_weights
from policy.spec import PolicySpec
from policy.statistics import Normalizer
from policy.train import LocalTraining
from policy.weights import Weights, subtract, weights_digest
from protocol.eligibility import Terms
from protocol.update import decode_update, encode_update


@dataclass(frozen=True)
class Plan:
    """How a fleet learns. ``malicious``: what the last robot's delta is multiplied by, if any.

    ``busy``: chance that a robot has no time for a window. ``joins_at``: window from which the last
    robot takes part. ``int8``: deltas travel in eight bits, a scale for each tensor.
    """

    strategy: AnyStrategy
    rounds: int
    steps: int
    busy: float = 0.0
    malicious: float | None = None
    joins_at: int = 0
    int8: bool = False
    fresh_optimizer: bool = False


class _Seen(torch.nn.Module):
    """In place of a frozen trunk: what it said is in the batch already."""

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"feature_map": features}


class Robot:
    """One robot's trainer and data; the optimiser's memory outlives a base.

    A frozen trunk looks at each picture once: what it says of it never changes.
    """

    def __init__(
        self, data: Sequence[Data], spec: PolicySpec, scale: Normalizer, seed: int
    ) -> None:
        self.spec = spec
        self.policy = build_policy(spec, scale, 0)
        self._training = LocalTraining(self.policy, spec)
        self._batches = MemoryBatches(data, spec, scale, seed)
        if spec.cameras and not any("backbone" in name for name in read_weights(self.policy)):
            self._batches.look_once(self.policy.model.backbone)
            self.policy.model.backbone = _Seen()

    def work(
        self, base: Weights, number: int, steps: int, mu: float, *, fresh: bool = False
    ) -> tuple[Weights, float]:
        """Train from ``base``; the new weights and the mean loss."""
        write_weights(self.policy, base)
        if fresh:
            self._training.reset_optimizer()
        self._training.set_rate(self.spec.learning_rate_in(number))
        self._training.set_proximal(base, mu)
        losses = [self._training.step(self._batches.draw()) for _ in range(steps)]
        return read_weights(self.policy), float(np.mean(losses))


def alone(
    data: Sequence[Data], spec: PolicySpec, scale: Normalizer, rounds: int, steps: int, seed: int
) -> torch.nn.Module:
    """Trained on ``data`` by one trainer, with the fleet's first weights and falling rate."""
    robot = Robot(data, spec, scale, seed)
    weights = read_weights(build_policy(spec, scale, seed))
    for number in range(rounds):
        weights, _ = robot.work(weights, number, steps, 0.0)
    policy = build_policy(spec, scale, seed)
    write_weights(policy, weights)
    return policy


def federated(
    data: Sequence[Data], spec: PolicySpec, scale: Normalizer, plan: Plan, seed: int
) -> tuple[torch.nn.Module, list[float], int]:
    """The last base as a policy, mean training loss by round, bytes that left all robots."""
    robots = [Robot([each], spec, scale, 10 * seed + k) for k, each in enumerate(data)]
    policy = build_policy(spec, scale, seed)
    base, memory = read_weights(policy), {}
    random = np.random.default_rng(seed)
    losses, sent = [], 0
    for number in range(plan.rounds):
        received, heard = [], []
        idle = random.random(len(robots)) >= plan.busy
        for index, robot in enumerate(robots):
            last = index == len(robots) - 1
            if not idle[index] or (last and number < plan.joins_at):
                continue
            weights, loss = robot.work(
                base, number, plan.steps, plan.strategy.proximal_mu, fresh=plan.fresh_optimizer
            )
            delta = subtract(weights, base)
            if last and plan.malicious is not None:
                delta = {name: np.float32(plan.malicious) * v for name, v in delta.items()}
            else:
                heard.append(loss)
            if plan.int8:
                delta = {name: _through_int8(value) for name, value in delta.items()}
            message = encode_update(delta, precision="float32" if plan.int8 else "float16")
            sent += sum(v.size for v in delta.values()) if plan.int8 else len(message)
            reply = ContributionReply(
                agent_id=f"arm-{index + 1}", accepted=False, base_digest=weights_digest(base),
                base_round=number, steps=plan.steps, examples=len(data[index].episode),
                loss=loss, window_id=None, sequence=number,
            )  # fmt: skip
            received.append(Received(reply, decode_update(message).weights))
        losses.append(float(np.mean(heard)) if heard else float("nan"))
        standing = Standing(base, Terms(bases=(weights_digest(base),)), {})
        accepted = [one for one in judge(received, standing, GateConfig()) if one.reply.accepted]
        if len(accepted) >= max(plan.strategy.min_replies, 1):
            base, memory = aggregate(plan.strategy, base, accepted, number, memory)
    write_weights(policy, base)
    return policy, losses, sent


def _through_int8(value: np.ndarray) -> np.ndarray:
    scale = float(np.abs(value).max()) / 127.0 if value.size else 0.0
    if scale == 0.0:
        return value
    return np.asarray(np.rint(value / scale) * scale, np.float32)
