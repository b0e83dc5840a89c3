"""One optimiser step, and the error on episodes that were never trained on."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch

from policy.batches import PADDING
from policy.build import Tensors, build_config, trainable_parameters
from policy.device import is_out_of_memory
from policy.errors import BadCheckpoint, BadWeights, NoEpisodes, TooLittleMemory
from policy.kinds import kind_of
from policy.spec import ACTION, PolicySpec
from policy.statistics import Normalizer
from policy.weights import Array

log = logging.getLogger(__name__)

# While Adam's second moments are young. LeRobot warms some kinds up for 500 or 1000 steps of one
# long run; here the rate falls by rounds and the optimiser's memory outlives them.
WARM_UP_STEPS = 50
_OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


@dataclass(frozen=True)
class HeldOut:
    """Mean error of a policy on given frames."""

    loss: float  # mean absolute error in normalised units, as in training
    action_mae: float  # mean absolute error in raw joint units
    frames: int

    @classmethod
    def of(cls, total: ErrorSum) -> Self:
        """The means."""
        return cls(total.loss / total.numbers, total.raw / total.numbers, total.frames)


@dataclass(frozen=True)
class ErrorSum:
    """Errors of a policy on some frames, which add up; ``numbers`` is of joints that were judged.

    loss: in normalised units. raw: in joint units. frame_mae: of each frame's mean, joint units.
    joints: of each action by itself, joint units, in their order.
    """

    loss: float = 0.0
    raw: float = 0.0
    numbers: int = 0
    frame_mae: float = 0.0
    frames: int = 0
    joints: tuple[float, ...] = ()

    def __add__(self, other: ErrorSum) -> ErrorSum:
        return ErrorSum(
            self.loss + other.loss,
            self.raw + other.raw,
            self.numbers + other.numbers,
            self.frame_mae + other.frame_mae,
            self.frames + other.frames,
            # Nothing yet has no joints.
            tuple(map(sum, zip(self.joints, other.joints, strict=True)))
            if self.joints and other.joints
            else self.joints or other.joints,
        )

    @property
    def joint_mae(self) -> tuple[float, ...]:
        """Mean of each action, joint units."""
        steps = self.numbers / max(1, len(self.joints))
        return tuple(total / steps for total in self.joints)

    @classmethod
    def of(cls, each: ChunkErrors) -> Self:
        """Of one batch."""
        return cls(
            each.loss,
            float(each.raw.sum()),
            int(each.numbers.sum()),
            float((each.raw / each.numbers).sum()),
            len(each.raw),
            tuple(each.joints.tolist()),
        )


@dataclass(frozen=True)
class ChunkErrors:
    """Errors of one batch's chunks, padding left out."""

    loss: float  # sum in normalised units
    raw: Array  # float64 [B], sum in raw joint units
    numbers: Array  # int64 [B], joints and steps that were judged
    joints: Array  # float64 [A], sum in raw joint units


