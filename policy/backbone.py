"""A ResNet's norms and pretrained weights, whichever names LeRobot's policy gives its parts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torchvision.ops.misc import FrozenBatchNorm2d

from policy.artefacts import find_artefact
from policy.errors import BadWeights
from policy.kinds.resnet import ResnetSpec

_CHANNELS_A_GROUP = 16  # as in LeRobot's diffusion policy
_CLASSIFIER = "fc."


def prepare_backbone(
    backbone: torch.nn.Module, spec: ResnetSpec, renamed: Mapping[str, str] | None = None
) -> None:
    """Give a ResNet the spec's norm, and its pretrained weights if it names some.

    ``renamed`` maps torchvision's names of the parts to the backbone's own. No batch norm that
    tracks statistics is left. Raises MissingArtefact, BadWeights.
    """
    for name, module in list(backbone.named_modules()):
        if isinstance(module, torch.nn.BatchNorm2d | FrozenBatchNorm2d):
            channels = module.weight.shape[0]
            norm = (
                torch.nn.GroupNorm(channels // _CHANNELS_A_GROUP, channels)
                if spec.backbone_norm == "group"
                else FrozenBatchNorm2d(channels)
            )
            parent, _, own = name.rpartition(".")
            setattr(backbone.get_submodule(parent), own, norm)
    load_backbone(backbone, spec, renamed)


def load_backbone(
    backbone: torch.nn.Module, spec: ResnetSpec, renamed: Mapping[str, str] | None = None
) -> None:
    """Give a trunk the weights that the spec names, and freeze it where its rate is 0.

    Raises MissingArtefact, BadWeights.
    """
    if spec.backbone_sha256 is not None:
        _load(backbone, spec.backbone_sha256, renamed or {})
    if spec.backbone_rate == 0:
        backbone.requires_grad_(False)


def _load(backbone: torch.nn.Module, sha256: str, renamed: Mapping[str, str]) -> None:
    path = find_artefact(sha256)
    try:
        stored = load_file(path)
    except SafetensorError as error:
        raise BadWeights(f"{path}: not a readable safetensors file ({error})") from error
    weights = {}
    for name, tensor in stored.items():
        part, _, rest = name.partition(".")
        if not name.startswith(_CLASSIFIER) and not name.endswith("num_batches_tracked"):
            weights[f"{renamed.get(part, part)}.{rest}"] = tensor
    try:
        backbone.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise BadWeights(f"{path}: weights of another backbone ({reason})") from error
