from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from synthetic_pick import frames_of, normalizer_of, sketch_of, tiny_spec

from agent.training.errors import BadBase, BadExchangeFile
from agent.training.exchange import (
    BaseInfo,
    TrainingExchange,
    TrainingProgress,
    WorkOrder,
)
from policy.weights import Weights, weights_digest
from protocol.contribution import Contribution
from protocol.messages import HeldOutReport

SPEC = tiny_spec()
NORMALIZER = normalizer_of(frames_of(2), SPEC)


def weights(value: float, size: int = 50) -> Weights:
    return {"b": np.full(size, value, np.float32), "a": np.full((2, 2), value, np.float32)}


def info_of(base: Weights, round_number: int = 0, **fields: object) -> BaseInfo:
    values: dict[str, object] = {
        "digest": weights_digest(base),
        "round": round_number,
        "spec": SPEC.to_json(),
        "normalizer": NORMALIZER.to_json(),
        "normalizer_digest": NORMALIZER.digest(),
    }
    return BaseInfo.model_validate(values | fields)


def contribution(sequence: int, **fields: object) -> Contribution:
    values: dict[str, object] = {
        "base_digest": "d" * 64,
        "base_round": 1,
        "steps": 10,
        "examples": 20,
        "loss": 0.5,
        "sequence": sequence,
    }
    return Contribution.model_validate(values | fields)


def test_an_empty_exchange_has_nothing_and_says_so(tmp_path: Path) -> None:
    exchange = TrainingExchange(tmp_path / "not yet")
    assert exchange.base() is None
    assert exchange.base_info() is None
    assert exchange.base_stamp() is None
    assert exchange.contribution() is None
    assert exchange.work_order() is None
    assert exchange.held_out() == {}
    assert exchange.sketch() is None
    assert exchange.progress() is None
    exchange.clear_work_order()


def test_what_one_process_publishes_another_reads(tmp_path: Path) -> None:
    writer, reader = TrainingExchange(tmp_path), TrainingExchange(tmp_path)
    base = weights(1.0)
    writer.install_base(base, info_of(base, 3, proximal_mu=0.1, max_local_steps=100))
    found = reader.base()
    assert found is not None
    assert found[0] == reader.base_info() == info_of(base, 3, proximal_mu=0.1, max_local_steps=100)
    assert list(found[1]) == ["b", "a"]

    writer.publish_contribution(weights(0.5), contribution(7))
    gained = reader.contribution()
    assert gained is not None
    assert gained[0] == reader.contribution_info() == contribution(7)
    assert weights_digest(gained[1]) == weights_digest(weights(0.5))

    order = WorkOrder(window_id="w1", base_digest="d", steps=5, deadline_unix_s=9.0)
    writer.order_work(order)
    assert reader.work_order() == order
    reader.clear_work_order()
    assert writer.work_order() is None

    sketch = sketch_of(frames_of(1), SPEC)
    writer.publish_sketch(sketch)
    assert reader.sketch() == sketch.to_json()
    progress = TrainingProgress(steps_total=4, baseline={"done": True})
    writer.publish_progress(progress)
    assert reader.progress() == progress


def test_a_base_that_is_not_the_one_announced_leaves_the_old_one(tmp_path: Path) -> None:
    exchange = TrainingExchange(tmp_path)
    base, other = weights(1.0), weights(2.0)
    exchange.install_base(base, info_of(base))
    stamp = exchange.base_stamp()
    with pytest.raises(BadBase, match="digest"):
        exchange.install_base(other, info_of(base))
    with pytest.raises(BadBase, match="normaliser"):
        exchange.install_base(other, info_of(other, normalizer_digest="0" * 64))
    with pytest.raises(BadBase):
        exchange.install_base(other, info_of(other, normalizer={"features": 3}))
    assert exchange.base_stamp() == stamp
    found = exchange.base_info()
    assert found is not None
    assert found.digest == weights_digest(base)


def test_the_stamp_changes_with_every_installation(tmp_path: Path) -> None:
    exchange = TrainingExchange(tmp_path)
    stamps = set()
    for value in (1.0, 2.0, 1.0):
        exchange.install_base(weights(value), info_of(weights(value)))
        stamps.add(exchange.base_stamp())
    assert len(stamps) == 3


@pytest.mark.parametrize("name", ["base.safetensors", "contribution.safetensors"])
def test_a_damaged_file_of_weights_is_said_not_believed(tmp_path: Path, name: str) -> None:
    exchange = TrainingExchange(tmp_path)
    base = weights(1.0)
    exchange.install_base(base, info_of(base))
    exchange.publish_contribution(base, contribution(1))
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-3])
    read = exchange.base if name.startswith("base") else exchange.contribution
    with pytest.raises(BadExchangeFile, match=name.split(".")[0]):
        read()


def test_a_flipped_bit_in_the_base_is_found(tmp_path: Path) -> None:
    exchange = TrainingExchange(tmp_path)
    base = weights(1.0)
    exchange.install_base(base, info_of(base))
    path = tmp_path / "base.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadExchangeFile, match="digest"):
        exchange.base()


def test_damaged_json_is_said_not_believed(tmp_path: Path) -> None:
    exchange = TrainingExchange(tmp_path)
    for name in ("work_order.json", "held_out.json", "sketch.json", "progress.json"):
        (tmp_path / name).write_text('["not", "ours"]')
    for read in (exchange.work_order, exchange.held_out, exchange.sketch, exchange.progress):
        with pytest.raises(BadExchangeFile):
            read()


def test_held_out_results_stay_by_base_and_the_oldest_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.training.exchange._HELD_OUT_KEPT", 3)
    exchange = TrainingExchange(tmp_path)
    for number in range(5):
        exchange.publish_held_out(
            f"base-{number}", HeldOutReport(action_mae=1.0, loss=0.1, frames=5, round=number)
        )
    kept = exchange.held_out()
    assert list(kept) == ["base-2", "base-3", "base-4"]
    assert kept["base-4"].round == 4


def test_a_reader_never_sees_half_of_a_contribution(tmp_path: Path) -> None:
    """The facts and the tensors always belong together, while a writer replaces them."""
    exchange = TrainingExchange(tmp_path)
    exchange.publish_contribution(weights(0.0, 20_000), contribution(0))
    ending = threading.Event()

    def write() -> None:
        number = 0
        while not ending.is_set():
            number += 1
            exchange.publish_contribution(weights(float(number), 20_000), contribution(number))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = set()
        until_s = time.monotonic() + 1.0
        while time.monotonic() < until_s:
            found = TrainingExchange(tmp_path).contribution()
            assert found is not None
            meta, delta = found
            assert (delta["b"] == float(meta.sequence)).all()
            seen.add(meta.sequence)
    finally:
        ending.set()
        writer.join()
    assert len(seen) > 1


def test_what_was_ever_trained_on_is_never_forgotten_and_noted_once(tmp_path: Path) -> None:
    exchange = TrainingExchange(tmp_path / "training")
    assert exchange.trained() == []
    exchange.note_trained(["a" * 64, "b" * 64, "a" * 64])
    exchange.note_trained(["b" * 64, "c" * 64])
    assert TrainingExchange(exchange.folder).trained() == ["a" * 64, "b" * 64, "c" * 64]
