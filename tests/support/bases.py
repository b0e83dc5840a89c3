"""Bases for tests of the trainer."""

from __future__ import annotations

from synthetic_pick import frames_of, normalizer_of, tiny_spec

from agent.training.exchange import BaseInfo
from policy.build import build_policy, read_weights
from policy.weights import Weights, weights_digest

SPEC = tiny_spec()
NORMALIZER = normalizer_of(frames_of(4), SPEC)


def base(round_number: int, seed: int = 0, **fields: object) -> tuple[Weights, BaseInfo]:
    """Weights of a fresh policy, described as the base of a round."""
    weights = read_weights(build_policy(SPEC, NORMALIZER, seed))
    values: dict[str, object] = {
        "digest": weights_digest(weights),
        "round": round_number,
        "spec": SPEC.to_json(),
        "normalizer": NORMALIZER.to_json(),
        "normalizer_digest": NORMALIZER.digest(),
    }
    return weights, BaseInfo.model_validate(values | fields)
