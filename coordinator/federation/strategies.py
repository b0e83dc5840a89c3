"""Flower's own strategy classes by name: what each needs, and one round of aggregation with it.

The strategies that remember something between rounds (FedAvgM, FedAdam, FedYogi) are given their
memory back from a file, because every round is a process of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp import exception as flower_errors
from flwr.serverapp import strategy as flower

from coordinator.federation.errors import RoundFailed, UnknownStrategy
from coordinator.federation.flower_runtime import reply_message
from coordinator.federation.orders import StrategyConfig
from policy.errors import PolicyError
from policy.weights import Array, Weights, load_weights_with_metadata, save_weights

WEIGHT_KEY = "num-examples"
LOSS_KEY = "train_loss"
MEMORY_NAME = "strategy.safetensors"
MEMORY_KEY = "armada.strategy"

Params = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """A strategy: its class, the parameters it takes, the fewest replies it is defined for."""

    build: Callable[..., flower.FedAvg]
    params: frozenset[str]
    min_replies: Callable[[Params], int]
    required: frozenset[str] = frozenset()


def _one(_params: Params) -> int:
    return 1


def _krum(params: Params) -> int:
    return 2 * int(params.get("num_malicious_nodes", 0)) + 3


def _multikrum(params: Params) -> int:
    # With fewer, Flower selects everybody and nothing is defended.
    faulty = int(params.get("num_malicious_nodes", 0))
    return max(2 * faulty + 3, int(params.get("num_nodes_to_select", 1)) + faulty)


def _bulyan(params: Params) -> int:
    return 4 * int(params.get("num_malicious_nodes", 0)) + 3


def _median(_params: Params) -> int:
    return 3  # of two it is the plain mean


def _trimmed(params: Params) -> int:
    # int(beta * n) replies are cut at each end; below this n it is the plain mean.
    beta = float(params.get("beta", 0.2))
    return math.ceil(1 / beta) if beta > 0 else 1


_ADAPTIVE = frozenset({"eta", "eta_l", "beta_1", "beta_2", "tau"})
_FAULTY = frozenset({"num_malicious_nodes"})

TABLE: dict[str, Row] = {
    "fedavg": Row(flower.FedAvg, frozenset(), _one),
    "fedprox": Row(flower.FedProx, frozenset({"proximal_mu"}), _one),
    "fedavgm": Row(flower.FedAvgM, frozenset({"server_learning_rate", "server_momentum"}), _one),
    "fedadam": Row(flower.FedAdam, _ADAPTIVE, _one),
    "fedyogi": Row(flower.FedYogi, _ADAPTIVE, _one),
    "krum": Row(flower.Krum, _FAULTY, _krum),
    "multikrum": Row(flower.MultiKrum, _FAULTY | {"num_nodes_to_select"}, _multikrum),
    "bulyan": Row(flower.Bulyan, _FAULTY, _bulyan),
    "fedmedian": Row(flower.FedMedian, frozenset(), _median),
    "fedtrimmedavg": Row(flower.FedTrimmedAvg, frozenset({"beta"}), _trimmed),
    "qfedavg": Row(
        flower.QFedAvg,
        frozenset({"client_learning_rate", "q"}),
        _one,
        required=frozenset({"client_learning_rate"}),
    ),
}


@dataclass(frozen=True)
class Contribution:
    """An accepted reply as a strategy sees it: its delta, its weight and its training loss."""

    delta: Weights
    weight: float
    loss: float | None


def row(config: StrategyConfig) -> Row:
    """The table's row; raises UnknownStrategy for a name or parameter that is not there."""
    found = TABLE.get(config.name)
    if found is None:
        raise UnknownStrategy(
            f"strategy {config.name!r} is unknown; there are {', '.join(sorted(TABLE))}"
        )
    if unknown := set(config.params) - found.params:
        allowed = ", ".join(sorted(found.params)) or "no parameters"
        raise UnknownStrategy(
            f"strategy {config.name} has no parameter {sorted(unknown)[0]!r}; it takes {allowed}"
        )
    if missing := found.required - set(config.params):
        raise UnknownStrategy(f"strategy {config.name} needs the parameter {sorted(missing)[0]!r}")
    return found


def min_replies(config: StrategyConfig) -> int:
    """Fewest replies this strategy is defined for; raises UnknownStrategy."""
    found = row(config)
    try:
        return found.min_replies(config.params)
    except (TypeError, ValueError) as error:
        raise UnknownStrategy(f"strategy {config.name}: a parameter is not a number") from error


