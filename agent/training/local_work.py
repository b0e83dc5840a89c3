"""Training from one base: what was gained, how it is published, how it is taken up after a kill."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from agent.training.exchange import BaseInfo, TrainingExchange
from policy.batches import Batches
from policy.build import build_policy, read_weights, write_weights
from policy.spec import PolicySpec
from policy.statistics import Normalizer
from policy.train import LocalTraining
from policy.weights import Weights, add, schema_digest, subtract
from protocol.contribution import MAX_LOSS, Contribution

log = logging.getLogger(__name__)

_SEED = 0  # of weights that are overwritten by a base at once


@dataclass(frozen=True)
class LoadedBase:
    """A base with its descriptions read."""

    info: BaseInfo
    weights: Weights
    spec: PolicySpec
    normalizer: Normalizer

    @classmethod
    def read(cls, info: BaseInfo, weights: Weights) -> Self:
        """Raises BadSpec, BadStatistics."""
        spec, normalizer = PolicySpec.from_json(info.spec), Normalizer.from_json(info.normalizer)
        return cls(info, weights, spec, normalizer)

    def same_policy(self, other: LoadedBase) -> bool:
        """Whether both are weights of one policy with one normaliser."""
        return (self.spec, self.normalizer) == (other.spec, other.normalizer)


@dataclass
class LocalWork:
    """The policy in training and its distance from the base.

    The published contribution is also the checkpoint: after a kill, work goes on from base plus
    contribution. What was done since the last snapshot is lost, no more.
    """

    exchange: TrainingExchange
    spec: PolicySpec
    normalizer: Normalizer
    clock: Callable[[], float]
    info: BaseInfo = field(init=False)
    steps: int = field(init=False, default=0)
    window_id: str | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.policy = build_policy(self.spec, self.normalizer, _SEED)
        self._training = LocalTraining(self.policy, self.spec)
        self._base: Weights = {}
        self._frames = 0
        self._losses: list[float] = []
        self._published_steps = 0
        self._published_s = self.clock()
        last = self.exchange.contribution_info()
        self._sequence = 0 if last is None else last.sequence + 1
        self.loss: float | None = None

    def start_from(self, base: LoadedBase) -> None:
        """Take a base: the optimiser's memory stays. Raises BadWeights when it does not fit."""
        write_weights(self.policy, base.weights)
        info = base.info
        self.info, self._base = info, base.weights
        self._training.set_rate(self.spec.learning_rate_in(info.round))
        self._begin(None, info.proximal_mu)
        last = self.exchange.contribution_info()
        if last is not None and last.base_digest == info.digest and last.window_id is None:
            self._take_up()

    def start_window(self, window_id: str, proximal_mu: float) -> None:
        """Begin a synchronous round's work from the base, or take up the one that was begun."""
        write_weights(self.policy, self._base)
        self._begin(window_id, proximal_mu)
        last = self.exchange.contribution_info()
        if last is not None and (last.base_digest, last.window_id) == (self.info.digest, window_id):
            self._take_up()

    def end_window(self) -> None:
        """Go on from here without a window."""
        self.window_id = None
        self._training.set_proximal(self._base, self.info.proximal_mu)

    def step(self, batches: Batches) -> None:
        """One optimiser step. A loss that is no number sends the work back to the base."""
        batch = batches.draw()
        loss = self._training.step(batch)
        if not math.isfinite(loss):
            log.warning("the loss is %s after %d steps: back to the base", loss, self.steps)
            write_weights(self.policy, self._base)
            self._training.reset_optimizer()
            self._begin(self.window_id, self._mu)
            return
        self.steps += 1
        self._frames = min(self._frames + batch["action"].shape[0], batches.examples)
        self._losses.append(loss)

    def publish_if_due(self, every_s: float, *, at_once: bool = False) -> bool:
        """Publish a snapshot when its time has come and there is something new in it."""
        if self.steps == self._published_steps:
            return False
        if not at_once and self.clock() - self._published_s < every_s:
            return False
        if self._losses:
            self.loss = sum(self._losses) / len(self._losses)
        meta = Contribution(
            base_digest=self.info.digest,
            base_round=self.info.round,
            steps=self.steps,
            examples=self._frames,
            loss=None if self.loss is None else max(-MAX_LOSS, min(self.loss, MAX_LOSS)),
            window_id=self.window_id,
            sequence=self._sequence,
        )
        self.exchange.publish_contribution(subtract(read_weights(self.policy), self._base), meta)
        self._losses.clear()
        self._sequence += 1
        self._published_steps, self._published_s = self.steps, self.clock()
        return True

    def _begin(self, window_id: str | None, proximal_mu: float) -> None:
        self._mu = proximal_mu
        self._training.set_proximal(self._base, proximal_mu)
        self.window_id = window_id
        self.steps = self._frames = self._published_steps = 0
        self._losses.clear()
        self._published_s = self.clock()

    def _take_up(self) -> None:
        found = self.exchange.contribution()
        if found is None or schema_digest(found[1]) != schema_digest(self._base):
            return
        meta, delta = found
        write_weights(self.policy, add(self._base, delta))
        self.steps = self._published_steps = meta.steps
        self._frames, self.loss = meta.examples, meta.loss
        log.info("going on from %d steps since base %s", meta.steps, meta.base_digest[:12])
