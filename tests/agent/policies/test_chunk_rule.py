"""2 x latency + blend + margin <= chunk, and nothing else, decides whether a policy is quick."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.control.chunk_scheduler import ScheduleRules
from agent.policies.chunk_rule import MARGIN_TICKS, ChunkRule


def test_the_refusal_has_all_numbers() -> None:
    assert ChunkRule(blend_ticks=5, margin_ticks=2).shortfall(260.0, 30.0, 20) == (
        "a chunk takes 260 ms (99th percentile) on this host, 8 ticks at 30 Hz: "
        "2 x 8 + blend 5 + margin 2 = 23 ticks, and a chunk has 20; allowed are 200 ms"
    )


@pytest.mark.parametrize(("latency_ms", "passes"), [(200.0, True), (200.1, False)])
def test_the_bound_is_sharp(latency_ms: float, passes: bool) -> None:
    assert (ChunkRule(5, 2).shortfall(latency_ms, 30.0, 20) is None) is passes


def test_the_margin_is_the_schedulers_own() -> None:
    assert ScheduleRules(fps=30.0).margin_ticks == MARGIN_TICKS == ChunkRule().margin_ticks


@given(
    latency_ms=st.floats(0, 5000),
    fps=st.sampled_from([10.0, 30.0, 50.0]),
    chunk=st.integers(1, 200),
    blend=st.integers(0, 100),
)
def test_the_rule_is_its_formula(latency_ms: float, fps: float, chunk: int, blend: int) -> None:
    latency = math.ceil(latency_ms / 1000.0 * fps)
    needed = 2 * latency + min(blend, chunk // 2) + MARGIN_TICKS
    assert (ChunkRule(blend).shortfall(latency_ms, fps, chunk) is None) is (needed <= chunk)
