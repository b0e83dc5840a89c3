"""The small trunk: it tells places, it can be frozen to shared weights, and it can be deployed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from synthetic_pick import frames_of, normalizer_of, tiny_spec

from policy.artefacts import VARIABLE, artefact_digest
from policy.build import build_policy, read_weights
from policy.errors import BadWeights
from policy.keypoints import OUT_CHANNELS, KeypointTrunk
from policy.kinds.act import KEYPOINTS_SHA256
from policy.spec import CameraSpec, PolicySpec

CAMERA = CameraSpec(name="overhead", height=24, width=32)


def seeing(**fields: object) -> PolicySpec:
    return tiny_spec(cameras=[CAMERA], environment_names=(), **fields)


def build(spec: PolicySpec) -> torch.nn.Module:
    return build_policy(spec, normalizer_of(frames_of(1), spec), 0)


def keep(folder: Path, tensors: dict[str, torch.Tensor]) -> str:
    path = folder / "new"
    save_file(tensors, path)
    digest = artefact_digest(path)
    path.rename(folder / digest)
    return digest


def test_points_lie_in_the_picture_and_follow_what_moves_in_it() -> None:
    torch.manual_seed(0)
    trunk = KeypointTrunk()
    with torch.no_grad():
        trunk.points.weight.mul_(50)
        pictures = torch.zeros(2, 3, 48, 64)
        pictures[0, 0, 20:28, 8:16] = pictures[1, 0, 20:28, 48:56] = 8.0
        found = trunk(pictures)["feature_map"]
    assert found.shape == (2, OUT_CHANNELS, 1, 1)
    assert found.abs().max() < 1.0
    right = found[1, : OUT_CHANNELS // 2] - found[0, : OUT_CHANNELS // 2]
    assert right.max() > 0.8, "some point went with it, 40 of 64 pixels"


@pytest.mark.parametrize("size", [(9, 8), (48, 64), (97, 33)])
def test_any_size_of_picture_is_taken(size: tuple[int, int]) -> None:
    assert KeypointTrunk()(torch.zeros(1, 3, *size))["feature_map"].shape == (1, OUT_CHANNELS, 1, 1)


def test_nothing_in_it_counts_what_passes_by() -> None:
    assert not list(KeypointTrunk().buffers()), "a buffer is never averaged"


def test_a_trunk_from_a_file_can_be_frozen_and_is_then_not_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    torch.manual_seed(3)
    trunk = KeypointTrunk()
    digest = keep(tmp_path, trunk.state_dict())
    one = build(seeing(backbone_sha256=digest, backbone_rate=0.0))
    assert torch.equal(one.model.backbone.points.weight, trunk.points.weight)
    assert not any("backbone" in name for name in read_weights(one))
    trained = read_weights(build(seeing(backbone_sha256=digest, backbone_rate=0.1)))
    assert "model.backbone.points.weight" in trained


def test_weights_of_another_trunk_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    digest = keep(tmp_path, {"conv1.weight": torch.zeros(1)})
    with pytest.raises(BadWeights, match="another backbone"):
        build(seeing(backbone_sha256=digest))


def test_act_sees_by_the_shipped_trunk_unless_told_otherwise() -> None:
    plain = seeing()
    assert (plain.backbone, plain.backbone_sha256) == ("keypoints", KEYPOINTS_SHA256)
    assert plain.backbone_rate == 0.0
    untrained = seeing(backbone_sha256=None)
    assert untrained.backbone_rate == 1.0
    resnet = seeing(backbone="resnet18")
    assert (resnet.backbone_sha256, resnet.backbone_rate) == (None, 1.0)
    for spec in (plain, untrained, resnet, seeing(backbone_rate=0.5)):
        assert PolicySpec.from_json(spec.to_json()) == spec
