"""The gate: what a contribution must be before any strategy sees it. Pure; numpy only.

In this order, and the first that fails is the reason that goes into the audit log:
  1. The delta has exactly the base's tensors: names, order, shapes, float32.
  2. Every number is finite.
  3. Its base is one of ours, not more than `max_staleness` bases old, and this robot's work from
     that base has not been merged already.
  4. Steps and examples are positive integers.
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

from coordinator.federation.orders import GateConfig
from policy.weights import Array, Weights


@dataclass(frozen=True)
class Claim:
    """What one robot sent: its delta, and what it says about it."""

    agent_id: str
    delta: Weights
    steps: int
    examples: int
    base_digest: str


@dataclass(frozen=True)
class Standing:
    """What the coordinator knows: the present base, all bases with their rounds, and from which
    base each robot's work was last merged."""

    base: Weights
    base_digest: str
    known_bases: Mapping[str, int]
    merged_bases: Mapping[str, str]
    max_staleness: int


@dataclass(frozen=True)
class Verdict:
    """`delta` is set if accepted: clipped if need be. `norm` is the length before clipping."""

    agent_id: str
    reason: str | None
    delta: Weights | None = None
    staleness: int | None = None
    weight: float = 0.0
    norm: float | None = None
    clipped: bool = False

    @property
    def accepted(self) -> bool:
        return self.delta is not None


def judge(claims: Sequence[Claim], standing: Standing, config: GateConfig) -> list[Verdict]:
    """One verdict a claim, in the order of the claims."""
    reasons = [_refusal(claim, standing) for claim in claims]
    norms = [
        norm(claim.delta) if reason is None else math.nan
        for claim, reason in zip(claims, reasons, strict=True)
    ]
    usual = [length for length in norms if not math.isnan(length)]
    limit = config.clip_factor * median(usual) if usual else 0.0
    verdicts = []
    for claim, reason, length in zip(claims, reasons, norms, strict=True):
        age = staleness(claim.base_digest, standing)
        if reason is not None:
            verdicts.append(Verdict(claim.agent_id, reason, staleness=age))
            continue
        clipped = length > limit > 0
        delta = _scaled(claim.delta, limit / length) if clipped else claim.delta
        counted = min(claim.examples, config.max_examples)
        weight = counted / math.sqrt(1 + (age or 0))
        verdicts.append(Verdict(claim.agent_id, None, delta, age, weight, length, clipped))
    return verdicts


def staleness(base_digest: str, standing: Standing) -> int | None:
    """How many bases came after this one; None for a base that is not ours."""
    if base_digest == standing.base_digest:
        return 0
    made_in = standing.known_bases.get(base_digest)
    if made_in is None:
        return None
    later = {digest for digest, number in standing.known_bases.items() if number > made_in}
    return len(later | {standing.base_digest})


def norm(delta: Mapping[str, Array]) -> float:
    """Euclidean length over all tensors, summed in float64."""
    squares = (float(np.sum(np.square(value, dtype=np.float64))) for value in delta.values())
    return math.sqrt(sum(squares))


def _refusal(claim: Claim, standing: Standing) -> str | None:
    return (
        _wrong_schema(claim.delta, standing.base)
        or _not_finite(claim.delta)
        or _wrong_base(claim, standing)
        or _wrong_counts(claim)
    )


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


def _wrong_base(claim: Claim, standing: Standing) -> str | None:
    age = staleness(claim.base_digest, standing)
    if age is None:
        return f"its base {claim.base_digest[:12]} is not one of this campaign"
    if age > standing.max_staleness:
        return f"its base is {age} bases old; at most {standing.max_staleness} are allowed"
    if age > 0 and standing.merged_bases.get(claim.agent_id) == claim.base_digest:
        return f"its work from base {claim.base_digest[:12]} was merged already"
    return None


def _wrong_counts(claim: Claim) -> str | None:
    for what, value in (("steps", claim.steps), ("examples", claim.examples)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            return f"{what} must be a positive integer, not {value!r:.40}"
    return None


def _scaled(delta: Weights, factor: float) -> Weights:
    # In float64: a factor of 1e-45 and below, for a huge delta, has no precision left in float32.
    return {
        name: np.asarray(value.astype(np.float64) * factor, dtype=np.float32)
        for name, value in delta.items()
    }
