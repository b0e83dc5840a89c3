"""The gate refuses what cannot be averaged and bounds what can."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from coordinator.campaign.reply import ContributionReply
from coordinator.federation.gate import Received, Standing, judge, norm
from coordinator.federation.orders import GateConfig
from protocol.contribution import Contribution
from protocol.eligibility import Terms

OLDEST, OLD, NOW = "a" * 64, "b" * 64, "c" * 64


def tensors(value=0.1):
    return {"w": np.full((2, 2), value, np.float32), "b": np.full(3, value, np.float32)}


def standing(merged_bases=None, **changes):
    terms = Terms(**{"bases": (NOW, OLD, OLDEST), "max_staleness": 1} | changes)
    return Standing(tensors(0.0), terms, merged_bases or {})


def claim(agent_id="arm-1", delta=None, **changes):
    fields = {
        "agent_id": agent_id, "accepted": False, "base_digest": NOW, "base_round": 4, "steps": 5,
        "examples": 50, "loss": 0.5, "sequence": 1,
    }  # fmt: skip
    return Received(ContributionReply(**fields | changes), delta or tensors())


def only(one, place=None, config=None):
    return judge([one], place or standing(), config or GateConfig())[0].reply


def test_good_work_passes_unchanged_with_its_examples_as_weight():
    (received,) = judge([claim()], standing(), GateConfig())
    reply = received.reply
    assert reply.accepted
    assert (reply.weight, reply.staleness, reply.clipped) == (50, 0, False)
    np.testing.assert_array_equal(received.delta["w"], tensors()["w"])


def test_what_a_robot_claimed_stays_in_its_record():
    before = claim().reply
    after = only(claim())
    assert after.model_dump(include=set(Contribution.model_fields)) == before.model_dump(
        include=set(Contribution.model_fields)
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_number_that_is_not_finite_refuses_the_whole_update(bad):
    delta = tensors()
    delta["b"][1] = bad
    reply = only(claim(delta=delta))
    assert not reply.accepted
    assert reply.reason == "tensor b holds 1 numbers that are not finite"


@pytest.mark.parametrize(
    ("delta", "reason"),
    [
        ({"w": np.zeros((2, 2), np.float32)}, "only on one side: b"),
        (tensors() | {"x": np.zeros(1, np.float32)}, "only on one side: x"),
        (dict(reversed(tensors().items())), "order differs"),
        (tensors() | {"b": np.zeros(4, np.float32)}, r"float32\[4\], not float32\[3\]"),
        (tensors() | {"b": np.zeros((3, 1), np.float32)}, r"not float32\[3\]"),
        (tensors() | {"b": np.zeros(3, np.float64)}, r"float64\[3\], not float32\[3\]"),
        (tensors() | {"b": np.zeros(3, np.int64)}, r"int64\[3\]"),
    ],
)
def test_tensors_that_are_not_the_bases_are_refused(delta, reason):
    reply = only(claim(delta=delta))
    assert not reply.accepted
    assert re.search(reason, reply.reason)


@pytest.mark.parametrize("examples", [-9, 1.5, True, "12", None, 2**53 + 1])
def test_a_weight_that_is_no_positive_integer_is_refused(examples):
    with pytest.raises(ValidationError, match="examples"):
        claim(examples=examples)
    assert only(claim(examples=0)).reason.startswith("examples must be a positive integer")


def test_no_step_is_no_work():
    assert only(claim(steps=0)).reason.startswith("nothing gained yet: 0 steps")


def test_a_weight_above_the_cap_counts_as_the_cap():
    assert only(claim(examples=10**12), config=GateConfig(max_examples=1000)).weight == 1000


def test_a_stale_contribution_weighs_less():
    reply = only(claim(base_digest=OLD))
    assert reply.accepted
    assert reply.staleness == 1
    assert reply.weight == pytest.approx(50 / math.sqrt(2))


def test_a_contribution_that_is_too_old_is_refused():
    reply = only(claim(base_digest=OLDEST))
    assert reply.reason == "its base is 2 bases old; at most 1 are allowed"
    assert reply.staleness == 2


def test_staleness_counts_bases_and_not_rounds_that_failed():
    # Six rounds failed between the two: no base came of them, and the work is one base old.
    reply = only(claim(base_digest=OLD, base_round=3), standing(bases=(NOW, OLD)))
    assert reply.accepted
    assert reply.staleness == 1


def test_an_unknown_base_is_refused():
    assert "not one of this campaign" in only(claim(base_digest="d" * 64)).reason


def test_work_that_was_merged_is_refused_the_second_time():
    place = standing(merged_bases={"arm-1": OLD})
    assert "was merged already" in only(claim(base_digest=OLD), place).reason
    assert only(claim("arm-2", base_digest=OLD), place).accepted


def test_further_work_on_the_present_base_is_new_work():
    # The base is still the same, so nothing of it was merged: the last round failed.
    assert only(claim(), standing(merged_bases={"arm-1": NOW})).accepted


def test_a_delta_far_longer_than_the_others_is_scaled_down_to_the_limit():
    claims = [claim("a"), claim("b"), claim("c", delta=tensors(100.0))]
    calm, _, loud = judge(claims, standing(), GateConfig(clip_factor=2.0))
    assert not calm.reply.clipped
    assert loud.reply.clipped
    assert norm(loud.delta) == pytest.approx(2 * norm(tensors()), rel=1e-5)
    assert loud.reply.update_norm == pytest.approx(norm(tensors(100.0)))
    assert np.all(loud.delta["w"] == loud.delta["w"][0, 0])


def test_the_median_is_taken_over_what_was_accepted():
    nonsense = tensors(1e6)
    nonsense["w"][0, 0] = np.nan
    claims = [claim("a"), claim("b"), *(claim(f"x{i}", delta=nonsense) for i in range(5))]
    replies = [received.reply for received in judge(claims, standing(), GateConfig())]
    assert [reply.accepted for reply in replies] == [True, True, *[False] * 5]
    assert not any(reply.clipped for reply in replies)


def test_deltas_of_nothing_are_no_division_by_zero():
    judged = judge([claim("a", delta=tensors(0.0))] * 3, standing(), GateConfig())
    assert all(one.reply.accepted and not one.reply.clipped for one in judged)


@given(
    st.lists(st.just(0.0) | st.floats(2.0**-99, 2.0**99, width=32), min_size=1, max_size=7),
    st.floats(1, 10),
)
@example([0.0, 2.0**97, 2.0**-52], 1.0)
def test_nothing_that_passes_is_longer_than_the_limit(sizes, factor):
    claims = [claim(str(i), delta=tensors(size)) for i, size in enumerate(sizes)]
    judged = judge(claims, standing(), GateConfig(clip_factor=factor))
    lengths = sorted(norm(c.delta) for c in claims)
    middle = len(lengths) // 2
    median = (lengths[middle] + lengths[-1 - middle]) / 2
    for one in judged:
        assert one.reply.accepted
        assert norm(one.delta) <= factor * median * (1 + 1e-5) or median == 0
