from __future__ import annotations

import numpy as np
import pytest
import torch
from synthetic_pick import frames_of, normalizer_of, tiny_spec

from policy.batches import PADDING, VectorBatches
from policy.build import build_policy, read_weights, trainable_parameters, write_weights
from policy.errors import BadStatistics, BadWeights, NoEpisodes
from policy.spec import ACTION, CameraSpec
from policy.train import LocalTraining, held_out_error
from policy.weights import weights_digest

SPEC = tiny_spec()
FRAMES = frames_of(4)
NORMALIZER = normalizer_of(FRAMES, SPEC)


def trained(steps: int, mu: float = 0.0) -> tuple[torch.nn.Module, float]:
    policy = build_policy(SPEC, NORMALIZER, seed=1)
    base = read_weights(policy)
    training = LocalTraining(policy, SPEC)
    training.set_proximal(base, mu)
    batches = VectorBatches(FRAMES, SPEC, NORMALIZER, seed=2)
    for _ in range(steps):
        training.step(batches.draw())
    after = read_weights(policy)
    moved = sum(float(((after[name] - base[name]) ** 2).sum()) for name in base)
    return policy, moved


def test_equal_seeds_build_equal_weights_and_leave_the_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = weights_digest(read_weights(build_policy(SPEC, NORMALIZER, seed=7)))
    assert torch.equal(torch.rand(3), expected)
    assert one == weights_digest(read_weights(build_policy(SPEC, NORMALIZER, seed=7)))
    assert one != weights_digest(read_weights(build_policy(SPEC, NORMALIZER, seed=8)))


def test_a_normaliser_of_other_features_builds_nothing() -> None:
    other = tiny_spec(environment_names=["ball.x_m"])
    with pytest.raises(BadStatistics):
        build_policy(other, NORMALIZER, seed=0)


def test_only_trainable_floating_tensors_are_weights() -> None:
    spec = tiny_spec(cameras=[CameraSpec(name="overhead", height=32, width=32)], use_vae=True)
    policy = build_policy(spec, NORMALIZER, seed=0)
    weights = read_weights(policy)
    buffers = {name for name, _ in policy.named_buffers()}
    assert buffers, "FrozenBatchNorm and the VAE's position table are buffers"
    assert not buffers & set(weights)
    assert all(array.dtype == np.float32 for array in weights.values())
    next(policy.parameters()).requires_grad_(False)
    assert list(read_weights(policy)) == list(weights)[1:]


def test_weights_go_out_and_in_unchanged_and_a_wrong_set_changes_nothing() -> None:
    one, two = build_policy(SPEC, NORMALIZER, 1), build_policy(SPEC, NORMALIZER, 2)
    weights = read_weights(one)
    write_weights(two, weights)
    assert weights_digest(read_weights(two)) == weights_digest(weights)
    bad = {name: array.copy() + 1 for name, array in weights.items()}
    bad[list(bad)[-1]] = np.zeros(1, np.float32)
    with pytest.raises(BadWeights, match="shape"):
        write_weights(two, bad)
    with pytest.raises(BadWeights, match="another policy"):
        write_weights(two, {"a": np.zeros(1, np.float32)})
    assert weights_digest(read_weights(two)) == weights_digest(weights)


def test_read_weights_are_copies_that_training_does_not_change() -> None:
    policy = build_policy(SPEC, NORMALIZER, 1)
    before = read_weights(policy)
    digest = weights_digest(before)
    LocalTraining(policy, SPEC).step(VectorBatches(FRAMES, SPEC, NORMALIZER).draw())
    assert weights_digest(before) == digest
    assert weights_digest(read_weights(policy)) != digest


def test_training_lowers_the_error_on_episodes_it_has_not_seen() -> None:
    unseen = VectorBatches(frames_of(2, seed=9), SPEC, NORMALIZER)
    before, _ = trained(0)
    after, _ = trained(60)
    untrained = held_out_error(before, unseen.ordered(32), NORMALIZER)
    result = held_out_error(after, unseen.ordered(32), NORMALIZER)
    assert result.frames == 48
    assert result.action_mae < 0.7 * untrained.action_mae
    assert result.loss < 0.7 * untrained.loss


def test_the_proximal_term_pulls_towards_the_base() -> None:
    _, free = trained(40)
    _, held = trained(40, mu=10.0)
    _, tight = trained(40, mu=1000.0)
    assert tight < held < 0.5 * free


def test_the_gradient_of_the_proximal_term_is_mu_times_the_distance() -> None:
    policy = build_policy(SPEC, NORMALIZER, 1)
    training = LocalTraining(policy, SPEC)
    base = {name: array - 0.5 for name, array in read_weights(policy).items()}
    training.set_proximal(base, mu=3.0)
    training._proximal().backward()
    for parameter in trainable_parameters(policy).values():
        torch.testing.assert_close(parameter.grad, torch.full_like(parameter, 1.5))
    with pytest.raises(BadWeights):
        training.set_proximal({"a": np.zeros(1, np.float32)}, 1.0)


def test_held_out_error_is_lerobots_loss_and_leaves_the_mode_alone() -> None:
    policy = build_policy(SPEC, NORMALIZER, 1).train()
    batch = VectorBatches(FRAMES, SPEC, NORMALIZER).draw()
    loss, _ = policy(batch)  # without dropout and VAE, training and inference agree
    assert held_out_error(policy, [batch], NORMALIZER).loss == pytest.approx(loss.item(), rel=1e-5)
    assert policy.training


def test_held_out_error_is_in_raw_joint_units_and_leaves_padding_out() -> None:
    class Off(torch.nn.Module):
        """Wrong by one normalised unit everywhere, by a thousand where there is padding."""

        def predict_action_chunk(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return batch[ACTION] + 1.0 + 1000.0 * batch[PADDING].unsqueeze(-1)

    batches = VectorBatches(FRAMES, SPEC, NORMALIZER)
    result = held_out_error(Off(), batches.ordered(50), NORMALIZER)
    assert result.loss == pytest.approx(1.0, rel=1e-5)
    assert result.action_mae == pytest.approx(float(NORMALIZER.std(ACTION).mean()), rel=1e-5)
    assert result.frames == batches.examples


def test_nothing_held_out_is_said_and_not_scored_as_zero() -> None:
    with pytest.raises(NoEpisodes):
        held_out_error(build_policy(SPEC, NORMALIZER, 1), [], NORMALIZER)


def test_a_rate_that_is_set_is_the_rate_of_the_steps() -> None:
    def moved(rate: float) -> float:
        policy = build_policy(SPEC, NORMALIZER, 1)
        training = LocalTraining(policy, SPEC)
        batches = VectorBatches(FRAMES, SPEC, NORMALIZER, seed=2)
        for _ in range(60):  # past the warm-up
            training.step(batches.draw())
        before = read_weights(policy)
        training.set_rate(rate)
        training.step(batches.draw())
        after = read_weights(policy)
        return max(float(np.abs(after[name] - before[name]).max()) for name in before)

    assert moved(1e-4) == pytest.approx(moved(1e-3) / 10, rel=0.05)
