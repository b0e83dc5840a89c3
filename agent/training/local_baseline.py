"""A policy that this robot trains alone, never federated: what the federation is measured against.

It is trained once for each normaliser, before the first federated work, and exported into the
policy store as ``local``. Checkpoints let it go on after a kill.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from agent.policies.store import LOCAL, PolicyStore
from agent.training.compute import Compute
from agent.training.errors import BadExchangeFile
from agent.training.evaluation import HeldOutEvaluation
from agent.training.local_work import LoadedBase
from agent.training.training_data import TrainingData
from policy.batches import Sampler
from policy.build import Tensors, build_policy, write_weights
from policy.checkpoint import checkpoint_facts, load_checkpoint, save_checkpoint
from policy.errors import BadCheckpoint
from policy.export import export_policy
from policy.release.manifest import MANIFEST_NAME, POLICY_NAME, write_manifest
from policy.train import HeldOut, LocalTraining
from protocol.waiting import Reason, Waiting, waiting

log = logging.getLogger(__name__)

CHECKPOINT_EVERY_S = 10.0
_SAVING_SHARE = 0.05  # of the time, at most
_SAMPLER = "sampler/"


class BaselineState(BaseModel):
    """How far the baseline is; lies beside its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    normalizer_digest: str
    spec_digest: str
    steps: int
    wanted_steps: int
    loss: float | None = None
    done: bool = False
    held_out_mae: float | None = None
    held_out_loss: float | None = None
    held_out_frames: int = 0
    drawn_from: str | None = None
    training: dict[str, int | None] = {}


