"""ACT: a transformer that plans a chunk at once (Zhao et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from policy.artefacts import SHA256_PATTERN
from policy.kinds import TASK_VECTOR
from policy.kinds.adapter import ParameterGroup, PolicyKind, backbone_groups
from policy.kinds.resnet import ResnetSpec
from policy.spec import ENVIRONMENT
from policy.weights import Array
from policy.words import task_vector

if TYPE_CHECKING:
    import torch


# The trunk in policy/trunks, made by deploy.pretraining.
KEYPOINTS_SHA256 = "77eb4e425755a404fecaefbf42341c33f9c2365393038699212a38aebe3b947a"


class ActSpec(ResnetSpec):
    """Sized for one CPU thread by default: it sees joints and the pose of one object."""

    kind: Literal["act"] = "act"
    """LeRobot's name of the policy."""
    backbone: Literal["keypoints", "resnet18"] = "keypoints"
    """What looks at pictures: a small trunk that gives places of points, or LeRobot's own; why, and
    what was measured: docs/learning.md."""
    backbone_sha256: str | None = Field(default=KEYPOINTS_SHA256, pattern=SHA256_PATTERN)
    """Pretrained backbone: digest of a safetensors file, to be found by its digest in the folder
    that ARMADA_ARTEFACTS names, or shipped (that of keypoints is); null: untrained, which is the
    default of resnet18."""
    backbone_rate: float = Field(default=0.0, ge=0.0, le=100.0)
    """Factor on the learning rate for the backbone; 0: frozen, and then it leaves no robot. 1 where
    the backbone is untrained or a resnet18, unless it is given."""
    words: int = Field(default=0, ge=0, le=1024)
    """Numbers of the vector by which the policy is told its task, a hash of the task's words; 0: it
    is not told. 128 do for a handful of tasks."""
    dim_model: int = Field(default=64, gt=0)
    """Width of the transformer, a multiple of n_heads."""
    n_heads: int = Field(default=4, gt=0)
    """Attention heads."""
    dim_feedforward: int = Field(default=128, gt=0)
    """Width of the feed-forward layers."""
    n_encoder_layers: int = Field(default=1, gt=0)
    """Transformer encoder layers."""
    n_decoder_layers: int = Field(default=1, gt=0)
    """Transformer decoder layers."""
    use_vae: bool = False
    """ACT's variational objective."""
    n_vae_encoder_layers: int = Field(default=2, gt=0)
    """Layers of the VAE's encoder."""
    latent_dim: int = Field(default=8, gt=0)
    """Of the VAE."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """In the transformer, while training."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_backbone(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        defaults: dict[str, Any] = {}
        if given.get("backbone") == "resnet18":
            defaults["backbone_sha256"] = None
        if (defaults | given).get("backbone_sha256", KEYPOINTS_SHA256) != KEYPOINTS_SHA256:
            defaults["backbone_rate"] = 1.0
        return defaults | given

    @property
    def sees_by_resnet(self) -> bool:
        return self.backbone == "resnet18"

    @model_validator(mode="after")
    def _transformer_can_be_built(self) -> Self:
        if self.dim_model % self.n_heads:
            raise ValueError(
                f"dim_model {self.dim_model} must be a multiple of n_heads {self.n_heads}"
            )
        if self.cameras and self.dim_model % 2:
            raise ValueError("dim_model must be even when the policy sees a camera")
        return self


class Act(PolicyKind[ActSpec]):
    """LeRobot's ``ACTPolicy``."""

    spec = ActSpec

    def reads_words(self, spec: ActSpec) -> bool:
        return spec.words > 0

    def read_tasks(self, spec: ActSpec, tasks: Sequence[str]) -> dict[str, Array]:
        return {TASK_VECTOR: np.stack([task_vector(task, spec.words) for task in tasks])}

    def environment_size(self, spec: ActSpec) -> int:
        return super().environment_size(spec) + spec.words

    def arrange(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The task's vector goes behind the environment's state, of which ACT makes one token."""
        if TASK_VECTOR not in batch:
            return batch
        import torch

        seen = [batch[name] for name in (ENVIRONMENT, TASK_VECTOR) if name in batch]
        rest = {name: value for name, value in batch.items() if name != TASK_VECTOR}
        return rest | {ENVIRONMENT: torch.cat(seen, dim=-1)}

    def extra_inputs(self, spec: ActSpec) -> dict[str, tuple[int, ...]]:
        return {TASK_VECTOR: (spec.words,)} if spec.words else {}

    def draw_extra_inputs(self, spec: ActSpec, random: np.random.Generator) -> dict[str, Array]:
        drawn = super().draw_extra_inputs(spec, random)
        return {name: value / np.linalg.norm(value) for name, value in drawn.items()}

    def config(self, spec: ActSpec) -> dict[str, Any]:
        return {
            "pretrained_backbone_weights": None,
            "chunk_size": spec.chunk_size,
            "n_action_steps": spec.chunk_size,
            "dim_model": spec.dim_model,
            "n_heads": spec.n_heads,
            "dim_feedforward": spec.dim_feedforward,
            "n_encoder_layers": spec.n_encoder_layers,
            "n_decoder_layers": spec.n_decoder_layers,
            "use_vae": spec.use_vae,
            "n_vae_encoder_layers": spec.n_vae_encoder_layers,
            "latent_dim": spec.latent_dim,
            "dropout": spec.dropout,
        }

    def prepare(self, policy: torch.nn.Module, spec: ActSpec) -> None:
        if not spec.cameras:
            return
        from policy.backbone import load_backbone, prepare_backbone

        if spec.sees_by_resnet:
            prepare_backbone(policy.model.backbone, spec)
            return
        import torch

        from policy.keypoints import OUT_CHANNELS, KeypointTrunk

        policy.model.backbone = KeypointTrunk()
        policy.model.encoder_img_feat_input_proj = torch.nn.Conv2d(OUT_CHANNELS, spec.dim_model, 1)
        load_backbone(policy.model.backbone, spec)

    def parameter_groups(self, policy: torch.nn.Module, spec: ActSpec) -> list[ParameterGroup]:
        return backbone_groups(policy, ".backbone.", spec.backbone_rate)

    def reported_loss(self, loss: torch.Tensor, parts: Mapping[str, Any] | None) -> float:
        """The error of the actions, without the VAE's divergence."""
        assert parts is not None
        return float(parts["l1_loss"])


KIND = Act()
