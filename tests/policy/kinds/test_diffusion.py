from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_pick import JOINTS, PLACE, frames_of, normalizer_of

from policy.batches import VectorBatches
from policy.build import build_policy, read_weights, write_weights
from policy.export import check_parity, export_policy, golden_observations, lerobot_chunks
from policy.kinds import NOISE
from policy.kinds.diffusion import DiffusionSpec
from policy.release.goldens import read_goldens
from policy.session import OnnxPolicy, blank_observation
from policy.spec import ACTION, CameraSpec
from policy.statistics import Normalizer
from policy.train import LocalTraining, held_out_error
from policy.weights import weights_digest

FRAMES = frames_of(4)
RANGE = float(np.ptp(FRAMES.vectors[ACTION], axis=0).max())  # raw joint units


def tiny(**fields: object) -> tuple[DiffusionSpec, Normalizer]:
    spec = DiffusionSpec.model_validate(
        {
            "state_names": JOINTS,
            "action_names": JOINTS,
            "environment_names": PLACE,
            "fps": 30,
            "chunk_size": 8,
            "down_dims": (16, 32),
            "step_embed_dim": 16,
            "keypoints": 4,
            "denoising_steps": 2,
            "learning_rate": 1e-2,
        }
        | fields
    )
    return spec, normalizer_of(FRAMES, spec)


def test_training_lowers_the_error_of_the_denoised_actions_on_unseen_episodes() -> None:
    spec, normalizer = tiny(denoising_steps=4, batch_size=64)
    policy = build_policy(spec, normalizer, 0)
    unseen = VectorBatches(frames_of(2, seed=9), spec, normalizer)
    before = held_out_error(policy, unseen.ordered(32), normalizer)
    training = LocalTraining(policy, spec)
    batches = VectorBatches(FRAMES, spec, normalizer, seed=2)
    for _ in range(100):
        training.step(batches.draw())
    after = held_out_error(policy, unseen.ordered(32), normalizer)
    assert after.action_mae < 0.8 * before.action_mae


def test_the_same_weights_have_the_same_held_out_error_although_they_start_from_noise() -> None:
    spec, normalizer = tiny()
    policy = build_policy(spec, normalizer, 0)
    batch = VectorBatches(FRAMES, spec, normalizer).draw()
    errors = {held_out_error(policy, [batch], normalizer).action_mae for _ in range(2)}
    assert len(errors) == 1


def test_weights_go_out_and_in_unchanged() -> None:
    spec, normalizer = tiny()
    one, two = build_policy(spec, normalizer, 1), build_policy(spec, normalizer, 2)
    weights = read_weights(one)
    assert weights_digest(read_weights(two)) != weights_digest(weights)
    write_weights(two, weights)
    assert weights_digest(read_weights(two)) == weights_digest(weights)


def test_the_file_denoises_as_lerobot_does_from_the_same_noise(tmp_path: Path) -> None:
    spec, normalizer = tiny(cameras=[CameraSpec(name="overhead", height=32, width=32)])
    policy = build_policy(spec, normalizer, 0)
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in policy.modules())
    path = tmp_path / "policy.onnx"
    exported = export_policy(policy, spec, normalizer, path)
    observations = golden_observations(spec, normalizer, 3, seed=1)
    chunks = lerobot_chunks(policy, spec, normalizer, observations)
    assert check_parity(path, observations, chunks) < 1e-4 * RANGE
    session = OnnxPolicy(path)
    session.require(spec)
    names = exported.described["golden"]
    paths = (tmp_path / names["observations"], tmp_path / names["actions"])
    assert read_goldens(*paths, spec)[0].observation[NOISE].shape == (8, 6)
    other = {**observations[0], NOISE: observations[1][NOISE]}
    assert np.abs(session.infer(other) - chunks[0]).max() > 1e-2 * RANGE
    assert session.infer(blank_observation(spec)).shape == (8, 6)
    without = {name: value for name, value in observations[0].items() if name != NOISE}
    assert not np.array_equal(session.infer(without), session.infer(without))


def test_cameras_of_two_sizes_are_refused() -> None:
    cameras = [
        CameraSpec(name=name, height=size, width=32) for name, size in (("a", 32), ("b", 48))
    ]
    with pytest.raises(ValueError, match="one size"):
        tiny(cameras=cameras)
