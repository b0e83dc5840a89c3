"""What a kind of policy has to say about itself; the rest is the same for all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from policy.spec import ENVIRONMENT, PolicySpec
from policy.weights import Array

if TYPE_CHECKING:
    import torch

    from policy.flow import Flow

# How LeRobot's processor scales each sort of feature, by the names of its NormalizationMode.
MEAN_STD = "MEAN_STD"
IDENTITY = "IDENTITY"


@dataclass(frozen=True)
class ParameterGroup:
    """Trainable tensors, by name, that are trained at so many times the learning rate."""

    names: tuple[str, ...]
    rate: float


def backbone_groups(policy: torch.nn.Module, part: str, rate: float) -> list[ParameterGroup]:
    """The trainable tensors whose names hold ``part`` at ``rate``, the others at 1."""
    names = _trainable(policy)
    groups = (
        ParameterGroup(tuple(name for name in names if part not in name), 1.0),
        ParameterGroup(tuple(name for name in names if part in name), rate),
    )
    return [group for group in groups if group.names]


def _trainable(policy: torch.nn.Module) -> list[str]:
    return [name for name, parameter in policy.named_parameters() if parameter.requires_grad]


class PolicyKind[Spec: PolicySpec](ABC):
    """The adapter between LeRobot's policy of one kind and the fleet.

    The defaults are those of a policy that looks at one observation and needs nothing else.
    """

    spec: type[Spec]
    """Common fields and the kind's own sizes; ``kind`` is LeRobot's name of the policy."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Importable packages that it needs beyond Armada's own; the extra has the kind's name."""
    pictures: ClassVar[str] = MEAN_STD
    """How pictures (0..1) are scaled; vectors are always brought to mean 0 and deviation 1."""

    @abstractmethod
    def config(self, spec: Spec) -> dict[str, Any]:
        """The fields of LeRobot's configuration that are not common to all kinds."""

    def reads_words(self, spec: Spec) -> bool:
        """Whether the task, in words, is an input of the processor (``task``).

        What becomes of it is in the batch, under ``LANGUAGE_INPUTS``.
        """
        del spec
        return False

    def read_tasks(self, spec: Spec, tasks: Sequence[str]) -> dict[str, Array]:
        """What LeRobot's processor of this kind does not make of B tasks; arrays [B,...]."""
        del spec, tasks
        return {}

    def environment_size(self, spec: Spec) -> int:
        """Numbers in the environment's state as the arranged batch has it; 0: none."""
        return len(spec.vectors.get(ENVIRONMENT, ()))

    def seed(self, spec: Spec, seed: int) -> int:
        """From which the first weights are drawn: the caller's seed."""
        del spec
        return seed

    def prepare(self, policy: torch.nn.Module, spec: Spec) -> None:
        """Change LeRobot's fresh policy in place: norms, pretrained parts, what is trainable.

        Trainable is what requires a gradient afterwards. Raises MissingArtefact, BadWeights.
        """
        del policy, spec

    def parameter_groups(self, policy: torch.nn.Module, spec: Spec) -> list[ParameterGroup]:
        """Every trainable tensor once, by its factor on the learning rate."""
        del spec
        return [ParameterGroup(tuple(_trainable(policy)), 1.0)]

    def arrange(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch from the processor as LeRobot's policy of this kind takes it."""
        return batch

    def reported_loss(self, loss: torch.Tensor, parts: Mapping[str, Any] | None) -> float:
        """The loss to report, from what LeRobot's ``forward`` gives."""
        del parts
        return float(loss.detach())

    def extra_inputs(self, spec: Spec) -> dict[str, tuple[int, ...]]:
        """Inputs of the graph besides the observation: name -> shape without batch axis.

        Floats, but for ``INTEGER_INPUTS``.
        """
        del spec
        return {}

    def draw_extra_inputs(self, spec: Spec, random: np.random.Generator) -> dict[str, Array]:
        """Made-up values for ``extra_inputs``, to check a graph with."""
        return {
            name: random.standard_normal(shape, dtype=np.float32)
            for name, shape in self.extra_inputs(spec).items()
        }

    def files(self, spec: Spec) -> dict[str, bytes]:
        """What a host needs beside the graph: name -> content. Raises MissingArtefact, OSError."""
        del spec
        return {}

    def flow(self, policy: Any) -> Flow | None:
        """The two parts of a graph that integrates a velocity; None: ``predict`` is the graph."""
        del policy
        return None

    def predict(
        self, policy: Any, batch: dict[str, Any], extra: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Normalised actions [B,C,A] for an arranged batch, by LeRobot's own call.

        It is also what is traced into the deployed graph of a kind without ``flow``.
        """
        del extra
        chunk: torch.Tensor = policy.predict_action_chunk(batch)
        return chunk