class LocalTraining:
    """Trains one policy: LeRobot's own loss and optimiser, plus the FedProx term when asked for.

    The optimiser, its moments' decay, epsilon, weight decay and the clipping of gradients are
    LeRobot's for the kind; rates are the spec's. The proximal term is ``mu / 2 * ||w - w_base||^2``
    over the trainable tensors (Li et al. 2020).

    A batch that does not fit into memory is worked through in smaller parts, to the same gradient:
    each part counts by its actions that are no padding, which LeRobot's losses are a mean over.
    ``bfloat16`` is for forward passes alone.
    """

    def __init__(
        self,
        policy: torch.nn.Module,
        spec: PolicySpec,
        device: str = "cpu",
        *,
        bfloat16: bool = False,
        micro_batch: int | None = None,
    ) -> None:
        self.policy = policy.to(device)
        self.micro_batch = micro_batch  # frames at once; None: the whole batch
        self._device = torch.device(device)
        self._bfloat16 = bfloat16
        self._kind = kind_of(spec.kind)
        self._parameters = trainable_parameters(policy)
        self._groups = self._kind.parameter_groups(policy, spec)
        self._preset = build_config(spec).get_optimizer_preset()
        self._learning_rate = spec.learning_rate
        self._mu = 0.0
        self._base: list[torch.Tensor] = []
        self.reset_optimizer()
        policy.train()

    def reset_optimizer(self) -> None:
        """Start the optimiser anew, with a warm-up.

        A new base does not need it: Adam's second moments are about the size of gradients, which a
        new base hardly changes, and its first moments fade within ten steps. To start anew at each
        base would spend the warm-up again and again, and trained no better when measured.
        """
        options = {k: v for k, v in asdict(self._preset).items() if k != "grad_clip_norm"}
        groups = [
            {"params": [self._parameters[name] for name in group.names], "factor": group.rate}
            for group in self._groups
        ]
        self._optimizer = _OPTIMIZERS[self._preset.type](groups, fused=True, **options)
        self._young_steps = 0
        self._set_rates()

    def set_rate(self, learning_rate: float) -> None:
        """Step so far from now on; a warm-up under way goes on."""
        self._learning_rate = learning_rate
        self._set_rates()

    def set_proximal(self, base: Mapping[str, Array], mu: float) -> None:
        """Pull towards ``base`` from now on; ``mu`` 0 lets go. Raises BadWeights."""
        if list(base) != list(self._parameters):
            raise BadWeights("the base has other tensors than the policy")
        self._mu = mu
        self._base = (
            [torch.from_numpy(base[name].copy()).to(self._device) for name in base] if mu else []
        )

    def step(self, batch: Tensors) -> float:
        """One step of the optimiser on a normalised batch; the loss without the proximal term.

        Raises TooLittleMemory.
        """
        if self._young_steps <= WARM_UP_STEPS:
            self._young_steps += 1
            self._set_rates()
        reported = self._differentiate(batch)
        if self._mu:
            self._proximal().backward()
        torch.nn.utils.clip_grad_norm_(
            self._parameters.values(), self._preset.grad_clip_norm, error_if_nonfinite=False
        )
        self._optimizer.step()
        return reported

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        """All that the next steps depend on besides the batches and the base: tensors, numbers."""
        tensors = {f"weights/{name}": value.detach() for name, value in self._parameters.items()}
        for name, parameter in self._parameters.items():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{name}/{key}"] = value
        tensors["random/cpu"] = torch.get_rng_state()
        if self._device.type == "cuda":
            tensors["random/cuda"] = torch.cuda.get_rng_state()
        kept = {name: value.cpu().clone().contiguous() for name, value in tensors.items()}
        return kept, {"young_steps": self._young_steps, "micro_batch": self.micro_batch}

    def restore(self, tensors: Tensors, numbers: Mapping[str, Any], *, weights: bool) -> None:
        """Go on from a ``state``, or, without its ``weights``, with its optimiser alone.

        Raises BadCheckpoint; then nothing changed.
        """
        for name, parameter in self._parameters.items():
            stored = tensors.get(f"weights/{name}")
            if stored is None or stored.shape != parameter.shape:
                raise BadCheckpoint(f"the checkpoint is of another policy ({name})")
        state: dict[torch.nn.Parameter, Tensors] = {}
        for name, value in tensors.items():
            part, _, rest = name.partition("/")
            if part == "optimizer":
                tensor, _, key = rest.rpartition("/")
                # Where the optimiser wants it: fused, it keeps its count beside the weights.
                state.setdefault(self._parameters[tensor], {})[key] = value.to(self._device)
        self._optimizer.state.clear()
        self._optimizer.state.update(state)
        self._young_steps = int(numbers["young_steps"])
        self.micro_batch = numbers["micro_batch"]
        self._set_rates()
        if not weights:
            return
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(tensors[f"weights/{name}"])
        torch.set_rng_state(tensors["random/cpu"])
        if "random/cuda" in tensors and self._device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random/cuda"])

    def _differentiate(self, batch: Tensors) -> float:
        """Gradients of the mean loss over the batch; the loss to report."""
        frames = len(batch[ACTION])
        while True:
            size = min(self.micro_batch or frames, frames)
            random = torch.get_rng_state()
            try:
                return self._accumulate(batch, size)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1:
                    raise TooLittleMemory(
                        f"one frame does not fit into memory ({error}): choose a smaller policy, "
                        "smaller pictures, or a larger training.memory_limit_mb"
                    ) from error
            self.micro_batch = -(-size // 2)
            log.warning("memory ran out: from now on %d frames at once", self.micro_batch)
            self._optimizer.zero_grad(set_to_none=True)
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            torch.set_rng_state(random)

    def _accumulate(self, batch: Tensors, size: int) -> float:
        self._optimizer.zero_grad(set_to_none=True)
        valid = (~batch[PADDING]).sum(dim=1).tolist()
        total, reported = max(1, sum(valid)), 0.0
        for start in range(0, len(valid), size):
            part = {
                name: value[start : start + size] if isinstance(value, torch.Tensor) else value
                for name, value in batch.items()  # LeRobot's processor adds entries of its own
            }
            share = sum(valid[start : start + size]) / total
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16):
                loss, parts = self.policy(part)
            (loss * share).backward()
            reported += share * self._kind.reported_loss(loss, parts)
        return reported

    def _proximal(self) -> torch.Tensor:
        squares = [
            (parameter - base).square().sum()
            for parameter, base in zip(self._parameters.values(), self._base, strict=True)
        ]
        return 0.5 * self._mu * torch.stack(squares).sum()

    def _set_rates(self) -> None:
        share = min(1.0, max(1, self._young_steps) / WARM_UP_STEPS)
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate * share * group["factor"]


