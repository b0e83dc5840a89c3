"""The trunk of a policy that sees: its norm, and the weights that it starts from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from synthetic_pick import frames_of, normalizer_of, tiny_spec
from torchvision.ops.misc import FrozenBatchNorm2d

from policy.artefacts import VARIABLE, artefact_digest
from policy.build import build_policy, read_weights
from policy.errors import BadWeights, MissingArtefact
from policy.kinds import kind_of
from policy.spec import CameraSpec, PolicySpec

CAMERA = CameraSpec(name="overhead", height=32, width=32)


def seeing(**fields: object) -> PolicySpec:
    return tiny_spec(cameras=[CAMERA], **({"backbone": "resnet18"} | fields))


def build(spec: PolicySpec) -> torch.nn.Module:
    return build_policy(spec, normalizer_of(frames_of(1), spec), 0)


def norms(policy: torch.nn.Module) -> set[type[torch.nn.Module]]:
    kinds = (torch.nn.BatchNorm2d, FrozenBatchNorm2d, torch.nn.GroupNorm)
    return {type(module) for module in policy.modules() if isinstance(module, kinds)}


def keep(folder: Path, tensors: dict[str, torch.Tensor]) -> str:
    """Put weights into the folder of artefacts; their digest."""
    folder.mkdir(exist_ok=True)
    path = folder / "new"
    save_file(tensors, path)
    digest = artefact_digest(path)
    path.rename(folder / digest)
    return digest


def test_an_untrained_trunk_has_a_norm_that_is_trained_and_averaged() -> None:
    policy = build(seeing())
    assert norms(policy) == {torch.nn.GroupNorm}
    assert {"model.backbone.bn1.weight", "model.backbone.bn1.bias"} <= set(read_weights(policy))


def test_the_frozen_norm_is_there_when_it_is_asked_for() -> None:
    policy = build(seeing(backbone_norm="frozen"))
    assert norms(policy) == {FrozenBatchNorm2d}
    assert not any("bn" in name for name in read_weights(policy))


def test_pretrained_weights_are_found_by_their_digest_and_taken_with_their_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    trunk = torchvision.models.resnet18(weights=None)
    trunk.bn1.running_mean.fill_(0.25)
    digest = keep(tmp_path, trunk.state_dict())
    backbone = build(seeing(backbone_norm="frozen", backbone_sha256=digest)).model.backbone
    assert torch.equal(backbone.layer4[1].conv2.weight, trunk.layer4[1].conv2.weight)
    assert torch.equal(backbone.bn1.running_mean, trunk.bn1.running_mean)


def test_weights_that_are_missing_damaged_or_of_another_trunk_build_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    spec = seeing(backbone_norm="frozen", backbone_sha256="a" * 64)
    with pytest.raises(MissingArtefact, match=f"set {VARIABLE}"):
        build(spec)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(MissingArtefact, match="is not there"):
        build(spec)
    digest = keep(tmp_path, {"conv1.weight": torch.zeros(1)})
    (tmp_path / digest).rename(tmp_path / ("a" * 64))
    with pytest.raises(MissingArtefact, match=f"another one: its digest is {digest}"):
        build(spec)
    digest = keep(tmp_path, {"conv1.weight": torch.zeros(1)})
    with pytest.raises(BadWeights, match="another backbone"):
        build(seeing(backbone_norm="frozen", backbone_sha256=digest))


def test_the_trunk_has_a_rate_of_its_own_and_every_tensor_is_in_one_group() -> None:
    spec = seeing(backbone_rate=0.1)
    policy = build(spec)
    rest, trunk = kind_of("act").parameter_groups(policy, spec)
    assert (rest.rate, trunk.rate) == (1.0, 0.1)
    assert all(name.startswith("model.backbone.") for name in trunk.names)
    assert sorted(rest.names + trunk.names) == sorted(read_weights(policy))


def test_a_frozen_trunk_leaves_no_robot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    tensors = torchvision.models.resnet18(weights=None).state_dict()
    digest = keep(tmp_path, tensors)
    spec = seeing(backbone_norm="frozen", backbone_sha256=digest, backbone_rate=0.0)
    policy = build(spec)
    assert not any("backbone" in name for name in read_weights(policy))
    (only,) = kind_of("act").parameter_groups(policy, spec)
    assert (only.names, only.rate) == (tuple(read_weights(policy)), 1.0)


def test_a_frozen_trunk_of_random_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="backbone_sha256"):
        seeing(backbone_rate=0.0)
