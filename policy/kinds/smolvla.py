"""SmolVLA: a vision-language model and an action expert trained by flow matching (Shukor 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from policy.artefacts import SHA256_PATTERN, find_artefact
from policy.kinds import NOISE, PREFIX_WEIGHTS, PREVIOUS, TOKEN_MASK, TOKENS
from policy.kinds.adapter import IDENTITY, PolicyKind
from policy.spec import ENVIRONMENT, PolicySpec
from policy.weights import Array
from policy.words import TOKENIZER_NAME

if TYPE_CHECKING:
    import torch

    from policy.flow import Flow

_COMMON_TOKENS = 16  # every vocabulary has so many
# As LeRobot chooses them: queries and values of the expert, and what leads in and out of it.
_LORA_TARGETS = (
    r"model\.(vlm_with_expert\.lm_expert\..*\.(q|v)_proj"
    r"|state_proj|action_(in|out)_proj|action_time_mlp_(in|out))"
)


class SmolVlaSpec(PolicySpec):
    """The defaults are those of the published SmolVLA of 450 million parameters."""

    kind: Literal["smolvla"] = "smolvla"
    """LeRobot's name of the policy; needs the extra armada[smolvla]."""
    chunk_size: int = Field(default=50, gt=0, le=1000)
    """Actions that are planned at once."""
    vlm_sha256: str = Field(pattern=SHA256_PATTERN)
    """Vision-language model: digest of a folder with its configuration, tokenizer and, if
    vlm_weights, its weights; it lies, named by its digest, in the folder that ARMADA_ARTEFACTS
    names."""
    vlm_weights: bool = True
    """Whether the vision-language model starts from the folder's weights, or untrained."""
    train: Literal["expert", "lora"] = "expert"
    """What is trained and leaves the robot: the whole action expert, or of a low-rank change of it
    the factor B (the other is frozen, so that the mean of B is the mean of the changes; Sun et al.
    2024, FFA-LoRA)."""
    lora_rank: int = Field(default=16, gt=0, le=256)
    """Of the low-rank change."""
    frozen_seed: int = Field(default=0, ge=0, lt=2**32)
    """All first weights are drawn from it: what is frozen travels in no base and must be the same
    at every robot."""
    image_size: int = Field(default=512, gt=0, le=2048)
    """Side to which pictures are scaled and padded, in pixels."""
    max_task_tokens: int = Field(default=48, gt=0, le=1024)
    """Of the task in words; more are cut off."""
    vlm_layers: int = Field(default=16, gt=0, le=128)
    """Layers of the language model that are used."""
    expert_layers: int = -1
    """Layers of the expert, a divisor of vlm_layers; -1: as many."""
    expert_width: float = Field(default=0.75, gt=0.0, le=4.0)
    """Of the expert, relative to the language model."""
    self_attention_every: int = Field(default=2, gt=0)
    """One layer of the expert in so many attends to the actions, the others to the model."""
    max_vector_size: int = Field(default=32, gt=0, le=256)
    """States and actions are padded to it."""
    denoising_steps: int = Field(default=10, gt=0, le=100)
    """Euler steps of an inference."""

    @model_validator(mode="after")
    def _sees_and_fits(self) -> Self:
        if not self.cameras:
            raise ValueError("SmolVLA sees by cameras: give at least one")
        widest = max(len(self.state_names), len(self.action_names))
        if widest > self.max_vector_size:
            raise ValueError(f"max_vector_size {self.max_vector_size} is below {widest} joints")
        if self.expert_layers != -1 and (
            self.expert_layers <= 0 or self.vlm_layers % self.expert_layers
        ):
            raise ValueError("expert_layers must be -1 or a divisor of vlm_layers")
        return self

    @property
    def vectors(self) -> dict[str, tuple[str, ...]]:
        """Without the environment, for which SmolVLA has no place."""
        return {name: names for name, names in super().vectors.items() if name != ENVIRONMENT}


