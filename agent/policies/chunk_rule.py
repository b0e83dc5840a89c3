"""Is a policy quick enough for the length of its chunks? Pure.

    2 x latency + blend + margin <= chunk        all in ticks of the control loop

A chunk is asked for while the one before is played, and its first `latency` actions are past when
it comes. Twice the latency leaves room for one answer that is lost or late; `blend` ticks join the
two chunks; `margin` is the scheduler's own reserve.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MARGIN_TICKS = 2
BLEND_TICKS = 8


@dataclass(frozen=True)
class ChunkRule:
    """What the control loop needs beside the latency, in ticks."""

    blend_ticks: int = BLEND_TICKS
    margin_ticks: int = MARGIN_TICKS

    def needed_ticks(self, latency_ms: float, fps: float, chunk_size: int) -> int:
        """How long a chunk must be at this latency; half of one at most is blended."""
        blend = min(self.blend_ticks, chunk_size // 2)
        return 2 * _ticks(latency_ms, fps) + blend + self.margin_ticks

    def shortfall(self, latency_ms: float, fps: float, chunk_size: int) -> str | None:
        """One line with the numbers when the chunk is too short, None when it is long enough."""
        needed = self.needed_ticks(latency_ms, fps, chunk_size)
        if needed <= chunk_size:
            return None
        beside = self.needed_ticks(0.0, fps, chunk_size)
        latency, room = _ticks(latency_ms, fps), max(0, chunk_size - beside) // 2
        return (
            f"a chunk takes {latency_ms:.0f} ms (99th percentile) on this host, {latency} ticks at "
            f"{fps:g} Hz: 2 x {latency} + blend {beside - self.margin_ticks} + margin "
            f"{self.margin_ticks} = {needed} ticks, and a chunk has {chunk_size}; "
            f"allowed are {room / fps * 1000.0:.0f} ms"
        )


def _ticks(latency_ms: float, fps: float) -> int:
    return math.ceil(latency_ms / 1000.0 * fps)
