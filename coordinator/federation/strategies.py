"""Flower's own strategy classes for our models of them, and one round of aggregation with one.

The strategies that remember something between rounds (FedAvgM, FedAdam, FedYogi) are given their
memory back from a file, because every round is a process of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp import exception as flower_errors
from flwr.serverapp import strategy as flower

from coordinator import config
from coordinator.config import AnyStrategy
from coordinator.federation.errors import RoundFailed
from coordinator.federation.fleet import reply_message
from coordinator.federation.gate import Received
from policy.errors import PolicyError
from policy.weights import Array, Weights, load_weights_with_metadata, save_weights

WEIGHT_KEY = "num-examples"
LOSS_KEY = "train_loss"
MEMORY_NAME = "strategy.safetensors"
MEMORY_KEY = "armada.strategy"

# One row a strategy; its parameters are those of its model, less the robots' own.
CLASSES: dict[type[AnyStrategy], type[flower.FedAvg]] = {
    config.FedAvg: flower.FedAvg,
    config.FedProx: flower.FedProx,
    config.FedAvgM: flower.FedAvgM,
    config.FedAdam: flower.FedAdam,
    config.FedYogi: flower.FedYogi,
    config.Krum: flower.Krum,
    config.MultiKrum: flower.MultiKrum,
    config.Bulyan: flower.Bulyan,
    config.FedMedian: flower.FedMedian,
    config.FedTrimmedAvg: flower.FedTrimmedAvg,
    config.QFedAvg: flower.QFedAvg,
}


def aggregate(
    model: AnyStrategy,
    base: Weights,
    contributions: Sequence[Received],
    round_number: int,
    memory: Mapping[str, Array] | None = None,
) -> tuple[Weights, Weights]:
    """New weights (float32, the base's order) and the strategy's new memory (maybe empty).

    `memory` is what an earlier call returned. Raises RoundFailed if the strategy is not defined for
    so few replies, or cannot aggregate these.
    """
    if len(contributions) < model.min_replies:
        raise RoundFailed(
            f"strategy {model.name} needs {model.min_replies} replies; "
            f"{len(contributions)} were accepted"
        )
    strategy = CLASSES[type(model)](
        weighted_by_key=WEIGHT_KEY, **model.model_dump(exclude={"name", "proximal_mu"})
    )
    _prepare(strategy, base, memory or {})
    replies = [
        reply_message(_record(base, contribution, model.name), node_id)
        for node_id, contribution in enumerate(contributions, start=2)
    ]
    try:
        record, _metrics = strategy.aggregate_train(round_number, replies)
    except (
        flower_errors.AggregationError,
        flower_errors.InconsistentMessageReplies,
    ) as error:
        raise RoundFailed(f"strategy {model.name} cannot aggregate: {error}") from error
    if record is None:
        raise RoundFailed(f"strategy {model.name} gave no aggregate")
    weights = {name: np.asarray(record[name].numpy(), dtype=np.float32) for name in base}
    if bad := [name for name, value in weights.items() if not np.all(np.isfinite(value))]:
        raise RoundFailed(f"the aggregate of {model.name} is not finite in {bad[0]}")
    return weights, _memory_of(strategy, list(base))


def load_memory(folder: Path, model: AnyStrategy, base_digest: str) -> Weights | None:
    """What the strategy remembered with this base; None if there is nothing that fits."""
    try:
        memory, metadata = load_weights_with_metadata(folder / MEMORY_NAME)
    except (FileNotFoundError, PolicyError):
        return None
    expected = _memory_label(model, base_digest)
    return memory if metadata.get(MEMORY_KEY) == expected else None


def save_memory(folder: Path, model: AnyStrategy, base_digest: str, memory: Weights) -> None:
    """Keep what the strategy remembers, for the round that starts from `base_digest`."""
    path = folder / MEMORY_NAME
    if memory:
        save_weights(path, memory, {MEMORY_KEY: _memory_label(model, base_digest)})
    else:
        path.unlink(missing_ok=True)


def _memory_label(model: AnyStrategy, base_digest: str) -> str:
    return json.dumps([model.name, base_digest])


def _record(base: Weights, contribution: Received, name: str) -> RecordDict:
    reply = contribution.reply
    metrics: dict[str, int | float | list[int] | list[float]] = {WEIGHT_KEY: reply.weight}
    if name == "qfedavg":
        if reply.loss is None or not reply.loss >= 0:
            raise RoundFailed("qfedavg needs the training loss of every reply, not below 0")
        metrics[LOSS_KEY] = reply.loss
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