class LocalBaseline:
    """Trains, checkpoints and exports one never-federated policy."""

    def __init__(
        self,
        folder: Path,
        policies: Path,
        robot_id: str,
        wanted_steps: int,
        clock: Callable[[], float],
        compute: Compute,
        admit: Callable[[Path], None] = lambda _folder: None,
    ) -> None:
        """``admit`` is asked about the exported folder before it becomes ``local``; what it raises
        goes through, and leaves the policy before in its place."""
        self._file = folder / "baseline.safetensors"
        self._export_folder = folder / "baseline.export"
        self._store = PolicyStore(policies)
        self._robot_id = robot_id
        self._wanted_steps = wanted_steps
        self._clock = clock
        self._compute = compute
        self._admit = admit
        self._training: LocalTraining | None = None
        self._evaluation: HeldOutEvaluation | None = None
        self._sampler: Sampler | None = None
        self._stored_sampler: Tensors = {}
        self._losses: deque[float] = deque(maxlen=100)
        self._saved_s = clock()
        self._saving_s = 0.0
        self.state: BaselineState | None = self._read_state()

    @property
    def waiting(self) -> Waiting:
        """How far it is."""
        step = 0 if self.state is None else self.state.steps
        if step < self._wanted_steps:
            return waiting(Reason.STEPS, step=step, steps=self._wanted_steps)
        return waiting(Reason.EXPORTING, steps=self._wanted_steps)

    def is_due(self, base: LoadedBase) -> bool:
        """Whether there is work to do for this base's spec and normaliser."""
        if not self._wanted_steps:
            return False
        done = self.state is not None and self.state.done and self._is_of(base)
        return not (done and (self._store.folder / LOCAL / MANIFEST_NAME).exists())

    def advance(self, base: LoadedBase, data: TrainingData) -> None:
        """One training step, or, after the last one, a slice of evaluation, then the export."""
        if self._training is None or not self._is_of(base):
            self._begin(base)
        assert self._training is not None
        assert self.state is not None
        if self.state.steps < self._wanted_steps:
            self._follow_schedule(base)
            rows = self._sampler_of(base, data).next()
            self._losses.append(self._training.step(data.training.at(rows.tolist())))
            mean = sum(self._losses) / len(self._losses)
            self.state = self.state.model_copy(update={"steps": self.state.steps + 1, "loss": mean})
            pause_s = max(CHECKPOINT_EVERY_S, self._saving_s / _SAVING_SHARE)
            if self._clock() - self._saved_s >= pause_s:
                self._save()
            return
        self._finish(base, data)

    def _sampler_of(self, base: LoadedBase, data: TrainingData) -> Sampler:
        """Its own, so that the fleet's work draws the same whether or not this came first."""
        assert self.state is not None
        if self._sampler is None or self.state.drawn_from != data.drawn_from:
            self._sampler = Sampler(data.training.examples, base.spec.batch_size, seed=0)
            if self._stored_sampler and self.state.drawn_from == data.drawn_from:
                self._sampler.restore(self._stored_sampler)
            self.state = self.state.model_copy(update={"drawn_from": data.drawn_from})
        return self._sampler

    def _follow_schedule(self, base: LoadedBase) -> None:
        """The rate falls as it would in as many federated rounds, or the two are not comparable."""
        assert self._training is not None
        assert self.state is not None
        steps_a_round = base.info.max_local_steps or self._wanted_steps
        if not self._losses or self.state.steps % steps_a_round == 0:
            rounds = self.state.steps // steps_a_round
            self._training.set_rate(base.spec.learning_rate_in(rounds))

    def _is_of(self, base: LoadedBase) -> bool:
        state = self.state
        return state is not None and (state.normalizer_digest, state.spec_digest) == (
            base.normalizer.digest(),
            base.spec.digest(),
        )

    def _begin(self, base: LoadedBase) -> None:
        policy = build_policy(base.spec, base.normalizer, seed=0)
        if base.info.round == 0:  # a later base would bring in what others have learned
            write_weights(policy, base.weights)
        torch.manual_seed(0)
        self._training = self._compute.training(policy, base.spec)
        self._losses.clear()
        self._sampler, self._stored_sampler = None, {}
        stored = self.state if self._is_of(base) and self._file.exists() else None
        self.state = BaselineState(
            normalizer_digest=base.normalizer.digest(),
            spec_digest=base.spec.digest(),
            steps=0 if stored is None else stored.steps,
            wanted_steps=self._wanted_steps,
            drawn_from=None if stored is None else stored.drawn_from,
        )
        if stored is not None:
            tensors, _ = load_checkpoint(self._file)
            self._training.restore(tensors, stored.training, weights=True)
            prefix = len(_SAMPLER)
            self._stored_sampler = {
                name[prefix:]: value for name, value in tensors.items() if name.startswith(_SAMPLER)
            }
        steps = self.state.steps
        log.info("training the local baseline: %d of %d steps done", steps, self._wanted_steps)

    def _finish(self, base: LoadedBase, data: TrainingData) -> None:
        assert self._training is not None
        assert self.state is not None
        policy = self._training.policy
        result = None
        if data.held_out is not None:
            if self._evaluation is None:
                self._evaluation = HeldOutEvaluation(policy, base.spec, base.normalizer, data, {})
            if not self._evaluation.advance():
                return
            result = HeldOut.of(self._evaluation.total())
            self._evaluation = None
        self._export(policy.to("cpu"), base, result)
        self.state = self.state.model_copy(
            update={
                "done": True,
                "held_out_mae": None if result is None else result.action_mae,
                "held_out_loss": None if result is None else result.loss,
                "held_out_frames": 0 if result is None else result.frames,
            }
        )
        self._save()
        self._training = None  # its memory goes back before the federated work

    def _save(self) -> None:
        assert self._training is not None
        assert self.state is not None
        began_s = self._clock()
        tensors, numbers = self._training.state()
        if self._sampler is not None:
            state = self._sampler.state()
            tensors |= {f"{_SAMPLER}{name}": value for name, value in state.items()}
        self.state = self.state.model_copy(update={"training": numbers})
        save_checkpoint(self._file, tensors, self.state.model_dump_json())
        self._saved_s = self._clock()
        self._saving_s = self._saved_s - began_s

    def _read_state(self) -> BaselineState | None:
        try:
            return BaselineState.model_validate_json(checkpoint_facts(self._file))
        except FileNotFoundError:
            return None
        except (BadCheckpoint, ValidationError) as error:
            raise BadExchangeFile(f"{self._file}: damaged, delete it ({error})") from error

    def _export(self, policy: torch.nn.Module, base: LoadedBase, result: HeldOut | None) -> None:
        if self._export_folder.exists():  # an export was killed
            shutil.rmtree(self._export_folder)
        self._export_folder.mkdir(parents=True)
        graph = self._export_folder / POLICY_NAME
        exported = export_policy(policy, base.spec, base.normalizer, graph)
        evaluation: dict[str, Any] = {"steps": self._wanted_steps}
        if result is not None:
            evaluation["held_out"] = {
                self._robot_id: {
                    "action_mae": result.action_mae,
                    "loss": result.loss,
                    "frames": result.frames,
                }
            }
        write_manifest(
            self._export_folder,
            exported.described,
            evaluation=evaluation,
            contributors=(self._robot_id,),
            created_unix_s=time.time(),
        )
        self._admit(self._export_folder)
        self._store.install(self._export_folder, LOCAL)