class SmolVla(PolicyKind[SmolVlaSpec]):
    """LeRobot's ``SmolVLAPolicy``; the task's words become tokens in its processor."""

    spec = SmolVlaSpec
    packages: ClassVar[tuple[str, ...]] = ("transformers", "num2words", "peft")
    pictures: ClassVar[str] = IDENTITY

    def reads_words(self, spec: SmolVlaSpec) -> bool:
        del spec
        return True

    def config(self, spec: SmolVlaSpec) -> dict[str, Any]:
        return {
            "vlm_model_name": str(find_artefact(spec.vlm_sha256)),
            "load_vlm_weights": spec.vlm_weights,
            "chunk_size": spec.chunk_size,
            "n_action_steps": spec.chunk_size,
            "max_state_dim": spec.max_vector_size,
            "max_action_dim": spec.max_vector_size,
            "resize_imgs_with_padding": (spec.image_size, spec.image_size),
            "tokenizer_max_length": spec.max_task_tokens,
            "pad_language_to": "max_length",
            "num_steps": spec.denoising_steps,
            "num_vlm_layers": spec.vlm_layers,
            "num_expert_layers": spec.expert_layers,
            "expert_width_multiplier": spec.expert_width,
            "self_attn_every_n_layers": spec.self_attention_every,
        }

    def seed(self, spec: SmolVlaSpec, seed: int) -> int:
        del seed
        return spec.frozen_seed

    def prepare(self, policy: torch.nn.Module, spec: SmolVlaSpec) -> None:
        # Beside a model in bfloat16 LeRobot makes the expert so: too coarse for small steps.
        policy.model.vlm_with_expert.lm_expert.float()
        if spec.train == "expert":
            return
        from peft import LoraConfig, inject_adapter_in_model

        inject_adapter_in_model(
            LoraConfig(
                r=spec.lora_rank,
                lora_alpha=spec.lora_rank,
                target_modules=_LORA_TARGETS,
            ),
            policy,
        )
        for name, parameter in policy.named_parameters():
            parameter.requires_grad_("lora_B" in name)

    def extra_inputs(self, spec: SmolVlaSpec) -> dict[str, tuple[int, ...]]:
        return {
            TOKENS: (spec.max_task_tokens,),
            TOKEN_MASK: (spec.max_task_tokens,),
            NOISE: (spec.chunk_size, spec.max_vector_size),
            PREVIOUS: (spec.chunk_size, len(spec.action_names)),
            PREFIX_WEIGHTS: (spec.chunk_size,),
        }

    def draw_extra_inputs(self, spec: SmolVlaSpec, random: np.random.Generator) -> dict[str, Array]:
        drawn = super().draw_extra_inputs(spec, random)
        words = 1 + int(random.integers(spec.max_task_tokens))
        drawn[TOKENS] = random.integers(0, _COMMON_TOKENS, spec.max_task_tokens)
        drawn[TOKEN_MASK] = (np.arange(spec.max_task_tokens) < words).astype(np.int64)
        drawn[PREFIX_WEIGHTS] = np.sort(random.random(spec.chunk_size, np.float32))[::-1].copy()
        return drawn

    def files(self, spec: SmolVlaSpec) -> dict[str, bytes]:
        return {TOKENIZER_NAME: (find_artefact(spec.vlm_sha256) / TOKENIZER_NAME).read_bytes()}

    def flow(self, policy: Any) -> Flow:
        from policy.kinds.smolvla_graph import flow_of

        return flow_of(policy, TOKENS, TOKEN_MASK)

    def predict(
        self, policy: Any, batch: dict[str, Any], extra: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """LeRobot's own, guided by its own real-time chunking with the weights given."""
        from lerobot.policies.rtc import RTCConfig, RTCProcessor

        class Weighted(RTCProcessor):
            def get_prefix_weights(self, start: int, end: int, total: int) -> torch.Tensor:
                del start, end, total
                return extra[PREFIX_WEIGHTS][0]

        rtc = RTCConfig()
        before = policy.config.rtc_config, policy.model.rtc_processor
        policy.config.rtc_config, policy.model.rtc_processor = rtc, Weighted(rtc)
        try:
            chunk: torch.Tensor = policy.predict_action_chunk(
                batch | {TOKEN_MASK: batch[TOKEN_MASK].bool()},
                noise=extra[NOISE],
                prev_chunk_left_over=extra[PREVIOUS],
                inference_delay=0,
            )
        finally:
            policy.config.rtc_config, policy.model.rtc_processor = before
        return chunk


KIND = SmolVla()
