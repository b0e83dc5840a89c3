"""One arm alone: a policy of this robot's own episodes, ordered by `armada train --local`.

It is the local baseline without a coordinator: base, normaliser and description are this robot's
own. Each order has a folder, `training/local/<order>/`, with the base it began from and the
checkpoint; so a killed trainer goes on, also when episodes were recorded meanwhile. The finished
policy is qualified, and becomes `local` in the policy store only if it may drive this robot.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from agent.config import AgentConfig
from agent.policies.errors import PolicyRefused
from agent.policies.qualification import qualify
from agent.recording.journal import FINISHED
from agent.training.compute import Compute
from agent.training.errors import BadExchangeFile
from agent.training.exchange import (
    BaseInfo,
    LocalOrder,
    LocalProgress,
    TrainingExchange,
    TrainingProgress,
)
from agent.training.local_baseline import LocalBaseline
from agent.training.local_work import LoadedBase
from agent.training.training_data import DatasetSource, TrainingData
from host.files import FileStamp
from policy.build import build_policy, read_weights
from policy.errors import PolicyError
from policy.statistics import Normalizer, Sketch
from policy.weights import weights_digest
from protocol.waiting import Reason, Waiting, waiting

log = logging.getLogger(__name__)

IDLE_S = 0.5
# An episode that ingest cannot take does not hold up training for longer.
INGEST_PATIENCE_S = 120.0
RATE_STEPS = 12  # the rate falls by the policy's round_decay in so many equal parts of the work


class LocalPolicy:
    """Obeys the order in force, a step a turn; see the module."""

    def __init__(
        self,
        config: AgentConfig,
        config_path: Path,
        clock: Callable[[], float],
        compute: Compute,
        source: DatasetSource,
    ) -> None:
        self._config = config
        self._config_path = config_path
        self._clock = clock
        self._exchange = TrainingExchange(config.training_dir)
        self._folder = config.training_dir / "local"
        self._compute = compute
        self._source = source
        self._stamp: FileStamp | None = None
        self._order: LocalOrder | None = None
        self._base: LoadedBase | None = None
        self._baseline: LocalBaseline | None = None
        self._noted: Path | None = None  # the dataset whose episodes are on record as trained on
        self._began_s = 0.0
        before = self._exchange.progress()
        self.progress: LocalProgress | None = None if before is None else before.local
        self.waiting: Waiting = waiting(Reason.NO_ORDER)

    def ordered(self) -> bool:
        """Whether an order is in force."""
        stamp = self._exchange.local_order_stamp()
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._take(self._exchange.local_order())
            except BadExchangeFile as error:
                log.warning("the order is ignored, give it again: %s", error)
                self._take(None)
        return self._order is not None

    def turn(self) -> float:
        """The next piece of the work; for how many seconds there is nothing to do."""
        order = self._order
        assert order is not None
        try:
            ready = self._prepare(order)
            if ready is None:
                self._report(order, "waiting")
                return IDLE_S
            base, data, baseline = ready
            preparing = data.pictures.prepare()
            if preparing is not None:
                have, need = preparing
                self.waiting = waiting(Reason.PREPARING, have=have, need=need)
                self._report(order, "waiting")
                return 0.0
            if baseline.is_due(base):
                if self._noted != data.version:
                    self._exchange.note_trained(data.trained)
                    self._noted = data.version
                baseline.advance(base, data)
                self.waiting = baseline.waiting
                self._report(order, "training")
                return 0.0
            self._report(order, "ready")
        except (PolicyError, PolicyRefused) as error:
            log.warning("the local policy is refused: %s", error)
            self._report(order, "refused", str(error))
        self._finish()
        return IDLE_S

    def _take(self, order: LocalOrder | None) -> None:
        self._order, self._base, self._baseline = order, None, None
        self._began_s = self._clock()
        if order is None:
            return
        self.waiting = waiting(Reason.NO_EPISODES)
        for other in self._folder.glob("*"):
            if other.name != order.order_id:
                shutil.rmtree(other)
        self._baseline = LocalBaseline(
            self._folder / order.order_id,
            self._config.policies_dir,
            self._config.robot.id,
            order.steps,
            self._clock,
            self._compute,
            self._admit,
        )

    def _prepare(self, order: LocalOrder) -> tuple[LoadedBase, TrainingData, LocalBaseline] | None:
        """What to train from and on, or None with the reason set. Raises PolicyError."""
        assert self._baseline is not None
        if self._base is None:
            found = TrainingExchange(self._folder / order.order_id).base()
            base = LoadedBase.read(*found) if found is not None else self._own_base(order)
            if base is None:
                return None
            self._base = base
        data = self._source.newest(self._base.spec, self._base.normalizer)
        if data is None:
            self.waiting = self._source.waiting
            return None
        return self._base, data, self._baseline

    def _own_base(self, order: LocalOrder) -> LoadedBase | None:
        """Untrained weights and this robot's own statistics, once all its episodes are there."""
        spec = self._config.own_policy()
        still = len(list(self._config.journal_dir.glob(f"*{FINISHED}")))
        if still and self._clock() - self._began_s < INGEST_PATIENCE_S:
            self.waiting = waiting(Reason.INGESTING, count=still)
            return None
        sketch = self._exchange.sketch()
        if sketch is None:
            self.waiting = waiting(Reason.NO_EPISODES)
            return None
        normalizer = Normalizer.from_sketches([Sketch.from_json(sketch)])
        if self._source.newest(spec, normalizer) is None:
            self.waiting = self._source.waiting
            return None
        weights = read_weights(build_policy(spec, normalizer, seed=0))
        info = BaseInfo(
            digest=weights_digest(weights),
            round=0,
            spec=spec.to_json(),
            normalizer=normalizer.to_json(),
            normalizer_digest=normalizer.digest(),
            max_local_steps=max(1, order.steps // RATE_STEPS),
        )
        TrainingExchange(self._folder / order.order_id).install_base(weights, info)
        return LoadedBase(info, weights, spec, normalizer)

    def _admit(self, folder: Path) -> None:
        """Raises PolicyRefused when this robot must not be driven by it."""
        verdict = qualify(folder, self._config_path)
        if not verdict.ok:
            raise PolicyRefused("; ".join(verdict.reasons))

    def _report(self, order: LocalOrder, state: str, refusal: str | None = None) -> None:
        done = None if self._baseline is None else self._baseline.state
        self.progress = LocalProgress.model_validate(
            {
                "order_id": order.order_id,
                "state": state,
                "step": 0 if done is None else done.steps,
                "steps": order.steps,
                "loss": None if done is None else done.loss,
                "held_out_mae": None if done is None else done.held_out_mae,
                "refusal": refusal,
            }
        )

    def _finish(self) -> None:
        """The progress that says so first: an order that is gone without it would be forgotten."""
        before = self._exchange.progress() or TrainingProgress()
        said = {"local": self.progress, "waiting": None}
        self._exchange.publish_progress(before.model_copy(update=said))
        self._exchange.clear_local_order()
        shutil.rmtree(self._folder)
        self._stamp = self._exchange.local_order_stamp()
        self._take(None)
        self.waiting = waiting(Reason.NO_ORDER)
