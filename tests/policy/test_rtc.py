"""Real-time chunking: weights of the previous chunk, as LeRobot has them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from lerobot.configs import RTCAttentionSchedule
from lerobot.policies.rtc import RTCConfig, RTCProcessor

from policy.flow import guidance
from policy.rtc import prefix_weights, previous_chunk


@given(
    delay=st.integers(0, 60),
    horizon=st.integers(0, 50),
    chunk_size=st.integers(1, 50),
    schedule=st.sampled_from(["LINEAR", "EXP"]),
)
def test_weights_are_those_of_lerobots_processor(
    delay: int, horizon: int, chunk_size: int, schedule: str
) -> None:
    horizon = min(horizon, chunk_size)
    processor = RTCProcessor(RTCConfig(prefix_attention_schedule=RTCAttentionSchedule[schedule]))
    theirs = processor.get_prefix_weights(delay, horizon, chunk_size)
    ours = prefix_weights(delay, horizon, chunk_size, schedule)
    assert ours.shape == (chunk_size,)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-6)


def test_an_impossible_delay_or_horizon_binds_no_more_than_the_chunk() -> None:
    assert prefix_weights(9, 99, 4).tolist() == [1.0] * 4
    assert prefix_weights(-1, -1, 4).tolist() == [0.0] * 4


def test_what_is_left_of_a_chunk_keeps_its_rows_in_front() -> None:
    left = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert previous_chunk(left, 4).tolist() == [[1, 2], [3, 4], [3, 4], [3, 4]]
    assert previous_chunk(left, 1).tolist() == [[1, 2]]


def test_guidance_is_bounded_at_the_first_step_where_the_formula_is_not() -> None:
    weights = guidance(10)
    assert weights[0] == 10.0
    assert (weights[1:] <= 10.0).all()
    assert np.isfinite(weights).all()
