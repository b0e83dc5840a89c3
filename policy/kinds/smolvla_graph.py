"""SmolVLA in the two parts of its deployed graph: encode what is seen once, then denoise.

The parts are LeRobot's own modules; replaced are only calls whose trace would be slow or bound to
one picture (scattered writes, places of patches found by a mask).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lerobot.policies.smolvla import smolvlm_with_expert
from transformers import DynamicCache

from policy.flow import Flow

type Context = tuple[torch.Tensor, ...]


def flow_of(policy: Any, tokens: str, mask: str) -> Flow:
    """The parts of LeRobot's ``SmolVLAPolicy``; ``tokens`` and ``mask`` are keys of the batch."""
    model, config = policy.model, policy.config
    width, height = config.resize_imgs_with_padding
    parts = model.vlm_with_expert.get_vlm_model()
    places = _patch_places(parts.vision_model.embeddings, height, width)

    def embed_image(image: torch.Tensor) -> torch.Tensor:
        vision = parts.vision_model
        patches = vision.embeddings.patch_embedding(image).flatten(2).transpose(1, 2)
        hidden = vision.encoder(inputs_embeds=patches + places).last_hidden_state
        seen: torch.Tensor = parts.connector(vision.post_layernorm(hidden))
        return seen

    def encode(batch: dict[str, torch.Tensor]) -> Context:
        images, present = policy.prepare_images(batch)
        with _traceable(model, embed_image):
            seen, padding, causal = model.embed_prefix(
                images, present, batch[tokens], batch[mask].bool(), policy.prepare_state(batch)
            )
            order = torch.cumsum(causal.long(), dim=1)  # truth values have no sum in ONNX
            visible = order[:, None, :] <= order[:, :, None]
            _, cache = model.vlm_with_expert.forward(
                attention_mask=visible & padding[:, None, :] & padding[:, :, None],
                position_ids=torch.cumsum(padding.long(), dim=1) - 1,
                past_key_values=None,
                inputs_embeds=[seen, None],
                use_cache=True,
            )
        pairs = [part for layer in cache.layers for part in (layer.keys, layer.values)]
        return (padding, *pairs)

    def velocity(x: torch.Tensor, time: torch.Tensor, context: Context) -> torch.Tensor:
        padding, *pairs = context
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(zip(pairs[::2], pairs[1::2], strict=True)):
            cache.update(keys, values, layer)
        # LeRobot's denoise_step, whose masks are sums over truth values: ONNX has none.
        rows = x.shape[1]
        seen = padding[:, None, :].expand(-1, rows, -1)
        before = torch.ones(rows, rows, dtype=torch.bool).tril().expand(x.shape[0], -1, -1)
        with _traceable(model, embed_image):
            actions, _, _ = model.embed_suffix(x, time)
            (_, out), _ = model.vlm_with_expert.forward(
                attention_mask=torch.cat([seen, before], dim=2),
                position_ids=padding.long().sum(dim=1, keepdim=True) + torch.arange(rows),
                past_key_values=cache,
                inputs_embeds=[None, actions],
                use_cache=True,
            )
        velocity: torch.Tensor = model.action_out_proj(out.to(torch.float32))
        return velocity

    return Flow(config.num_steps, config.max_action_dim, encode, velocity)


@contextlib.contextmanager
def _traceable(model: Any, embed_image: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    rotate = smolvlm_with_expert.apply_rope
    smolvlm_with_expert.apply_rope = _rotate
    model.vlm_with_expert.embed_image = embed_image
    try:
        yield
    finally:
        smolvlm_with_expert.apply_rope = rotate
        del model.vlm_with_expert.embed_image  # the class has LeRobot's


@torch.no_grad()
def _patch_places(embeddings: Any, height: int, width: int) -> torch.Tensor:
    """What SmolVLM adds to each patch of a whole picture, [1, patches, hidden]."""
    blank = torch.zeros(1, 3, height, width, dtype=embeddings.patch_embedding.weight.dtype)
    rows, columns = height // embeddings.patch_size, width // embeddings.patch_size
    whole = torch.ones(1, rows, columns, dtype=torch.bool)
    patches = embeddings.patch_embedding(blank).flatten(2).transpose(1, 2)
    places: torch.Tensor = embeddings(blank, whole) - patches
    return places


def _rotate(x: torch.Tensor, positions: torch.Tensor, max_wavelength: int = 10_000) -> torch.Tensor:
    """LeRobot's ``apply_rope`` without writing into slices: x [B,L,H,D], positions [B,L]."""
    half = x.shape[-1] // 2
    wavelengths = max_wavelength ** ((2.0 / x.shape[-1]) * torch.arange(half, dtype=torch.float32))
    radians = (positions[..., None].to(torch.float32) / wavelengths)[..., None, :]
    sin, cos = torch.sin(radians), torch.cos(radians)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
