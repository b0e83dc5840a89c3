"""What the trainer does next: one small piece of work at a time, between which it looks around.

Order of precedence: what the operator ordered (``armada train --local``); decode pictures; evaluate
a new base; train the never-federated baseline if one is wanted; obey a window's work order; work
ahead (``local_work = "anytime"``) up to the base's cap; rest.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path

import torch

from agent.config import AgentConfig
from agent.training.compute import Compute
from agent.training.demonstrations import Demonstrations
from agent.training.errors import BadExchangeFile
from agent.training.evaluation import HeldOutEvaluation, KnownErrors
from agent.training.exchange import (
    TrainingExchange,
    TrainingProgress,
    WorkOrder,
)
from agent.training.local_baseline import LocalBaseline
from agent.training.local_policy import LocalPolicy
from agent.training.local_work import LoadedBase, LocalWork
from agent.training.training_data import DatasetSource, TrainingData
from host.files import FileStamp
from policy.build import build_policy, write_weights
from policy.errors import BadDataset, PolicyError, TooLittleMemory
from policy.frame_cache import FrameCache
from protocol.waiting import Reason, Waiting, waiting

log = logging.getLogger(__name__)

IDLE_S = 0.1
LOOK_AT_DATA_EVERY_S = 1.0
PROGRESS_EVERY_S = 1.0


class TrainingScheduler:
    """One robot's training. ``turn`` is called again and again; it never waits."""

    def __init__(
        self,
        config: AgentConfig,
        config_path: Path,
        clock: Callable[[], float],
        unix_clock: Callable[[], float],
        compute: Compute | None = None,
    ) -> None:
        training = config.training
        self._compute = compute or Compute()
        self._exchange = TrainingExchange(config.training_dir)
        self._source = DatasetSource(
            config.dataset_dir,
            Demonstrations.configured(training),
            training.min_episodes,
            FrameCache(
                config.training_dir / "pictures",
                int(training.cache_gb * 1e9),
                config.recording.min_free_mb << 21,  # twice what recording wants left
            ),
            self._compute.device,
        )
        self._known_errors = KnownErrors(config.training_dir / "evaluations.json")
        self._baseline = LocalBaseline(
            config.training_dir,
            config.policies_dir,
            config.robot.id,
            training.baseline_steps,
            clock,
            self._compute,
        )
        self._local = LocalPolicy(config, config_path, clock, self._compute, self._source)
        self._anytime = config.federation is None or config.federation.local_work == "anytime"
        self._publish_every_s = training.publish_every_s
        self._clock, self._unix_clock = clock, unix_clock

        self._base: LoadedBase | None = None
        self._base_stamp: FileStamp | None = None
        self._order: WorkOrder | None = None
        self._order_stamp: FileStamp | None = None
        self._work: LocalWork | None = None
        self._judge: torch.nn.Module | None = None
        self._baseline_due = False
        self._data: TrainingData | None = None
        self._evaluated: tuple[str, TrainingData] | None = None
        self._evaluation: HeldOutEvaluation | None = None
        self._noted: Path | None = None  # version of the dataset whose episodes are noted
        self._looked_at_data_s = float("-inf")
        self._published_progress_s = float("-inf")
        before = self._exchange.progress() or TrainingProgress()
        self._steps_total, self._examples_total = before.steps_total, before.examples_total
        self._no_base = waiting(Reason.NO_ORDER if config.federation is None else Reason.NO_BASE)
        self._hindrance: Waiting | None = (
            None  # why this base cannot be worked on with these episodes
        )
        self.phase = "waiting"
        self.waiting: Waiting | None = self._no_base

    def turn(self) -> float:
        """Do the next piece of work; returns for how many seconds there is nothing to do."""
        self._look_for_base()
        self._look_for_order()
        idle_s = self._do_local() if self._local.ordered() else self._do_next()
        self._publish_progress_if_due()
        return idle_s

    def progress(self) -> TrainingProgress:
        """Where training stands."""
        work, baseline = self._work, self._baseline.state
        return TrainingProgress(
            steps_total=self._steps_total,
            examples_total=self._examples_total,
            base_digest=None if self._base is None else self._base.info.digest,
            base_round=None if self._base is None else self._base.info.round,
            steps_since_base=0 if work is None else work.steps,
            loss=None if work is None else work.loss,
            phase=self.phase,
            waiting=self.waiting,
            local=self._local.progress,
            baseline=None if baseline is None else baseline.model_dump(),
        )

    def _do_next(self) -> float:
        base = self._base
        if base is None:
            return self._idle("waiting", self._no_base)
        data = self._look_for_data(base)
        if data is None:
            return self._idle("waiting", self._source.waiting)
        try:
            return self._work_on(base, data)
        except (TooLittleMemory, BadDataset) as error:
            log.warning("%s", error)
            self._hindrance = waiting(Reason.HINDERED, why=str(error))
            return IDLE_S

    def _work_on(self, base: LoadedBase, data: TrainingData) -> float:
        if self._hindrance is not None:
            return self._idle("waiting", self._hindrance)
        preparing = data.pictures.prepare()
        if preparing is not None:
            have, need = preparing
            self._set_phase("preparing", waiting(Reason.PREPARING, have=have, need=need))
            return 0.0
        if self._evaluated is None or self._evaluated != (base.info.digest, data):
            self._evaluate(base, data)
            return 0.0
        if self._baseline_due:
            self._baseline.advance(base, data)
            self._set_phase("baseline", self._baseline.waiting)
            self._baseline_due = self._baseline.is_due(base)
            return 0.0
        return self._train(base, data)

    def _train(self, base: LoadedBase, data: TrainingData) -> float:
        work = self._work
        assert work is not None
        order = self._order
        if order is not None and order.base_digest == base.info.digest:
            if work.window_id != order.window_id:
                work.start_window(order.window_id, order.proximal_mu)
            if self._unix_clock() >= order.deadline_unix_s:
                window = order.window_id[:8]
                return self._rest(work, waiting(Reason.WINDOW_OVER, window=window))
            limit: int | None = order.steps
            enough = waiting(Reason.WINDOW_DONE, window=order.window_id[:8], steps=order.steps)
        elif not self._anytime:
            return self._rest(work, waiting(Reason.NO_WORK_ORDER))
        else:
            if work.window_id is not None:
                work.end_window()
            limit = base.info.max_local_steps
            enough = waiting(Reason.ENOUGH_STEPS, steps=limit or 0)
        if limit is not None and work.steps - work.carried_steps >= limit:
            return self._rest(work, enough)
        if self._noted != data.version:
            self._exchange.note_trained(data.trained)
            self._noted = data.version
        before = work.steps
        work.step(data)
        gained = max(0, work.steps - before)
        self._steps_total += gained
        self._examples_total += gained * base.spec.batch_size
        made = work.steps - work.carried_steps
        how_far = None if limit is None else waiting(Reason.STEPS, step=made, steps=limit)
        self._set_phase("training", how_far)
        done = limit is not None and made >= limit
        work.publish_if_due(self._publish_every_s, at_once=done)
        return 0.0

    def _do_local(self) -> float:
        idle_s = self._local.turn()
        self._set_phase("local", self._local.waiting)
        return idle_s

    def _rest(self, work: LocalWork, enough: Waiting) -> float:
        work.publish_if_due(self._publish_every_s, at_once=True)
        return self._idle("resting", enough)

    def _evaluate(self, base: LoadedBase, data: TrainingData) -> None:
        """A slice of the held-out error of the base itself, before any step is made from it."""
        if data.held_out is None or data.episodes is None:
            self._evaluated = (base.info.digest, data)
            return
        policy = f"{base.info.digest} {base.spec.digest()} {base.normalizer.digest()}"
        if self._evaluation is None:
            assert self._judge is not None
            write_weights(self._judge, base.weights)
            known = self._known_errors.of(policy)
            self._evaluation = HeldOutEvaluation(
                self._judge, base.spec, base.normalizer, data, known
            )
        evaluation, before = self._evaluation, len(self._evaluation.errors)
        done, judged = evaluation.advance(), len(evaluation.errors)
        need = len(data.episodes.digests)
        self._set_phase("evaluating", waiting(Reason.EVALUATING, have=judged, need=need))
        if judged > before:
            self._known_errors.keep(policy, evaluation.errors)
        if not done:
            return
        self._evaluation, self._evaluated = None, (base.info.digest, data)
        total = evaluation.total()
        if not (math.isfinite(total.raw) and math.isfinite(total.loss)):
            log.warning("base %s is not reported: its error is no number", base.info.digest[:12])
            return
        self._exchange.publish_held_out(
            base.info.digest,
            data.episodes.report(evaluation.errors, base.info.round, base.info.fleet_secret),
        )

    def _look_for_base(self) -> None:
        stamp = self._exchange.base_stamp()
        if stamp == self._base_stamp:
            return
        self._base_stamp = stamp
        try:
            found = self._exchange.base()
            if found is not None:
                self._take_base(LoadedBase.read(*found))
        except (BadExchangeFile, PolicyError) as error:
            log.warning("base refused: %s", error)
            self._base, self._no_base = None, waiting(Reason.BASE_REFUSED, why=str(error))

    def _take_base(self, base: LoadedBase) -> None:
        old = self._base
        if self._work is None or old is None or not old.same_policy(base):
            self._work = LocalWork(
                self._exchange, base.spec, base.normalizer, self._clock, self._compute
            )
            # A second policy: the base is judged as it came, whatever was trained since.
            judge = build_policy(base.spec, base.normalizer, seed=0)
            self._judge = judge.to(self._compute.device)
        self._work.start_from(base)
        self._base, self._evaluation, self._hindrance = base, None, None
        self._baseline_due = self._baseline.is_due(base)
        self._looked_at_data_s = float("-inf")
        log.info("base %s of round %d", base.info.digest[:12], base.info.round)

    def _look_for_order(self) -> None:
        stamp = self._exchange.order_stamp()
        if stamp == self._order_stamp:
            return
        self._order_stamp = stamp
        try:
            self._order = self._exchange.work_order()
        except BadExchangeFile as error:
            log.warning("work order ignored: %s", error)
            self._order = None

    def _look_for_data(self, base: LoadedBase) -> TrainingData | None:
        if self._clock() - self._looked_at_data_s >= LOOK_AT_DATA_EVERY_S:
            self._looked_at_data_s = self._clock()
            data = self._source.newest(base.spec, base.normalizer)
            if data is not self._data:
                self._data, self._evaluation, self._hindrance = data, None, None
        return self._data

    def _idle(self, phase: str, reason: Waiting) -> float:
        self._set_phase(phase, reason)
        return IDLE_S

    def _set_phase(self, phase: str, reason: Waiting | None) -> None:
        before = None if self.waiting is None else self.waiting.reason
        if (phase, None if reason is None else reason.reason) != (self.phase, before):
            self._published_progress_s = float("-inf")  # a step more is told in its time
        self.phase, self.waiting = phase, reason

    def _publish_progress_if_due(self) -> None:
        if self._clock() - self._published_progress_s >= PROGRESS_EVERY_S:
            self._published_progress_s = self._clock()
            self._exchange.publish_progress(self.progress())
