"""The first trunk: pictures that say where things are, and a trunk that finds them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from deploy.pretraining.scenes import THINGS, draw_scenes
from deploy.pretraining.trunk import scaled, train_trunk
from policy.artefacts import VARIABLE, artefact_digest, find_artefact
from policy.build import build_policy, read_weights
from policy.kinds.act import KEYPOINTS_SHA256, ActSpec
from policy.statistics import FeatureScale, Normalizer

SIZE = (64, 48)


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    ((pictures, places),) = draw_scenes([SIZE], 60, seed=4)
    return pictures, places


def test_places_are_those_in_the_picture(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    pictures, places = drawn
    assert pictures.shape == (60, 3, 48, 64)
    assert places.shape == (60, THINGS, 2)
    near = 0
    for picture, (x, y) in zip(pictures.astype(int), places[:, 0], strict=True):
        column, row = round((x + 1) * 32 - 0.5), round((y + 1) * 24 - 0.5)
        spot = picture[:, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
        near += int(np.ptp(spot.mean(axis=(1, 2))) > 60)  # a saturated colour: the cube's
    assert near > 30, "the arm hides some of the cubes, not most"


def test_equal_seeds_draw_equal_scenes_and_train_equal_trunks(
    drawn: tuple[np.ndarray, np.ndarray],
) -> None:
    again = draw_scenes([SIZE], 60, seed=4)
    assert np.array_equal(again[0][0], drawn[0])
    assert np.array_equal(again[0][1], drawn[1])
    one, errors = train_trunk([drawn], 5, seed=1)
    other, _ = train_trunk(again, 5, seed=1)
    assert len(errors) == 5
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


def test_the_shipped_trunk_sees_where_the_cube_is_on_scenes_it_never_saw(
    monkeypatch: pytest.MonkeyPatch, drawn: tuple[np.ndarray, np.ndarray]
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    names = ("a", "b")
    spec = ActSpec.model_validate(
        {
            "state_names": names, "action_names": names, "fps": 30, "backbone": "keypoints",
            "cameras": [{"name": "overhead", "height": 48, "width": 64}],
            "backbone_sha256": KEYPOINTS_SHA256, "backbone_rate": 0.0,
        }
    )  # fmt: skip
    scale = FeatureScale(names=names, mean=(0.0, 0.0), std=(1.0, 1.0))
    scales = Normalizer(features={"observation.state": scale, "action": scale})
    policy = build_policy(spec, scales, 0)
    assert not any("backbone" in name for name in read_weights(policy))
    pictures, places = drawn
    with torch.no_grad():
        points = policy.model.backbone(scaled(pictures))["feature_map"].flatten(1).numpy()
    error = np.abs(points[:, [0, 32]] - places[:, 0]).max(axis=1) / 2
    assert np.median(error) < 0.02, "of the picture's width"


def test_the_shipped_trunk_says_how_it_was_made() -> None:
    path = find_artefact(KEYPOINTS_SHA256)
    assert artefact_digest(path) == KEYPOINTS_SHA256
    note = json.loads(path.with_name(f"{KEYPOINTS_SHA256}.json").read_text())
    assert note["command"].startswith("python -m deploy.pretraining ")