def aggregate(
    config: StrategyConfig,
    base: Weights,
    contributions: list[Contribution],
    round_number: int,
    memory: Mapping[str, Array] | None = None,
) -> tuple[Weights, Weights]:
    """New weights (float32, the base's order) and the strategy's new memory (maybe empty).

    `memory` is what an earlier call returned. Raises UnknownStrategy if the strategy does not
    exist or is not defined for so few replies, RoundFailed if it cannot aggregate these.
    """
    needed = min_replies(config)
    if len(contributions) < needed:
        raise UnknownStrategy(
            f"strategy {config.name} needs {needed} replies; {len(contributions)} were accepted"
        )
    build = row(config).build
    try:
        strategy = build(weighted_by_key=WEIGHT_KEY, **config.params)
    except (TypeError, ValueError) as error:
        raise UnknownStrategy(f"strategy {config.name}: {error}") from error
    _prepare(strategy, base, memory or {})
    replies = [
        reply_message(_record(base, contribution, config.name), node_id)
        for node_id, contribution in enumerate(contributions, start=2)
    ]
    try:
        record, _metrics = strategy.aggregate_train(round_number, replies)
    except (
        flower_errors.AggregationError,
        flower_errors.InconsistentMessageReplies,
    ) as error:
        raise RoundFailed(f"strategy {config.name} cannot aggregate: {error}") from error
    if record is None:
        raise RoundFailed(f"strategy {config.name} gave no aggregate")
    weights = {name: np.asarray(record[name].numpy(), dtype=np.float32) for name in base}
    if bad := [name for name, value in weights.items() if not np.all(np.isfinite(value))]:
        raise RoundFailed(f"the aggregate of {config.name} is not finite in {bad[0]}")
    return weights, _memory_of(strategy, list(base))


def load_memory(folder: Path, config: StrategyConfig, base_digest: str) -> Weights | None:
    """What the strategy remembered with this base; None if there is nothing that fits."""
    try:
        memory, metadata = load_weights_with_metadata(folder / MEMORY_NAME)
    except (FileNotFoundError, PolicyError):
        return None
    expected = _memory_label(config, base_digest)
    return memory if metadata.get(MEMORY_KEY) == expected else None


def save_memory(folder: Path, config: StrategyConfig, base_digest: str, memory: Weights) -> None:
    """Keep what the strategy remembers, for the round that starts from `base_digest`."""
    path = folder / MEMORY_NAME
    if memory:
        save_weights(path, memory, {MEMORY_KEY: _memory_label(config, base_digest)})
    else:
        path.unlink(missing_ok=True)


def _memory_label(config: StrategyConfig, base_digest: str) -> str:
    return json.dumps([config.name, base_digest])


def _record(base: Weights, contribution: Contribution, name: str) -> RecordDict:
    metrics: dict[str, int | float | list[int] | list[float]] = {WEIGHT_KEY: contribution.weight}
    if name == "qfedavg":
        if contribution.loss is None or not contribution.loss >= 0:
            raise RoundFailed("qfedavg needs the training loss of every reply, not below 0")
        metrics[LOSS_KEY] = contribution.loss
    # A sum of tensors without dimensions is a numpy scalar, which Flower does not take.
    arrays = {
        key: FlowerArray(np.asarray(value + contribution.delta[key])) for key, value in base.items()
    }
    return RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord(metrics)})


def _prepare(strategy: Any, base: Weights, memory: Mapping[str, Array]) -> None:
    """Give a strategy what its `configure_train` would have kept, and its memory."""
    if isinstance(strategy, flower.FedAvgM | flower.QFedAvg):
        strategy.current_arrays = ArrayRecord(
            {key: FlowerArray(value) for key, value in base.items()}
        )
    if isinstance(strategy, flower.FedAvgM) and memory:
        strategy.momentum_vector = [memory[f"momentum/{key}"] for key in base]
    if isinstance(strategy, flower.FedAdam | flower.FedYogi):
        strategy.current_arrays = dict(base)
        if memory:
            strategy.m_t = {key: memory[f"m/{key}"] for key in base}
            strategy.v_t = {key: memory[f"v/{key}"] for key in base}


def _memory_of(strategy: Any, names: list[str]) -> Weights:
    memory: Weights = {}
    if isinstance(strategy, flower.FedAvgM) and strategy.momentum_vector is not None:
        for name, value in zip(names, strategy.momentum_vector, strict=True):
            memory[f"momentum/{name}"] = np.asarray(value)
    if isinstance(strategy, flower.FedAdam | flower.FedYogi) and strategy.m_t and strategy.v_t:
        for name in names:
            memory[f"m/{name}"] = np.asarray(strategy.m_t[name])
            memory[f"v/{name}"] = np.asarray(strategy.v_t[name])
    return memory
