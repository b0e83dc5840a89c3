from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.policies.act.configuration_act import ACTConfig
from synthetic_pick import frames_of, normalizer_of, tiny_spec

from policy.batches import PADDING, VectorBatches
from policy.build import build_policy, read_weights, trainable_parameters, write_weights
from policy.checkpoint import checkpoint_facts, load_checkpoint, save_checkpoint
from policy.errors import (
    BadCheckpoint,
    BadStatistics,
    BadWeights,
    NoEpisodes,
    TooLittleMemory,
)
from policy.spec import ACTION, CameraSpec
from policy.train import ErrorSum, LocalTraining, chunk_errors, held_out_error
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


def test_the_error_of_each_joint_is_in_its_own_units_over_any_number_of_batches() -> None:
    class Off(torch.nn.Module):
        def predict_action_chunk(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return batch[ACTION] + 1.0 + 1000.0 * batch[PADDING].unsqueeze(-1)

    batches = VectorBatches(FRAMES, SPEC, NORMALIZER).ordered(7)
    off = Off()
    total = sum((ErrorSum.of(chunk_errors(off, b, NORMALIZER)) for b in batches), ErrorSum())
    assert total.joint_mae == pytest.approx(NORMALIZER.std(ACTION).tolist(), rel=1e-5)
    assert ErrorSum().joint_mae == ()


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


def gradients(micro_batch: int | None, **fields: object) -> dict[str, torch.Tensor]:
    spec = tiny_spec(**fields)
    policy = build_policy(spec, NORMALIZER, 1)
    training = LocalTraining(policy, spec, micro_batch=micro_batch)
    training.step(VectorBatches(FRAMES, spec, NORMALIZER, seed=2).draw())
    return {name: value.grad.clone() for name, value in trainable_parameters(policy).items()}


@pytest.mark.parametrize("micro_batch", [1, 3, 5, 16, 40])
def test_parts_of_a_batch_add_up_to_its_gradient_whatever_is_padding(micro_batch: int) -> None:
    whole = gradients(None)
    for name, gradient in gradients(micro_batch).items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-4, atol=1e-6)


class Hungry(torch.nn.Module):
    """A policy that has memory for so many frames at once, and says so as torch does."""

    def __init__(self, policy: torch.nn.Module, most: int, error: Exception) -> None:
        super().__init__()
        self.policy, self.most, self.error = policy, most, error
        self.config = policy.config

    def forward(self, batch: dict[str, torch.Tensor]) -> object:
        torch.rand(3)  # a step that is tried again starts from the same random numbers
        if len(batch[ACTION]) > self.most:
            raise self.error
        return self.policy(batch)


OUT = torch.OutOfMemoryError("CUDA out of memory")
CPU_OUT = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")


@pytest.mark.parametrize("error", [OUT, CPU_OUT, MemoryError()])
def test_when_memory_runs_out_the_same_step_is_made_in_smaller_parts(error: Exception) -> None:
    policy = build_policy(SPEC, NORMALIZER, 1)
    expected = build_policy(SPEC, NORMALIZER, 1)
    batches = VectorBatches(FRAMES, SPEC, NORMALIZER, seed=2)
    batch = batches.draw()
    loss = LocalTraining(expected, SPEC).step(batch)
    training = LocalTraining(Hungry(policy, 3, error), SPEC)
    assert training.step(batch) == pytest.approx(loss, rel=1e-5)
    assert training.micro_batch == 2, "16 were too many, and 8, and 4"
    for one, two in zip(policy.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0.0, atol=2e-5)


def test_too_little_memory_for_one_frame_and_other_faults_are_not_hidden() -> None:
    policy = build_policy(SPEC, NORMALIZER, 1)
    batch = VectorBatches(FRAMES, SPEC, NORMALIZER).draw()
    with pytest.raises(TooLittleMemory, match="memory_limit_mb"):
        LocalTraining(Hungry(policy, 0, OUT), SPEC).step(batch)
    with pytest.raises(RuntimeError, match="shape"):
        LocalTraining(Hungry(policy, 0, RuntimeError("shape mismatch")), SPEC).step(batch)


def test_a_training_that_is_restored_goes_on_bit_for_bit(tmp_path: Path) -> None:
    spec = tiny_spec(dropout=0.2, use_vae=True)

    def fresh(seed: int) -> LocalTraining:
        return LocalTraining(build_policy(spec, NORMALIZER, seed), spec)

    batches = VectorBatches(FRAMES, spec, NORMALIZER)
    drawn = [batches.draw() for _ in range(8)]
    torch.manual_seed(3)
    one = fresh(1)
    for batch in drawn[:5]:
        one.step(batch)
    tensors, numbers = one.state()
    save_checkpoint(tmp_path / "checkpoint", tensors, "facts")
    for batch in drawn[5:]:
        one.step(batch)
    torch.manual_seed(99)
    two = fresh(2)
    loaded, facts = load_checkpoint(tmp_path / "checkpoint")
    assert facts == checkpoint_facts(tmp_path / "checkpoint") == "facts"
    two.restore(loaded, numbers, weights=True)
    for batch in drawn[5:]:
        two.step(batch)
    assert weights_digest(read_weights(one.policy)) == weights_digest(read_weights(two.policy))
    other = LocalTraining(build_policy(tiny_spec(dim_model=32), NORMALIZER, 1), SPEC)
    with pytest.raises(BadCheckpoint, match="another policy"):
        other.restore(loaded, numbers, weights=True)


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0{}      ", b"pickle" * 20])
def test_what_is_no_checkpoint_is_said(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "checkpoint"
    path.write_bytes(content)
    with pytest.raises(BadCheckpoint):
        load_checkpoint(path)


def test_optimiser_decay_and_clipping_are_lerobots_and_the_specs_keys_go_before() -> None:
    group = LocalTraining(build_policy(SPEC, NORMALIZER, 1), SPEC)._optimizer
    assert isinstance(group, torch.optim.AdamW)
    preset = ACTConfig().get_optimizer_preset()
    options = group.param_groups[0]
    assert options["weight_decay"] == preset.weight_decay == 1e-4
    assert (options["betas"], options["eps"]) == (preset.betas, preset.eps)
    heavy = tiny_spec(weight_decay=0.5)
    training = LocalTraining(build_policy(heavy, NORMALIZER, 1), heavy)
    assert training._optimizer.param_groups[0]["weight_decay"] == 0.5
    assert training._preset.grad_clip_norm == preset.grad_clip_norm


def test_a_backbone_takes_its_own_share_of_every_rate() -> None:
    camera = CameraSpec(name="overhead", height=32, width=32)
    spec = tiny_spec(cameras=[camera], backbone_rate=0.1)
    training = LocalTraining(build_policy(spec, NORMALIZER, 1), spec)

    def rates() -> list[float]:
        return [group["lr"] for group in training._optimizer.param_groups]

    assert rates() == pytest.approx([1e-3 / 50, 1e-4 / 50]), "in the warm-up too"
    training._young_steps = 50
    training.set_rate(5e-4)
    assert rates() == pytest.approx([5e-4, 5e-5])


def test_in_bfloat16_the_weights_stay_float32_and_the_loss_is_near() -> None:
    batch = VectorBatches(FRAMES, SPEC, NORMALIZER).draw()
    losses = []
    for bfloat16 in (False, True):
        training = LocalTraining(build_policy(SPEC, NORMALIZER, 1), SPEC, bfloat16=bfloat16)
        losses.append(training.step(batch))
        weights = read_weights(training.policy)
        assert all(array.dtype == np.float32 for array in weights.values())
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]
