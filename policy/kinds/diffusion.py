"""Diffusion Policy: a chunk is denoised step by step (Chi et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from policy.kinds import NOISE
from policy.kinds.adapter import ParameterGroup, PolicyKind, backbone_groups
from policy.kinds.resnet import ResnetSpec
from policy.spec import ENVIRONMENT, STATE

if TYPE_CHECKING:
    import torch

_GROUPS = 8  # of the U-Net's norms
# LeRobot keeps torchvision's parts in an nn.Sequential, by number.
_PARTS = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}


class DiffusionSpec(ResnetSpec):
    """A U-Net over time that sees the present observation alone, sampled by DDIM."""

    kind: Literal["diffusion"] = "diffusion"
    """LeRobot's name of the policy; needs the extra armada[diffusion]."""
    chunk_size: int = Field(default=32, gt=0, le=1000)
    """Actions that are planned at once: a multiple of 2 to the number of down_dims."""
    down_dims: tuple[int, ...] = Field(default=(64, 128), min_length=1, max_length=6)
    """Channels of each level of the U-Net, multiples of 8."""
    kernel_size: int = Field(default=5, gt=0, le=31)
    """Of the U-Net's convolutions over time, odd."""
    step_embed_dim: int = Field(default=64, ge=4, le=4096)
    """Width of the denoising step's embedding, even."""
    keypoints: int = Field(default=32, gt=0, le=1024)
    """Places that each camera's picture is summed up to."""
    train_steps: int = Field(default=100, gt=0, le=1000)
    """Steps of the noise schedule."""
    denoising_steps: int = Field(default=8, gt=0, le=100)
    """DDIM steps of an inference (Song et al. 2021), all of them in the deployed graph."""
    clip_deviations: float = Field(default=5.0, gt=0.0, le=100.0)
    """Each denoising step clips the actions to so many standard deviations from their mean."""

    @model_validator(mode="after")
    def _u_net_can_be_built(self) -> Self:
        halvings = 2 ** len(self.down_dims)
        if self.chunk_size % halvings:
            raise ValueError(
                f"chunk_size {self.chunk_size} must be a multiple of {halvings}: "
                f"{len(self.down_dims)} down_dims halve it as often"
            )
        if any(not 0 < width <= 4096 or width % _GROUPS for width in self.down_dims):
            raise ValueError(f"down_dims must be multiples of {_GROUPS} up to 4096")
        if not self.kernel_size % 2 or self.step_embed_dim % 2:
            raise ValueError("kernel_size must be odd and step_embed_dim even")
        if self.denoising_steps > self.train_steps:
            raise ValueError("denoising_steps must not be above train_steps")
        if len({(camera.height, camera.width) for camera in self.cameras}) > 1:
            raise ValueError("a diffusion policy wants frames of one size from all cameras")
        # LeRobot tries its trunk out with one picture before its norms are replaced.
        if self.backbone_norm == "frozen" and any(
            max(camera.height, camera.width) <= 32 for camera in self.cameras
        ):
            raise ValueError('backbone_norm = "frozen" wants frames of more than 32 pixels')
        return self


class Diffusion(PolicyKind[DiffusionSpec]):
    """LeRobot's ``DiffusionPolicy`` with one observation step."""

    spec = DiffusionSpec
    packages: ClassVar[tuple[str, ...]] = ("diffusers",)

    def config(self, spec: DiffusionSpec) -> dict[str, Any]:
        return {
            "n_obs_steps": 1,
            "horizon": spec.chunk_size,
            "n_action_steps": spec.chunk_size,
            "pretrained_backbone_weights": None,
            "use_group_norm": spec.backbone_norm == "group",
            "spatial_softmax_num_keypoints": spec.keypoints,
            "down_dims": spec.down_dims,
            "kernel_size": spec.kernel_size,
            "n_groups": _GROUPS,
            "diffusion_step_embed_dim": spec.step_embed_dim,
            "noise_scheduler_type": "DDIM",
            "num_train_timesteps": spec.train_steps,
            "num_inference_steps": spec.denoising_steps,
            "clip_sample_range": spec.clip_deviations,
            "do_mask_loss_for_padding": True,
        }

    def prepare(self, policy: torch.nn.Module, spec: DiffusionSpec) -> None:
        if spec.cameras:
            from policy.backbone import prepare_backbone

            for encoder in policy.diffusion.rgb_encoder:
                prepare_backbone(encoder.backbone, spec, _PARTS)

    def parameter_groups(
        self, policy: torch.nn.Module, spec: DiffusionSpec
    ) -> list[ParameterGroup]:
        return backbone_groups(policy, ".backbone.", spec.backbone_rate)

    def arrange(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Vectors get an axis for their one observation step; pictures get it from LeRobot."""
        vectors = {name: batch[name].unsqueeze(1) for name in (STATE, ENVIRONMENT) if name in batch}
        return batch | vectors

    def extra_inputs(self, spec: DiffusionSpec) -> dict[str, tuple[int, ...]]:
        return {NOISE: (spec.chunk_size, len(spec.action_names))}

    def predict(
        self, policy: Any, batch: dict[str, Any], extra: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        chunk: torch.Tensor = policy.predict_action_chunk(batch, noise=extra[NOISE])
        return chunk


KIND = Diffusion()
