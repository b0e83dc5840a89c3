"""Training from one base: what was gained, how it is published, how it is taken up after a kill."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from agent.training.compute import Compute
from agent.training.exchange import BaseInfo, TrainingExchange
from agent.training.training_data import TrainingData
from policy.build import Tensors, build_policy, read_weights, write_weights
from policy.checkpoint import checkpoint_facts, load_checkpoint, save_checkpoint
from policy.errors import BadCheckpoint
from policy.spec import PolicySpec
from policy.statistics import Normalizer
from policy.weights import Weights, add, scale, schema_digest, subtract
from protocol.contribution import MAX_LOSS, Contribution

log = logging.getLogger(__name__)

_SEED = 0  # of weights that are overwritten by a base at once
_SAVING_SHARE = 0.05  # of the time, at most
CHECKPOINT = "checkpoint.safetensors"
_SAMPLER = "sampler/"


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


class _Facts(BaseModel):
    """What a checkpoint's tensors are of. Losses are of the steps since the last snapshot."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_digest: str
    window_id: str | None
    steps: int
    carried_steps: int
    frames: int
    losses: tuple[float, ...]
    loss: float | None
    drawn_from: str | None
    training: dict[str, int | None]


class LocalWork:
    """The policy in training and its distance from the base.

    Beside each contribution that is published, and before it, lies a checkpoint. A trainer that was
    killed goes on from there and comes to the very same weights as if it had not been (on the CPU,
    with the same episodes). What was gained on an older base and not merged goes into a new one.
    """

    def __init__(
        self,
        exchange: TrainingExchange,
        spec: PolicySpec,
        normalizer: Normalizer,
        clock: Callable[[], float],
        compute: Compute,
    ) -> None:
        self.exchange = exchange
        self.spec = spec
        self.policy = build_policy(spec, normalizer, _SEED)
        self.window_id: str | None = None
        self.steps = 0
        self.carried_steps = 0  # of them, those made on older bases
        self.loss: float | None = None
        self._clock = clock
        self._training = compute.training(self.policy, spec)
        self._checkpoint = exchange.folder / CHECKPOINT
        self._identity = f"{spec.digest()} {normalizer.digest()}"
        self._base: Weights = {}
        self._frames = 0
        self._losses: list[float] = []
        self._published_steps = 0
        self._published_s = clock()
        self._saving_s = 0.0
        self._mu = 0.0
        self._first_step = True
        self._drawn_from: str | None = None
        self._data: TrainingData | None = None
        self._sampler: Tensors | None = None  # to go on from, once the episodes are there
        self._take_up_optimizer()
        last = exchange.contribution_info()
        self._sequence = 0 if last is None else last.sequence + 1

    def start_from(self, base: LoadedBase) -> None:
        """Take a base: the optimiser's memory stays, and so does what was not merged.

        Raises BadWeights when it does not fit.
        """
        info = base.info
        if self._base and self.window_id is None:
            self.publish_if_due(0.0, at_once=True)
        carried = self._unmerged(base)
        write_weights(self.policy, base.weights)
        self.info, self._base = info, base.weights
        self._training.set_rate(self.spec.learning_rate_in(info.round))
        self._begin(None, info.proximal_mu)
        if not self._take_up() and carried is not None:
            self._carry(*carried)

    def start_window(self, window_id: str, proximal_mu: float) -> None:
        """Begin a synchronous round's work from the base, or take up the one that was begun."""
        write_weights(self.policy, self._base)
        self._begin(window_id, proximal_mu)
        self._take_up()

    def end_window(self) -> None:
        """Go on from here without a window."""
        self.window_id = None
        self._training.set_proximal(self._base, self.info.proximal_mu)

    def step(self, data: TrainingData) -> None:
        """One optimiser step. A loss that is no number sends the work back to the base."""
        batches = data.training
        if self._sampler is not None and self._drawn_from == data.drawn_from:
            batches.sampler.restore(self._sampler)
        self._sampler, self._drawn_from, self._data = None, data.drawn_from, data
        if self._first_step:
            # What is random in the steps follows from the base, in whichever process they are made.
            torch.manual_seed(int(self.info.digest[:8], 16))
            self._first_step = False
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
        """Publish a snapshot when its time has come and there is something new in it.

        Large ones come seldom: writing takes a twentieth of the time.
        """
        if self.steps == self._published_steps:
            return False
        began_s = self._clock()
        if not at_once and began_s - self._published_s < max(
            every_s, self._saving_s / _SAVING_SHARE
        ):
            return False
        self._save()
        if self._losses:
            self.loss = sum(self._losses) / len(self._losses)
        self._publish()
        self._saving_s = self._clock() - began_s
        return True

    def _publish(self) -> None:
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
        self._published_steps, self._published_s = self.steps, self._clock()

    def _begin(self, window_id: str | None, proximal_mu: float) -> None:
        self._mu = proximal_mu
        self._training.set_proximal(self._base, proximal_mu)
        self.window_id = window_id
        self.steps = self.carried_steps = self._frames = self._published_steps = 0
        self._losses.clear()
        self._published_s = self._clock()
        self._first_step = True

    # --- a new base: what the old one's work gained and nobody has yet ---

    def _unmerged(self, base: LoadedBase) -> tuple[Weights, Contribution] | None:
        """The gain since the last hand-over that was merged, as a contribution to no base."""
        facts, found = self._stored_facts(), self.exchange.contribution()
        if facts is None or found is None or found[0].window_id is not None:
            return None
        meta, gained = found
        # The checkpoint tells that it was this policy, with this normaliser.
        if meta.base_digest == base.info.digest or meta.base_digest != facts.base_digest:
            return None
        merged, handed = self.exchange.merged(), self.exchange.handed_over()
        if merged is not None and merged.base_digest == meta.base_digest:
            if handed is None or handed[0].base_digest != meta.base_digest:
                return None  # it is not known what was merged: nothing is added twice
            steps = max(0, meta.steps - handed[0].steps)
            examples = min(meta.examples, steps * self.spec.batch_size)
            meta = meta.model_copy(update={"steps": steps, "examples": examples})
            gained = subtract(gained, handed[1])
        return (gained, meta) if meta.steps else None

    def _carry(self, gained: Weights, meta: Contribution) -> None:
        """Add it to the base, less the older it is: as a stale contribution would weigh."""
        older = max(0, self.info.round - meta.base_round - 1)
        write_weights(self.policy, add(self._base, scale(gained, 1.0 / math.sqrt(1.0 + older))))
        self.steps = self.carried_steps = meta.steps
        self._frames, self.loss = meta.examples, meta.loss
        log.info("%d steps since base %s go into the new one", meta.steps, meta.base_digest[:12])
        self._save()
        self._publish()

    # --- after a kill ---

    def _take_up(self) -> bool:
        """From the checkpoint, or, without one of this work, from the contribution."""
        facts = self._stored_facts()
        if facts is not None and self._is_of_this_work(facts):
            tensors = self._stored_tensors()
            self._training.restore(tensors, facts.training, weights=True)
            prefix = len(_SAMPLER)
            sampler = {k[prefix:]: v for k, v in tensors.items() if k.startswith(_SAMPLER)}
            self._sampler, self._drawn_from = sampler or None, facts.drawn_from
            self._first_step = False
            self.steps = self._published_steps = facts.steps
            self.carried_steps = facts.carried_steps
            self._frames, self.loss = facts.frames, facts.loss
            self._losses = list(facts.losses)
            log.info("going on from %d steps since base %s", self.steps, self.info.digest[:12])
            return True
        last = self.exchange.contribution_info()
        found = self.exchange.contribution() if last and self._is_of_this_work(last) else None
        if found is None or schema_digest(found[1]) != schema_digest(self._base):
            return False
        meta, delta = found
        write_weights(self.policy, add(self._base, delta))
        self.steps = self._published_steps = meta.steps
        self._frames, self.loss = meta.examples, meta.loss
        log.info("from the contribution: %d steps since base %s", meta.steps, meta.base_digest[:12])
        return True

    def _is_of_this_work(self, other: _Facts | Contribution) -> bool:
        return (other.base_digest, other.window_id) == (self.info.digest, self.window_id)

    def _take_up_optimizer(self) -> None:
        """Whatever the base is now: the moments of the gradients outlive it."""
        facts = self._stored_facts()
        if facts is not None:
            self._training.restore(self._stored_tensors(), facts.training, weights=False)

    def _stored_facts(self) -> _Facts | None:
        """Of the checkpoint, if it is one of this policy; no tensor is read."""
        try:
            identity, _, facts = checkpoint_facts(self._checkpoint).partition("\n")
            return _Facts.model_validate_json(facts) if identity == self._identity else None
        except FileNotFoundError:
            return None
        except (BadCheckpoint, ValidationError) as error:
            log.warning("checkpoint not used: %s", error)
            return None

    def _stored_tensors(self) -> Tensors:
        return load_checkpoint(self._checkpoint)[0]

    def _save(self) -> None:
        tensors, numbers = self._training.state()
        if self._data is not None:
            state = self._data.training.sampler.state()
            tensors |= {f"{_SAMPLER}{name}": value for name, value in state.items()}
        facts = _Facts(
            base_digest=self.info.digest,
            window_id=self.window_id,
            steps=self.steps,
            carried_steps=self.carried_steps,
            frames=self._frames,
            losses=tuple(self._losses),
            loss=self.loss,
            drawn_from=None if self._data is None else self._data.drawn_from,
            training=numbers,
        )
        save_checkpoint(self._checkpoint, tensors, f"{self._identity}\n{facts.model_dump_json()}")
