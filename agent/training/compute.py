"""How this host trains: the device, the precision, frames at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from agent.config import TrainingConfig
from policy.device import Accelerators, choose_bfloat16, choose_device
from policy.spec import PolicySpec
from policy.train import LocalTraining


@dataclass(frozen=True)
class Compute:
    """What the configuration comes to at this host."""

    device: str = "cpu"
    bfloat16: bool = False
    micro_batch: int | None = None

    @classmethod
    def choose(cls, config: TrainingConfig, present: Accelerators) -> Self:
        """Raises NoSuchDevice."""
        device = choose_device(config.device, present)
        bfloat16 = choose_bfloat16(config.precision, device, present)
        return cls(device, bfloat16, config.micro_batch or None)

    def training(self, policy: torch.nn.Module, spec: PolicySpec) -> LocalTraining:
        """A training of ``policy``, which is moved to the device."""
        return LocalTraining(
            policy, spec, self.device, bfloat16=self.bfloat16, micro_batch=self.micro_batch
        )
