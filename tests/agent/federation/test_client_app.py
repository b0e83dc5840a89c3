"""The client app answers out of the exchange, and declines in one clear line."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from agent.federation.client_app import ClientApp
from agent.federation.errors import RequestDeclined
from agent.training.exchange import BaseInfo, TrainingExchange
from policy.statistics import Normalizer
from policy.weights import weights_digest
from protocol.contribution import Contribution
from protocol.eligibility import Terms
from protocol.episode_keys import episode_key, unpack_keys
from protocol.flower import (
    INSTALL,
    STATISTICS,
    TRAIN,
    InstallReply,
    InstallRequest,
    StatisticsReply,
    StatisticsRequest,
    TrainRequest,
    pack,
    unpack,
)
from protocol.update import decode_update, encode_update

LIMIT = 1 << 20


class Clock:
    """A wall clock that only passes while somebody sleeps; `events` happen at their second."""

    def __init__(self):
        self.now_s = 1000.0
        self.events = {}

    def __call__(self):
        return self.now_s

    def sleep(self, seconds):
        self.now_s += seconds
        for at_s in sorted(self.events):
            if at_s <= self.now_s:
                self.events.pop(at_s)()


@pytest.fixture
def exchange(tmp_path):
    return TrainingExchange(tmp_path / "training")


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def app(exchange, clock):
    exchange.folder.mkdir()
    return ClientApp(exchange, clock, clock.sleep)


def weights(value=0.0):
    return {"w": np.full((2, 3), value, np.float32), "b": np.full(3, value, np.float32)}


def base_info(base, round_number=0):
    normalizer = Normalizer(features={})
    return BaseInfo(
        digest=weights_digest(base),
        round=round_number,
        spec={},
        normalizer=normalizer.to_json(),
        normalizer_digest=normalizer.digest(),
    )


def install_request(base, round_number=0, merged_base=None, **changes):
    info = base_info(base, round_number)
    fields = {
        "round": round_number,
        "base_digest": info.digest,
        "info": info.model_dump(mode="json"),
        "merged_base": merged_base,
    }
    return pack(InstallRequest(**fields | changes), encode_update(base))


def train_request(*bases, local_work="anytime", **changes):
    """`bases`: newest first."""
    fields = {
        "round": 1,
        "terms": Terms(
            bases=tuple(weights_digest(base) for base in bases),
            local_work=local_work,
            max_staleness=len(bases) - 1,
        ),
        "window_id": None,
        "steps": None,
        "proximal_mu": 0.0,
        "time_s": 20.0,
        "precision": "float32",
    }
    return pack(TrainRequest(**fields | changes))


def contribution(base, **changes):
    fields = {
        "base_digest": weights_digest(base),
        "base_round": 0,
        "steps": 7,
        "examples": 70,
        "loss": 0.5,
        "sequence": 1,
    }
    return Contribution(**fields | changes)


def reply_to_train(app, request):
    reply, blob = unpack(Contribution, app.handle(TRAIN, request), LIMIT)
    return reply, decode_update(blob).weights


def test_statistics_are_the_sketch_as_ingest_wrote_it(app, exchange):
    exchange.publish_sketch({"features": {}, "frames": 3})
    _, blob = unpack(
        StatisticsReply, app.handle(STATISTICS, pack(StatisticsRequest(round=0))), LIMIT
    )
    assert json.loads(blob) == {"features": {}, "frames": 3}


def test_no_statistics_yet_is_said(app):
    with pytest.raises(RequestDeclined, match="nothing was recorded"):
        app.handle(STATISTICS, pack(StatisticsRequest(round=0)))


def test_install_puts_the_base_in_place_and_acknowledges_its_digest(app, exchange):
    base = weights(1.5)
    reply, keys = unpack(InstallReply, app.handle(INSTALL, install_request(base, 4)), 0)
    assert keys == b""
    info, stored = exchange.base()
    assert reply.base_digest == info.digest == weights_digest(base)
    assert info.round == 4
    np.testing.assert_array_equal(stored["w"], base["w"])


def test_with_a_base_goes_back_what_was_ever_trained_on_under_the_fleets_secret(app, exchange):
    exchange.note_trained(["a" * 64, "b" * 64])
    exchange.note_trained(["b" * 64, "c" * 64])
    info = base_info(weights()).model_copy(update={"fleet_secret": "5" * 64})
    request = install_request(weights(), info=info.model_dump(mode="json"))
    _, blob = unpack(InstallReply, app.handle(INSTALL, request), LIMIT)
    assert unpack_keys(blob) == tuple(episode_key("5" * 64, each * 64) for each in "abc")


def test_a_base_that_is_not_the_one_announced_leaves_the_old_one(app, exchange):
    app.handle(INSTALL, install_request(weights(1.0)))
    request = pack(
        InstallRequest(
            round=1,
            base_digest=base_info(weights(2.0)).digest,
            info=base_info(weights(2.0), 1).model_dump(mode="json"),
            merged_base=None,
        ),
        encode_update(weights(3.0)),
    )
    with pytest.raises(RequestDeclined, match="digest"):
        app.handle(INSTALL, request)
    assert exchange.base_info().digest == weights_digest(weights(1.0))


def test_a_damaged_base_file_is_replaced_by_the_next_base(app, exchange):
    app.handle(INSTALL, install_request(weights(1.0)))
    (exchange.folder / "base.safetensors").write_bytes(b"garbage")
    app.handle(INSTALL, install_request(weights(2.0), 1))
    assert exchange.base_info().digest == weights_digest(weights(2.0))


def test_train_hands_over_the_newest_snapshot_with_its_real_numbers(app, exchange):
    base = weights()
    app.handle(INSTALL, install_request(base))
    exchange.publish_contribution(weights(0.1), contribution(base, steps=5))
    exchange.publish_contribution(weights(0.25), contribution(base, steps=9, sequence=2))
    reply, delta = reply_to_train(app, train_request(base, precision="float16"))
    assert (reply.steps, reply.examples, reply.loss, reply.sequence) == (9, 70, 0.5, 2)
    np.testing.assert_array_equal(delta["w"], weights(0.25)["w"])


def test_what_was_handed_over_is_remembered_and_what_was_declined_is_not(app, exchange):
    base = weights()
    app.handle(INSTALL, install_request(base))
    exchange.publish_contribution(weights(0.1), contribution(base, steps=5))
    reply_to_train(app, train_request(base))
    exchange.publish_contribution(weights(0.4), contribution(base, steps=9, sequence=2))
    with pytest.raises(RequestDeclined):
        app.handle(TRAIN, train_request(weights(0.9)))
    found = TrainingExchange(exchange.folder).handed_over()
    assert found is not None
    assert found[0].steps == 5
    np.testing.assert_array_equal(found[1]["w"], weights(0.1)["w"])


def test_a_delta_too_large_for_float16_travels_whole(app, exchange):
    base = weights()
    exchange.publish_contribution(weights(70000.0), contribution(base))
    _, delta = reply_to_train(app, train_request(base, precision="float16"))
    np.testing.assert_array_equal(delta["b"], weights(70000.0)["b"])


def test_nothing_gained_is_declined(app, exchange):
    base = weights()
    with pytest.raises(RequestDeclined, match="not published"):
        app.handle(TRAIN, train_request(base))
    exchange.publish_contribution(weights(), contribution(base, steps=0))
    with pytest.raises(RequestDeclined, match="nothing gained yet: 0 steps"):
        app.handle(TRAIN, train_request(base))


def test_work_that_went_into_the_new_base_is_not_handed_over_again(app, exchange):
    old, new = weights(0.0), weights(0.3)
    app.handle(INSTALL, install_request(old))
    exchange.publish_contribution(weights(0.5), contribution(old))
    reply_to_train(app, train_request(old))
    app.handle(INSTALL, install_request(new, 1, merged_base=weights_digest(old)))
    exchange.publish_contribution(weights(0.6), contribution(old, sequence=2))
    with pytest.raises(RequestDeclined, match=r"was merged already, in round 1"):
        app.handle(TRAIN, train_request(new, old))
    exchange.publish_contribution(weights(0.1), contribution(new, sequence=3))
    assert reply_to_train(app, train_request(new, old))[0].sequence == 3


def test_work_that_came_too_late_for_a_round_may_be_offered_again(app, exchange):
    old, new = weights(0.0), weights(0.3)
    app.handle(INSTALL, install_request(old))
    exchange.publish_contribution(weights(0.5), contribution(old))
    reply_to_train(app, train_request(old))
    app.handle(INSTALL, install_request(new, 1, merged_base=None))
    assert reply_to_train(app, train_request(new, old))[0].base_digest == weights_digest(old)


def test_a_round_that_failed_leaves_the_work_to_be_offered_again(app, exchange):
    base = weights()
    app.handle(INSTALL, install_request(base))
    exchange.publish_contribution(weights(0.5), contribution(base))
    for _ in range(2):
        assert reply_to_train(app, train_request(base))[0].steps == 7


def window_request(base, **changes):
    return train_request(base, local_work="window", window_id="w1", steps=10, **changes)


def test_a_window_orders_the_work_and_waits_until_it_is_done(app, exchange, clock):
    base = weights()
    app.handle(INSTALL, install_request(base))
    orders = []

    def work():
        orders.append(exchange.work_order())
        done = contribution(base, steps=10, window_id="w1")
        exchange.publish_contribution(weights(0.5), done)

    clock.events[1004.0] = work
    reply, _ = reply_to_train(app, window_request(base, proximal_mu=0.01))
    assert (orders[0].steps, orders[0].proximal_mu) == (10, 0.01)
    assert orders[0].deadline_unix_s == 1020.0
    assert reply.steps == 10
    assert clock.now_s < 1005.0
    assert exchange.work_order() is None


def test_partial_work_counts_when_the_window_closes(app, exchange, clock):
    base = weights()
    app.handle(INSTALL, install_request(base))
    half_done = contribution(base, steps=4, window_id="w1")
    clock.events[1003.0] = lambda: exchange.publish_contribution(weights(0.2), half_done)
    reply, _ = reply_to_train(app, window_request(base))
    assert reply.steps == 4
    assert 1020.0 <= clock.now_s < 1021.0


def test_work_of_another_window_does_not_count(app, exchange):
    base = weights()
    app.handle(INSTALL, install_request(base))
    exchange.publish_contribution(weights(0.2), contribution(base, window_id="w0"))
    with pytest.raises(RequestDeclined, match="no work in this window"):
        app.handle(TRAIN, window_request(base))
    assert exchange.work_order() is None


def test_a_window_on_a_base_that_is_not_installed_is_declined_at_once(app, clock):
    with pytest.raises(RequestDeclined, match="is not installed"):
        app.handle(TRAIN, window_request(weights(9.0)))
    assert clock.now_s == 1000.0


@pytest.mark.parametrize("kind", ["query", "evaluate", "train.shell"])
def test_an_unknown_message_is_declined(app, kind):
    with pytest.raises(RequestDeclined, match="unknown message type"):
        app.handle(kind, pack(StatisticsRequest(round=0)))


def test_a_request_that_does_not_fit_is_declined(app):
    with pytest.raises(RequestDeclined, match="TrainRequest"):
        app.handle(TRAIN, pack(StatisticsRequest(round=0)))
    with pytest.raises(RequestDeclined, match="blob"):
        app.handle(STATISTICS, pack(StatisticsRequest(round=0), b"x"))


def test_a_damaged_exchange_is_declined_with_its_file(app, exchange):
    (exchange.folder / "contribution.safetensors").write_bytes(b"garbage")
    with pytest.raises(RequestDeclined, match=r"contribution\.safetensors"):
        app.handle(TRAIN, train_request(weights()))


def test_the_client_needs_no_torch():
    code = (
        "import sys, agent.federation.client_app, agent.federation.flower_runtime; "
        "heavy = {'torch', 'lerobot', 'onnxruntime', 'pandas', 'datasets', 'ray'}; "
        "print(sorted(heavy & {name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
