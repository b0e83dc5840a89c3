"""One optimiser step, and the error on episodes that were never trained on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from policy.batches import PADDING
from policy.build import Tensors, trainable_parameters
from policy.errors import BadWeights, NoEpisodes
from policy.kinds import kind_of
from policy.spec import ACTION, PolicySpec
from policy.statistics import Normalizer
from policy.weights import Array

GRADIENT_CLIP = 10.0  # LeRobot's own default for every kind
WARM_UP_STEPS = 50  # only while Adam's second moments are young


@dataclass(frozen=True)
class HeldOut:
    """Error of a policy on given frames."""

    loss: float  # mean absolute error in normalised units, as in training
    action_mae: float  # mean absolute error in raw joint units
    frames: int
    frame_mae: Array  # float64 [frames], of each frame's chunk in raw joint units, in their order


class LocalTraining:
    """Trains one policy: LeRobot's own loss, plus the FedProx term towards a base when asked for.

    The proximal term is ``mu / 2 * ||w - w_base||^2`` over the trainable tensors (Li et al. 2020).
    """

    def __init__(self, policy: torch.nn.Module, spec: PolicySpec) -> None:
        self.policy = policy
        self._kind = kind_of(spec.kind)
        self._parameters = trainable_parameters(policy)
        self._decay = spec.weight_decay
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
        self._optimizer = torch.optim.AdamW(
            list(self._parameters.values()),
            lr=self._learning_rate,
            weight_decay=self._decay,
            fused=True,
        )
        self._young_steps = 0

    def set_rate(self, learning_rate: float) -> None:
        """Step so far from now on; a warm-up under way goes on."""
        self._learning_rate = learning_rate
        share = min(1.0, max(1, self._young_steps) / WARM_UP_STEPS)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * share

    def set_proximal(self, base: Mapping[str, Array], mu: float) -> None:
        """Pull towards ``base`` from now on; ``mu`` 0 lets go. Raises BadWeights."""
        if list(base) != list(self._parameters):
            raise BadWeights("the base has other tensors than the policy")
        self._mu = mu
        self._base = [torch.from_numpy(base[name].copy()) for name in base] if mu else []

    def step(self, batch: Tensors) -> float:
        """One step of AdamW on a normalised batch; the loss without the proximal term."""
        self._warm_up()
        loss, parts = self.policy(batch)
        reported = self._kind.reported_loss(loss, parts)
        if self._mu:
            loss = loss + self._proximal()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(
            self._parameters.values(), GRADIENT_CLIP, error_if_nonfinite=False
        )
        self._optimizer.step()
        return reported

    def _proximal(self) -> torch.Tensor:
        squares = [
            (parameter - base).square().sum()
            for parameter, base in zip(self._parameters.values(), self._base, strict=True)
        ]
        return 0.5 * self._mu * torch.stack(squares).sum()

    def _warm_up(self) -> None:
        if self._young_steps > WARM_UP_STEPS:
            return
        self._young_steps += 1
        share = min(1.0, self._young_steps / WARM_UP_STEPS)
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate * share


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


def held_out_error(
    policy: torch.nn.Module, batches: Iterable[Tensors], normalizer: Normalizer
) -> HeldOut:
    """Mean absolute error over all frames of normalised ``batches``, padding left out.

    A policy that starts from noise starts from the same noise each time. Raises NoEpisodes when
    there is nothing to evaluate on.
    """
    std = torch.from_numpy(normalizer.std(ACTION))
    loss = raw = 0.0
    numbers = 0
    frame_mae: list[torch.Tensor] = []
    with evaluating(policy), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for batch in batches:
            valid = (~batch[PADDING]).unsqueeze(-1)
            # LeRobot's call for inference: it stacks the cameras and leaves ACT's latent zero.
            difference = (policy.predict_action_chunk(batch) - batch[ACTION]).abs() * valid
            loss += float(difference.sum(dtype=torch.float64))
            each = (difference * std).sum(dim=(1, 2), dtype=torch.float64)
            counts = valid.sum(dim=(1, 2)) * difference.shape[-1]
            raw += float(each.sum())
            numbers += int(counts.sum())
            frame_mae.append(each / counts)
    if not numbers:
        raise NoEpisodes("no held-out frames to evaluate on")
    per_frame = torch.cat(frame_mae).numpy()
    return HeldOut(loss / numbers, raw / numbers, len(per_frame), per_frame)
