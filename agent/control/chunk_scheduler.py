"""When to ask a policy for its next chunk of actions, and which action belongs to which tick.

Ours, because LeRobot's asynchronous inference unpickles from an open port and stalls at its joins.
Pure: ticks and seconds are passed in, nothing is waited for. The rules:

1. A chunk belongs to the tick of the observation it was asked with: row i is the action for tick
   `observation_tick + i`. The tick is taken from our own record of the request, never from the
   reply; a reply without a record (previous episode, given up, repeated) is not used.
2. Rows for ticks that are already past are skipped, never played late.
3. A chunk of an older observation never replaces one of a newer observation.
4. A new chunk is joined by timestep: over `blend_ticks` ticks its weight grows from 0 to 1,
   against what would have been played at the same tick, as a smoothstep: of the usual ways it has
   the smallest third difference at these lengths (at 8 ticks a third of a straight line's). Two
   chunks that agree are joined without any change; two that differ by d add at most
   1.5d/(blend_ticks+1) to one tick's movement. Where the old chunk has ended, its last action
   stands in for it.
5. The next chunk is asked for when the present one is `replan_ticks` old, or sooner when what is
   left of it covers only the expected latency (a high percentile of those measured, in ticks), the
   margin and the blend; never sooner than `min_replan_ticks` after the last request.
6. With nothing left to play the arm holds; after `max_hold_s` of holding the episode is at fault.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from agent.policies.chunk_rule import BLEND_TICKS, MARGIN_TICKS
from robot_io.limits import smoothstep

Actions = NDArray[np.float32]

_LATENCIES_KEPT = 64  # about ten seconds of requests: old machine load is forgotten
_REQUESTS_KEPT = (
    8  # requests given up are remembered this far back: a late reply still has its tick
)


@dataclass(frozen=True)
class ScheduleRules:
    """Numbers of the schedule; every `*_ticks` counts ticks of the control loop."""

    fps: float
    blend_ticks: int = BLEND_TICKS
    replan_ticks: int = 10
    min_replan_ticks: int = 4
    margin_ticks: int = MARGIN_TICKS
    latency_percentile: float = 95.0
    retry_ticks: int = 15
    max_hold_s: float = 2.0

    def __post_init__(self) -> None:
        """Raise ValueError where a number makes no schedule."""
        if not self.fps > 0:
            raise ValueError(f"fps is {self.fps}: it must be above 0")
        if self.blend_ticks < 0 or self.margin_ticks < 0:
            raise ValueError("blend_ticks and margin_ticks must be 0 or more")
        if self.min_replan_ticks < 1 or self.replan_ticks < self.min_replan_ticks:
            raise ValueError("it must be that 1 <= min_replan_ticks <= replan_ticks")
        if self.retry_ticks < 1 or not self.max_hold_s > 0:
            raise ValueError("retry_ticks must be 1 or more and max_hold_s above 0")
        if not 0 < self.latency_percentile <= 100:
            raise ValueError("latency_percentile must lie in (0, 100]")

    def for_chunk(self, chunk_size: int) -> ScheduleRules:
        """Return the rules for a policy's chunk: asked for by half of it, and blended by then."""
        interval = max(1, min(self.replan_ticks, chunk_size // 2))
        return replace(
            self,
            replan_ticks=interval,
            min_replan_ticks=min(self.min_replan_ticks, interval),
            blend_ticks=min(self.blend_ticks, chunk_size // 2),
        )


class Offer(Enum):
    """What became of a chunk that was offered."""

    JOINED = "joined"
    UNKNOWN = "unknown"  # no request of this episode has that id
    OLDER = "older"  # a chunk of a newer observation is already in use
    EXPIRED = "expired"  # every row belongs to a tick that is past
    MALFORMED = "malformed"  # wrong shape, or a number that is not finite


@dataclass(frozen=True)
class Step:
    """One tick's decision. `action` f32 [A], or None: hold. `held_s` is how long it has held."""

    action: Actions | None
    held_s: float
    overdue: bool


@dataclass
class Counts:
    """What happened in the episode so far, for status and benchmarks."""

    asked: int = 0
    joined: int = 0
    dropped: int = 0
    held_ticks: int = 0
    played_ticks: int = 0


@dataclass(frozen=True)
class _Plan:
    start_tick: int
    observation_tick: int
    rows: Actions  # [N, A], N >= 1

    @property
    def end_tick(self) -> int:
        return self.start_tick + len(self.rows)

    def at(self, tick: int) -> Actions:
        """Return the action for `tick`; past the end, the last one."""
        row: Actions = self.rows[min(tick - self.start_tick, len(self.rows) - 1)]
        return row


class ChunkScheduler:
    """One episode's schedule; `begin` starts the next. Not thread-safe: the loop owns it."""

    def __init__(
        self,
        rules: ScheduleRules,
        *,
        chunk_size: int,
        action_size: int,
        latencies_ticks: Iterable[int] = (),
        ids: Iterator[int] | None = None,
    ) -> None:
        """Take the policy's chunk shape [chunk_size, action_size] and latencies known before.

        `ids` gives request ids; schedulers that share a channel must share it, so that a reply to
        one is never a reply to the other. Raises ValueError for an empty chunk.
        """
        if chunk_size < 1 or action_size < 1:
            raise ValueError("chunk_size and action_size must be 1 or more")
        self.rules = rules
        self.chunk_size = chunk_size
        self.action_size = action_size
        self._latencies: deque[int] = deque(latencies_ticks, maxlen=_LATENCIES_KEPT)
        self._ids = itertools.count(1) if ids is None else ids
        self.begin()

    def begin(self) -> None:
        """Forget the previous episode. Request ids go on, so an old reply is never a new one's.

        The first chunk is not blended with anything: leading the arm to it is the loop's ramp.
        """
        self.counts = Counts()
        self._requests: dict[int, int] = {}  # request id -> observation tick
        self._plan: _Plan | None = None
        self._last: Actions | None = None  # what the arm was last told
        self._asked_tick: int | None = None
        self._answered = True
        self._tick: int | None = None
        self._held_since_s: float | None = None

    @property
    def latency_ticks(self) -> int:
        """Return the latency to reckon with: the high percentile of those measured."""
        if not self._latencies:
            return 1
        # By hand: numpy's percentile takes longer than all the rest of a tick.
        rank = math.ceil(len(self._latencies) * self.rules.latency_percentile / 100.0)
        return max(1, sorted(self._latencies)[max(0, rank - 1)])

    def remaining_ticks(self, tick: int) -> int:
        """Return how many actions from `tick` on are still to be played."""
        return max(0, self._plan.end_tick - tick) if self._plan else 0

    def upcoming(self, tick: int) -> Actions:
        """Return what would be played from `tick` on, f32 [N, A]; N is 0 with nothing left.

        A policy that continues a chunk (real-time chunking) is given these as the chunk before;
        the first `latency_ticks` of them will have been played when its answer comes.
        """
        if self._plan is None:
            return np.zeros((0, self.action_size), np.float32)
        return self._plan.rows[max(0, tick - self._plan.start_tick) :].copy()

    def due(self, tick: int) -> bool:
        """Return whether `ask` would ask now."""
        rules = self.rules
        if self._asked_tick is None:
            return True
        waited = tick - self._asked_tick
        if waited < rules.min_replan_ticks:
            return False
        if not self._answered:
            # Asked again with a fresh observation; the far end drops the older of the two.
            return waited >= max(rules.retry_ticks, 2 * self.latency_ticks)
        lead = self.latency_ticks + rules.margin_ticks + rules.blend_ticks
        return waited >= rules.replan_ticks or self.remaining_ticks(tick) <= lead

    def ask(self, tick: int) -> int | None:
        """Return the id to send the observation of `tick` with, or None when it is not time."""
        if not self.due(tick):
            return None
        request_id = next(self._ids)
        self._requests[request_id] = tick
        while len(self._requests) > _REQUESTS_KEPT:
            del self._requests[next(iter(self._requests))]
        self._asked_tick = tick
        self._answered = False
        self.counts.asked += 1
        return request_id

    def failed(self, request_id: int) -> bool:
        """Note that a request got an error for an answer; return False if it is not ours."""
        tick = self._requests.pop(request_id, None)
        if tick is not None and tick == self._asked_tick:
            self._answered = True
        return tick is not None

    def lost(self) -> None:
        """Note that nothing asked so far will be answered: the far end is gone."""
        self._requests.clear()
        self._answered = True

    def offer(self, request_id: int, actions: Actions, tick: int) -> Offer:
        """Join a chunk [C, A] whose first playable tick is `tick` (the one not yet acted on)."""
        result = self._offer(request_id, actions, tick)
        if result is Offer.JOINED:
            self.counts.joined += 1
        else:
            self.counts.dropped += 1
        return result

    def step(self, tick: int, now_s: float) -> Step:
        """Return what to do at `tick`. Raises ValueError when ticks go backwards."""
        if self._tick is not None and tick < self._tick:
            raise ValueError(f"tick {tick} after tick {self._tick}: ticks never go backwards")
        self._tick = tick
        plan = self._plan
        if plan is not None and plan.start_tick <= tick < plan.end_tick:
            self._held_since_s = None
            self._last = plan.at(tick)
            self.counts.played_ticks += 1
            return Step(action=self._last.copy(), held_s=0.0, overdue=False)
        if self._held_since_s is None:
            self._held_since_s = now_s
        self.counts.held_ticks += 1
        held_s = now_s - self._held_since_s
        return Step(action=None, held_s=held_s, overdue=held_s > self.rules.max_hold_s)

    def _offer(self, request_id: int, actions: Actions, tick: int) -> Offer:
        observed = self._requests.pop(request_id, None)
        if observed is None or observed > tick:
            return Offer.UNKNOWN
        if observed == self._asked_tick:
            self._answered = True
        self._latencies.append(min(tick - observed, 2 * self.chunk_size))
        if actions.shape != (self.chunk_size, self.action_size) or not np.isfinite(actions).all():
            return Offer.MALFORMED
        if self._plan is not None and observed <= self._plan.observation_tick:
            return Offer.OLDER
        skip = tick - observed
        if skip >= self.chunk_size:
            return Offer.EXPIRED
        self._plan = _Plan(tick, observed, self._join(actions[skip:], tick))
        return Offer.JOINED

    def _join(self, rows: Actions, tick: int) -> Actions:
        joined = np.array(rows, dtype=np.float32)
        blend = self.rules.blend_ticks
        plan = self._plan if self.remaining_ticks(tick) else None
        for k in range(min(blend, len(joined))):
            old = plan.at(tick + k) if plan is not None else self._last
            if old is None:
                break
            weight = np.float32(smoothstep((k + 1) / (blend + 1)))
            joined[k] = old + weight * (joined[k] - old)
        return joined