@contextlib.contextmanager
def evaluating(policy: torch.nn.Module) -> Iterator[None]:
    """Without gradients, dropout and ACT's VAE; afterwards in the mode that it was in."""
    training = policy.training
    policy.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        policy.train(training)


def chunk_errors(
    policy: torch.nn.Module, batch: Tensors, normalizer: Normalizer, seed: int = 0
) -> ChunkErrors:
    """Absolute errors of one normalised batch, of a policy that is ``evaluating``.

    One that starts from noise starts from the same noise for equal seeds.
    """
    std = torch.from_numpy(normalizer.std(ACTION))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # LeRobot's call for inference: it stacks the cameras and leaves ACT's latent zero.
        predicted = policy.predict_action_chunk(batch)
    valid = (~batch[PADDING]).unsqueeze(-1)
    difference = ((predicted - batch[ACTION]).abs() * valid).cpu()
    raw = difference * std
    return ChunkErrors(
        loss=float(difference.sum(dtype=torch.float64)),
        raw=raw.sum(dim=(1, 2), dtype=torch.float64).numpy(),
        numbers=(valid.sum(dim=(1, 2)) * difference.shape[-1]).cpu().numpy(),
        joints=raw.sum(dim=(0, 1), dtype=torch.float64).numpy(),
    )


def held_out_error(
    policy: torch.nn.Module, batches: Iterable[Tensors], normalizer: Normalizer
) -> HeldOut:
    """Mean absolute error over all frames of normalised ``batches``, padding left out.

    A policy that starts from noise starts from the same noise each time. Raises NoEpisodes when
    there is nothing to evaluate on.
    """
    with evaluating(policy):
        found = [
            chunk_errors(policy, batch, normalizer, seed) for seed, batch in enumerate(batches)
        ]
    if not found:
        raise NoEpisodes("no held-out frames to evaluate on")
    total = sum(map(ErrorSum.of, found), ErrorSum())
    return HeldOut.of(total)
