"""The keys of a policy that sees through a ResNet: its norm, and where its weights come from."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from policy.artefacts import SHA256_PATTERN
from policy.spec import PolicySpec


class ResnetSpec(PolicySpec):
    """LeRobot's ResNet-18 freezes or tracks batch statistics, and neither can be averaged."""

    backbone_norm: Literal["group", "frozen"] = "group"
    """Of the vision backbone: group norm, which is trained, or batch norm with the statistics of
    the pretrained weights; without those, a frozen norm does nothing."""
    backbone_sha256: str | None = Field(default=None, pattern=SHA256_PATTERN)
    """Pretrained backbone: digest of a safetensors file with torchvision's names, to be found by
    its digest in the folder that ARMADA_ARTEFACTS names; absent: untrained."""
    backbone_rate: float = Field(default=1.0, ge=0.0, le=100.0)
    """Factor on the learning rate for the backbone; 0: frozen, and then it leaves no robot."""

    @property
    def sees_by_resnet(self) -> bool:
        """Whether the backbone is one, with norms to choose."""
        return True

    @model_validator(mode="after")
    def _what_is_frozen_is_the_same_everywhere(self) -> Self:
        if self.backbone_rate == 0 and self.backbone_sha256 is None:
            raise ValueError("backbone_rate = 0 wants backbone_sha256: what is frozen is not sent")
        return self

    @model_validator(mode="after")
    def _norm_is_that_of_the_weights(self) -> Self:
        resnet = self.backbone_sha256 is not None and self.sees_by_resnet
        if resnet and self.backbone_norm != "frozen":
            raise ValueError('pretrained backbone weights need backbone_norm = "frozen"')
        return self
