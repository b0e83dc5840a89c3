"""What a robot claims is bounded where it is read, and arrives as the trainer wrote it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from protocol.contribution import MAX_LOSS, Contribution
from protocol.flower import pack, unpack

COUNTS = st.integers(0, 2**53)
CONTRIBUTIONS = st.builds(
    Contribution,
    base_digest=st.text("0123456789abcdef", min_size=64, max_size=64),
    base_round=COUNTS,
    steps=COUNTS,
    examples=COUNTS,
    loss=st.none() | st.floats(-MAX_LOSS, MAX_LOSS),
    window_id=st.none() | st.text(min_size=1, max_size=64),
    sequence=COUNTS,
)


@given(CONTRIBUTIONS, st.binary(max_size=50))
def test_what_the_trainer_wrote_is_what_the_coordinator_reads(
    work: Contribution, delta: bytes
) -> None:
    assert unpack(Contribution, pack(work, delta), 50) == (work, delta)


@pytest.mark.parametrize(
    "claim",
    [
        {"base_digest": "a" * 63},
        {"base_digest": "A" * 64},
        {"base_digest": None},
        {"steps": -1},
        {"steps": 2**53 + 1},
        {"steps": 1.5},
        {"steps": True},
        {"examples": "12"},
        {"examples": None},
        {"loss": math.nan},
        {"loss": math.inf},
        {"loss": 1.1 * MAX_LOSS},
        {"window_id": ""},
        {"window_id": "w" * 65},
        {"sequence": -1},
        {"weight": 9.0},
        {"accepted": True},
    ],
)
def test_a_claim_out_of_bounds_or_beyond_what_a_robot_may_say_is_refused(
    claim: dict[str, object],
) -> None:
    honest = {
        "base_digest": "a" * 64, "base_round": 1, "steps": 2, "examples": 3, "loss": 0.5,
        "window_id": None, "sequence": 4,
    }  # fmt: skip
    Contribution.model_validate(honest)
    with pytest.raises(ValidationError, match=next(iter(claim))):
        Contribution.model_validate(honest | claim)
