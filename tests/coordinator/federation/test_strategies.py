"""Flower's strategies do what they say on our weights, and only where they are defined."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.campaign.reply import ContributionReply
from coordinator.config import STRATEGIES
from coordinator.federation.errors import RoundFailed
from coordinator.federation.gate import Received
from coordinator.federation.strategies import CLASSES, aggregate, load_memory, save_memory

BASE = {"w": np.array([[1.0, 2.0]], np.float32), "b": np.array(3.0, np.float32)}
PARAMS = {
    "fedprox": {"proximal_mu": 0.01},
    "fedavgm": {"server_momentum": 0.9},
    "qfedavg": {"client_learning_rate": 0.1, "q": 0.1},
}


def gained(value, weight=1.0, loss=0.5):
    delta = {name: np.full_like(array, value) for name, array in BASE.items()}
    reply = ContributionReply(
        agent_id="arm-1", accepted=True, base_digest="a" * 64, base_round=0, steps=1, examples=1,
        loss=loss, sequence=1, weight=weight,
    )  # fmt: skip
    return Received(reply, delta)


def config(name, **params):
    return STRATEGIES[name](name=name, **params or PARAMS.get(name, {}))


def run(strategy, contributions, round_number=1, memory=None):
    return aggregate(strategy, BASE, contributions, round_number, memory)


@pytest.mark.parametrize("name", ["fedavg", "fedprox"])
def test_the_mean_is_weighted_by_examples(name):
    weights, memory = run(config(name), [gained(1.0, 10), gained(4.0, 20)])
    np.testing.assert_allclose(weights["w"], BASE["w"] + 3.0, rtol=1e-6)
    np.testing.assert_allclose(weights["b"], 6.0, rtol=1e-6)
    assert memory == {}


def test_every_strategy_that_can_be_configured_has_its_class():
    assert set(CLASSES) == set(STRATEGIES.values())


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_strategy_gives_float32_in_the_bases_order_and_shapes(name):
    needed = config(name).min_replies
    weights, _ = run(config(name), [gained(0.1 * i, 10 + i) for i in range(needed)])
    assert list(weights) == list(BASE)
    assert {k: (v.dtype, v.shape) for k, v in weights.items()} == {
        k: (np.dtype(np.float32), v.shape) for k, v in BASE.items()
    }


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_the_base_is_never_changed_in_place(name):
    before = {key: value.copy() for key, value in BASE.items()}
    run(config(name), [gained(0.1 * i) for i in range(config(name).min_replies)])
    for key, value in before.items():
        np.testing.assert_array_equal(BASE[key], value)


@pytest.mark.parametrize(
    ("name", "params", "needed"),
    [
        ("fedavg", {}, 1),
        ("krum", {"num_malicious_nodes": 1}, 5),
        ("multikrum", {"num_malicious_nodes": 1, "num_nodes_to_select": 6}, 7),
        ("bulyan", {"num_malicious_nodes": 1}, 7),
        ("fedmedian", {}, 3),
        ("fedtrimmedavg", {"beta": 0.2}, 5),
        ("fedtrimmedavg", {"beta": 0.3}, 4),
    ],
)
def test_fewer_replies_than_a_strategy_is_defined_for_are_refused(name, params, needed):
    strategy = STRATEGIES[name](name=name, **params)
    assert strategy.min_replies == needed
    run(strategy, [gained(float(i)) for i in range(needed)])
    with pytest.raises(RoundFailed, match=f"needs {needed} replies; {needed - 1} were"):
        run(strategy, [gained(float(i)) for i in range(needed - 1)])


def test_trimming_cuts_the_outlier():
    replies = [gained(1.0), gained(1.0), gained(1.0), gained(1.0), gained(1000.0)]
    weights, _ = run(config("fedtrimmedavg", beta=0.2), replies)
    np.testing.assert_allclose(weights["w"], BASE["w"] + 1.0, rtol=1e-6)


def test_qfedavg_without_a_loss_fails_the_round():
    with pytest.raises(RoundFailed, match="training loss"):
        run(config("qfedavg"), [gained(1.0, loss=None)])


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi"])
def test_what_a_strategy_remembers_survives_the_process(name, tmp_path):
    strategy = config(name)
    digest = "a" * 64
    first, memory = run(strategy, [gained(1.0)])
    assert memory
    save_memory(tmp_path, strategy, digest, memory)
    kept = load_memory(tmp_path, strategy, digest)
    with_memory, _ = aggregate(strategy, first, [gained(0.0)], 2, kept)
    without, _ = aggregate(strategy, first, [gained(0.0)], 2, None)
    # With momentum the weights go on moving; without it nothing was gained and nothing moves.
    assert np.all(with_memory["w"] > first["w"] + 1e-4)
    np.testing.assert_allclose(without["w"], first["w"], atol=1e-6)


def test_a_memory_of_another_base_or_strategy_is_not_used(tmp_path):
    strategy = config("fedavgm")
    save_memory(tmp_path, strategy, "a" * 64, {"momentum/w": np.zeros(2, np.float32)})
    assert load_memory(tmp_path, strategy, "b" * 64) is None
    assert load_memory(tmp_path, config("fedadam"), "a" * 64) is None
    assert load_memory(tmp_path, strategy, "a" * 64) is not None
    save_memory(tmp_path, strategy, "a" * 64, {})
    assert load_memory(tmp_path, strategy, "a" * 64) is None


def test_an_aggregate_that_overflows_fails_the_round():
    huge = float(np.finfo(np.float32).max)
    with np.errstate(over="ignore"), pytest.raises(RoundFailed, match="not finite"):
        run(config("fedavgm", server_learning_rate=10.0), [gained(huge)])
