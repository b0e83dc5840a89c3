"""The gate: what a contribution must be before any strategy sees it. Pure; numpy only.

In this order, and the first that fails is the reason that goes into the audit log:
  1. The delta has exactly the base's tensors: names, order, shapes, float32.
  2. Every number is finite.
  3. It is eligible under the window's terms: base, staleness, merged once, steps.
  4. It names at least one example.
What is accepted is then bounded: examples count up to the cap, a stale contribution weighs
1/sqrt(1 + staleness) (FedBuff, Nguyen et al. 2022), and a delta longer than `clip_factor` times the
round's median length is scaled down to that length, so that no single robot carries the mean away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from coordinator.campaign.reply import ContributionReply
from coordinator.federation.orders import GateConfig
from policy.weights import Array, Weights
from protocol.eligibility import Terms, explain, judge_work, staleness


@dataclass(frozen=True)
class Received:
    """A contribution's record and its delta."""

    reply: ContributionReply
    delta: Weights


@dataclass(frozen=True)
class Standing:
    """What the coordinator judges by: the present base's weights, the window's terms, and from
    which base each robot's work was last merged."""

    base: Weights
    terms: Terms
    merged_bases: Mapping[str, str]


def judge(received: Sequence[Received], standing: Standing, config: GateConfig) -> list[Received]:
    """The same in the same order, with the record filled in and the delta clipped if need be."""
    reasons = [_refusal(one, standing) for one in received]
    norms = [
        norm(one.delta) if reason is None else math.nan
        for one, reason in zip(received, reasons, strict=True)
    ]
    usual = [length for length in norms if not math.isnan(length)]
    limit = config.clip_factor * median(usual) if usual else 0.0
    judged = []
    for one, reason, length in zip(received, reasons, norms, strict=True):
        reply, delta = one.reply, one.delta
        age = staleness(reply.base_digest, standing.terms.bases)
        outcome: dict[str, object] = {"reason": reason, "staleness": age}
        if reason is None:
            clipped = length > limit > 0
            delta = _scaled(delta, limit / length) if clipped else delta
            weight = min(reply.examples, config.max_examples) / math.sqrt(1 + (age or 0))
            outcome |= {
                "accepted": True, "weight": weight, "update_norm": length, "clipped": clipped,
            }  # fmt: skip
        judged.append(Received(reply.model_copy(update=outcome), delta))
    return judged


def norm(delta: Mapping[str, Array]) -> float:
    """Euclidean length over all tensors, summed in float64."""
    squares = (float(np.sum(np.square(value, dtype=np.float64))) for value in delta.values())
    return math.sqrt(sum(squares))


def _refusal(received: Received, standing: Standing) -> str | None:
    reply, terms = received.reply, standing.terms
    bad_tensors = _wrong_schema(received.delta, standing.base) or _not_finite(received.delta)
    if bad_tensors:
        return bad_tensors
    merged_base = standing.merged_bases.get(reply.agent_id)
    refusal = judge_work(reply.base_digest, reply.steps, merged_base, terms)
    if refusal is not None:
        return explain(refusal, reply.base_digest, reply.steps, terms)
    return None if reply.examples else "examples must be a positive integer, not 0"


def _wrong_schema(delta: Weights, base: Weights) -> str | None:
    if list(delta) != list(base):
        odd = sorted(set(delta) ^ set(base))
        what = f"only on one side: {', '.join(odd[:3])}" if odd else "their order differs"
        return f"tensors differ from the base's ({what})"
    for name, value in delta.items():
        expected = base[name]
        if value.shape != expected.shape or value.dtype != np.float32:
            return (
                f"tensor {name} is {value.dtype}{list(value.shape)}, "
                f"not float32{list(expected.shape)}"
            )
    return None


def _not_finite(delta: Weights) -> str | None:
    for name, value in delta.items():
        bad = int(value.size - np.count_nonzero(np.isfinite(value)))
        if bad:
            return f"tensor {name} holds {bad} numbers that are not finite"
    return None


def _scaled(delta: Weights, factor: float) -> Weights:
    # In float64: a factor of 1e-45 and below, for a huge delta, has no precision left in float32.
    return {
        name: np.asarray(value.astype(np.float64) * factor, dtype=np.float32)
        for name, value in delta.items()
    }
