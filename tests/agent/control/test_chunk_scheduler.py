"""Promises of the chunk scheduler, exhaustively: it is pure, so a machine plays the worst loop."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.control.chunk_scheduler import Actions, ChunkScheduler, Counts, Offer, ScheduleRules

FPS = 30.0
CHUNK = 12
SIZE = 2
BLEND = 3


def chunk_of(observed: int, bias: float = 0.0, size: int = CHUNK) -> Actions:
    """A chunk whose row for tick t says t, so that a row played at another tick shows."""
    ticks = np.arange(observed, observed + size, dtype=np.float32)
    return np.stack([ticks + np.float32(bias)] * SIZE, axis=1)


def scheduler(**rules: float) -> ChunkScheduler:
    return ChunkScheduler(
        ScheduleRules(fps=FPS, **rules),
        chunk_size=CHUNK,
        action_size=SIZE,  # type: ignore[arg-type]
    )


def played(schedule: ChunkScheduler, tick: int) -> float | None:
    step = schedule.step(tick, tick / FPS)
    return None if step.action is None else float(step.action[0])


def test_the_first_tick_asks_and_holds_until_the_answer_comes() -> None:
    schedule = scheduler(blend_ticks=0)
    schedule.begin()
    request = schedule.ask(100)
    assert request is not None
    assert played(schedule, 100) is None
    assert played(schedule, 101) is None
    assert schedule.offer(request, chunk_of(100), 102) is Offer.JOINED
    assert played(schedule, 102) == 102.0


def test_rows_for_past_ticks_are_skipped_and_the_end_is_a_hold() -> None:
    schedule = scheduler(blend_ticks=0)
    schedule.begin()
    request = schedule.ask(0)
    assert request is not None
    assert schedule.offer(request, chunk_of(0), 9) is Offer.JOINED
    assert [played(schedule, tick) for tick in (9, 10, 11, 12, 13)] == [9.0, 10.0, 11.0, None, None]


def test_a_chunk_that_is_wholly_past_is_not_played() -> None:
    schedule = scheduler(blend_ticks=0)
    schedule.begin()
    request = schedule.ask(0)
    assert request is not None
    assert schedule.offer(request, chunk_of(0), CHUNK) is Offer.EXPIRED
    assert played(schedule, CHUNK) is None


def test_holding_too_long_is_overdue_and_an_action_resets_the_time() -> None:
    schedule = scheduler(blend_ticks=0, max_hold_s=1.0)
    schedule.begin()
    request = schedule.ask(0)
    assert request is not None
    assert not schedule.step(0, 10.0).overdue
    assert not schedule.step(1, 11.0).overdue
    schedule.offer(request, chunk_of(0), 2)
    assert schedule.step(2, 11.5).action is not None
    assert not schedule.step(20, 11.6).overdue
    assert not schedule.step(21, 12.6).overdue
    assert schedule.step(22, 12.7).overdue


def test_a_late_chunk_of_an_older_observation_never_replaces_a_newer_one() -> None:
    schedule = scheduler(blend_ticks=0, retry_ticks=5)
    schedule.begin()
    first = schedule.ask(0)
    second = schedule.ask(5)
    assert first is not None and second is not None
    assert schedule.offer(second, chunk_of(5, bias=1000), 7) is Offer.JOINED
    assert schedule.offer(first, chunk_of(0, bias=-1000), 8) is Offer.OLDER
    assert played(schedule, 8) == 1008.0


def test_a_reply_to_a_previous_episode_is_never_used() -> None:
    schedule = scheduler(blend_ticks=0)
    schedule.begin()
    old = schedule.ask(0)
    assert old is not None
    schedule.begin()
    new = schedule.ask(3)
    assert new is not None and new != old
    assert schedule.offer(old, chunk_of(0), 3) is Offer.UNKNOWN
    assert played(schedule, 3) is None


def test_a_reply_from_before_the_connection_was_lost_is_never_used() -> None:
    schedule = scheduler(min_replan_ticks=1)
    old = schedule.ask(0)
    assert old is not None
    schedule.lost()
    assert schedule.offer(old, chunk_of(0), 1) is Offer.UNKNOWN
    assert schedule.ask(1) is not None


def test_the_last_eight_requests_given_up_are_remembered_and_no_more() -> None:
    schedule = scheduler(retry_ticks=1, min_replan_ticks=1, replan_ticks=1)
    asked = [schedule.ask(tick) for tick in range(0, 18, 2)]
    first, second = asked[:2]
    assert None not in asked and first is not None and second is not None
    assert schedule.offer(first, chunk_of(0), 3) is Offer.UNKNOWN
    assert schedule.offer(second, chunk_of(2), 3) is Offer.JOINED


def test_what_happened_is_counted_each_time() -> None:
    schedule = scheduler(blend_ticks=0, min_replan_ticks=2, replan_ticks=2)
    for _ in range(2):
        schedule.begin()
        assert schedule.counts == Counts()
        for tick in (0, 2):
            request = schedule.ask(tick)
            assert request is not None
            assert schedule.offer(request, chunk_of(tick), tick) is Offer.JOINED
            for _ in range(2):
                assert schedule.offer(request, chunk_of(tick), tick) is Offer.UNKNOWN
        for tick in (2, 3, 4, 20, 21):
            schedule.step(tick, 0.0)
        assert schedule.counts == Counts(asked=2, joined=2, dropped=4, held_ticks=2, played_ticks=3)


def test_schedulers_that_share_ids_never_take_each_others_replies() -> None:
    ids = itertools.count(1)
    one, other = (
        ChunkScheduler(ScheduleRules(fps=FPS), chunk_size=CHUNK, action_size=SIZE, ids=ids)
        for _ in range(2)
    )
    one.begin()
    other.begin()
    asked = one.ask(0)
    assert asked is not None
    assert other.ask(0) != asked
    assert other.offer(asked, chunk_of(0), 1) is Offer.UNKNOWN


def test_the_same_reply_twice_counts_once() -> None:
    schedule = scheduler()
    schedule.begin()
    request = schedule.ask(0)
    assert request is not None
    assert schedule.offer(request, chunk_of(0), 1) is Offer.JOINED
    assert schedule.offer(request, chunk_of(0, bias=50), 1) is Offer.UNKNOWN


@pytest.mark.parametrize(
    "actions",
    [
        np.zeros((CHUNK, SIZE + 1), np.float32),
        np.zeros((CHUNK - 1, SIZE), np.float32),
        np.zeros(CHUNK * SIZE, np.float32),
        np.full((CHUNK, SIZE), np.nan, np.float32),
        np.full((CHUNK, SIZE), np.inf, np.float32),
    ],
)
def test_a_chunk_that_is_no_action_is_not_played(actions: Actions) -> None:
    schedule = scheduler()
    schedule.begin()
    request = schedule.ask(0)
    assert request is not None
    assert schedule.offer(request, actions, 1) is Offer.MALFORMED
    assert played(schedule, 1) is None


def test_the_next_chunk_is_asked_for_before_the_present_one_ends() -> None:
    schedule = scheduler(blend_ticks=2, margin_ticks=1, replan_ticks=100, min_replan_ticks=1)
    schedule.begin()
    request = schedule.ask(0)
    assert request is not None
    schedule.offer(request, chunk_of(0), 3)  # latency 3: lead is 3 + 1 + 2
    due = [tick for tick in range(4, CHUNK) if schedule.due(tick)]
    assert due == list(range(CHUNK - 6, CHUNK))


def test_it_replans_on_time_with_the_chunk_still_long() -> None:
    schedule = scheduler(blend_ticks=0, margin_ticks=0, replan_ticks=4, min_replan_ticks=4)
    schedule.begin()
    request = schedule.ask(0)
    assert request is not None
    schedule.offer(request, chunk_of(0), 1)
    assert [schedule.ask(tick) is not None for tick in range(1, 5)] == [False, False, False, True]


def test_one_request_is_out_at_a_time_until_it_is_given_up() -> None:
    schedule = scheduler(retry_ticks=6)
    schedule.begin()
    assert schedule.ask(0) is not None
    assert [tick for tick in range(1, 13) if schedule.ask(tick) is not None] == [6, 12]


def test_a_request_is_given_up_after_twice_the_latency_when_that_is_longer() -> None:
    schedule = ChunkScheduler(
        ScheduleRules(fps=FPS, retry_ticks=6),
        chunk_size=CHUNK,
        action_size=SIZE,
        latencies_ticks=[10],
    )
    assert schedule.ask(0) is not None
    assert [tick for tick in range(1, 25) if schedule.ask(tick) is not None] == [20]


def test_an_error_for_a_request_given_up_does_not_end_the_wait_for_the_one_that_is_out() -> None:
    schedule = scheduler(retry_ticks=6, min_replan_ticks=1)
    first = schedule.ask(0)
    second = schedule.ask(6)
    assert first is not None and second is not None
    assert schedule.failed(first)
    assert not schedule.failed(first)
    assert not schedule.due(8)
    assert schedule.failed(second)
    assert schedule.due(8)


def test_after_a_refusal_or_a_lost_connection_it_asks_again_without_waiting_for_the_retry() -> None:
    schedule = scheduler(retry_ticks=1000, min_replan_ticks=2)
    schedule.begin()
    request = schedule.ask(0)
    assert request is not None
    assert schedule.failed(request)
    assert schedule.ask(1) is None
    assert schedule.ask(2) is not None
    schedule.lost()
    assert schedule.ask(4) is not None


def test_the_latency_reckoned_with_is_a_high_percentile_of_those_measured() -> None:
    schedule = ChunkScheduler(
        ScheduleRules(fps=FPS, latency_percentile=90.0),
        chunk_size=CHUNK,
        action_size=SIZE,
        latencies_ticks=[1] * 50 + [5] * 14,
    )
    assert schedule.latency_ticks == 5
    assert scheduler().latency_ticks == 1


def test_a_latency_is_measured_from_the_observation_and_old_ones_are_forgotten() -> None:
    schedule = scheduler()
    request = schedule.ask(100)
    assert request is not None
    schedule.offer(request, chunk_of(100), 103)
    assert schedule.latency_ticks == 3
    long_ago = ChunkScheduler(
        ScheduleRules(fps=FPS),
        chunk_size=CHUNK,
        action_size=SIZE,
        latencies_ticks=[20] * 5 + [1] * 64,
    )
    assert long_ago.latency_ticks == 1


def test_after_a_hold_the_next_chunk_is_joined_from_the_held_action() -> None:
    schedule = scheduler(blend_ticks=3)
    schedule.begin()
    first = schedule.ask(0)
    assert first is not None
    schedule.offer(first, np.zeros((CHUNK, SIZE), np.float32), 1)
    assert [played(schedule, tick) for tick in (1, 11, 12)] == [0.0, 0.0, None]
    second = schedule.ask(12)
    assert second is not None
    schedule.offer(second, np.full((CHUNK, SIZE), 8.0, np.float32), 13)
    assert [played(schedule, tick) for tick in (13, 14, 15, 16)] == [1.25, 4.0, 6.75, 8.0]


def test_what_was_held_is_the_action_last_played_not_one_that_was_skipped() -> None:
    schedule = scheduler(blend_ticks=1)
    schedule.begin()
    first = schedule.ask(0)
    assert first is not None
    schedule.offer(first, chunk_of(0), 1)
    assert played(schedule, 2) == 2.0
    assert played(schedule, CHUNK + 5) is None  # the loop itself was late: rows 3 to 11 are lost
    second = schedule.ask(CHUNK + 5)
    assert second is not None
    schedule.offer(second, np.full((CHUNK, SIZE), 4.0, np.float32), CHUNK + 6)
    assert played(schedule, CHUNK + 6) == 3.0  # half-way from 2, not from 11


def test_the_first_action_is_the_policys_own_so_that_a_guard_sees_how_far_it_is() -> None:
    schedule = scheduler(blend_ticks=3)
    schedule.begin()
    request = schedule.ask(0)
    assert request is not None
    schedule.offer(request, chunk_of(0), 1)
    assert played(schedule, 1) == 1.0


def test_a_step_that_plays_does_not_hold_and_is_float32_whatever_the_policy_gave() -> None:
    schedule = scheduler()
    assert schedule.remaining_ticks(0) == 0
    request = schedule.ask(0)
    assert request is not None
    schedule.offer(request, chunk_of(0).astype(np.float64), 1)
    step = schedule.step(1, 7.0)
    assert step.action is not None and step.action.dtype == np.float32
    assert (step.held_s, step.overdue) == (0.0, False)
    assert schedule.remaining_ticks(1) == CHUNK - 1


@pytest.mark.parametrize(("chunk_size", "action_size"), [(0, 1), (1, 0)])
def test_an_empty_chunk_is_refused(chunk_size: int, action_size: int) -> None:
    with pytest.raises(ValueError, match="chunk_size and action_size"):
        ChunkScheduler(ScheduleRules(fps=FPS), chunk_size=chunk_size, action_size=action_size)


def test_the_smallest_chunk_and_the_outermost_rules_make_a_schedule() -> None:
    rules = ScheduleRules(
        fps=0.5,
        blend_ticks=0,
        margin_ticks=0,
        min_replan_ticks=1,
        replan_ticks=1,
        retry_ticks=1,
        max_hold_s=0.5,
        latency_percentile=100.0,
    )
    assert ScheduleRules(fps=FPS, latency_percentile=0.5).latency_percentile == 0.5
    schedule = ChunkScheduler(rules, chunk_size=1, action_size=1)
    request = schedule.ask(3)
    assert request is not None
    assert schedule.offer(request, np.ones((1, 1), np.float32), 3) is Offer.JOINED
    assert played(schedule, 3) == 1.0


def test_ticks_never_go_backwards() -> None:
    schedule = scheduler()
    schedule.begin()
    schedule.step(5, 0.0)
    schedule.step(5, 0.0)
    with pytest.raises(ValueError, match="backwards"):
        schedule.step(4, 0.0)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"fps": 0.0}, "fps is 0"),
        ({"blend_ticks": -1}, "blend_ticks"),
        ({"margin_ticks": -1}, "margin_ticks"),
        ({"min_replan_ticks": 0}, "min_replan_ticks"),
        ({"replan_ticks": 2, "min_replan_ticks": 3}, "replan_ticks"),
        ({"max_hold_s": 0.0}, "max_hold_s"),
        ({"retry_ticks": 0}, "retry_ticks"),
        ({"latency_percentile": 0.0}, "latency_percentile"),
        ({"latency_percentile": 100.5}, "latency_percentile"),
    ],
)
def test_rules_that_make_no_schedule_are_refused(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ScheduleRules(**{"fps": FPS, **wrong})  # type: ignore[arg-type]


@settings(max_examples=200, deadline=None)
@given(
    blend=st.integers(0, 8),
    join=st.integers(1, CHUNK - 1),
    observed=st.integers(1, CHUNK - 1),
    old=st.lists(st.floats(-100, 100, width=32), min_size=CHUNK, max_size=CHUNK),
    new=st.lists(st.floats(-100, 100, width=32), min_size=CHUNK, max_size=CHUNK),
)
def test_no_jump_is_larger_than_the_chunks_and_the_blend_allow(
    blend: int, join: int, observed: int, old: list[float], new: list[float]
) -> None:
    schedule = ChunkScheduler(
        ScheduleRules(fps=FPS, blend_ticks=blend, replan_ticks=1, min_replan_ticks=1),
        chunk_size=CHUNK,
        action_size=1,
    )
    schedule.begin()
    first = schedule.ask(0)
    assert first is not None
    schedule.offer(first, np.array(old, np.float32)[:, None], 0)
    second = schedule.ask(observed)
    assert second is not None
    join = max(join, observed)
    path = [schedule.step(tick, 0.0).action for tick in range(join)]
    assert schedule.offer(second, np.array(new, np.float32)[:, None], join) is Offer.JOINED
    path += [schedule.step(tick, 0.0).action for tick in range(join, observed + CHUNK)]

    def old_at(tick: int) -> float:
        return old[min(tick, CHUNK - 1)]

    def new_at(tick: int) -> float:
        return new[tick - observed]

    for tick in range(join, observed + CHUNK):
        now, before = path[tick], path[tick - 1]
        assert now is not None and before is not None
        steps = [abs(old_at(tick) - old_at(tick - 1))]
        apart = abs(old_at(tick) - new_at(tick))
        if tick > join:
            steps.append(abs(new_at(tick) - new_at(tick - 1)))
            apart = abs(old_at(tick - 1) - new_at(tick - 1))
        blending = tick < join + blend + 1
        allowed = max(steps) if blending else steps[-1]
        allowed += 1.5 * apart / (blend + 1) if blending else 0.0
        assert abs(float(now[0]) - float(before[0])) <= allowed + 1e-3
        low, high = sorted((old_at(tick), new_at(tick)))
        assert low - 1e-3 <= float(now[0]) <= high + 1e-3
        if not blending:
            assert float(now[0]) == np.float32(new_at(tick))


@pytest.mark.parametrize(
    ("chunk", "replan", "min_replan", "blend"),
    [(100, 10, 4, 8), (20, 10, 4, 8), (15, 7, 4, 7), (6, 3, 3, 3), (1, 1, 1, 0)],
)
def test_a_short_chunk_is_asked_for_by_half_of_it_and_blended_by_then(
    chunk: int, replan: int, min_replan: int, blend: int
) -> None:
    rules = ScheduleRules(fps=FPS, max_hold_s=0.7).for_chunk(chunk)
    assert (rules.replan_ticks, rules.min_replan_ticks, rules.blend_ticks) == (
        replan,
        min_replan,
        blend,
    )
    assert rules.max_hold_s == 0.7
    assert all(isinstance(number, int) for number in (rules.replan_ticks, rules.blend_ticks))


def test_what_is_still_to_be_played_is_told_for_a_policy_that_continues_it() -> None:
    schedule = scheduler(blend_ticks=0)
    assert (schedule.upcoming(0).shape, schedule.upcoming(0).dtype) == ((0, SIZE), np.float32)
    request = schedule.ask(0)
    assert request is not None
    schedule.offer(request, chunk_of(0), 2)
    whole = [float(tick) for tick in range(2, CHUNK)]
    assert schedule.upcoming(1)[:, 0].tolist() == schedule.upcoming(2)[:, 0].tolist() == whole
    left = schedule.upcoming(5)
    assert left[:, 0].tolist() == [float(tick) for tick in range(5, CHUNK)]
    left[:] = 0.0  # a copy: what is played does not change
    assert played(schedule, 5) == 5.0
    assert schedule.upcoming(CHUNK).shape == (0, SIZE)


@pytest.mark.parametrize("blend", [5, 8, 10])
def test_a_join_has_half_of_the_jerk_of_a_straight_line_or_less(blend: int) -> None:
    size = 3 * blend
    schedule = ChunkScheduler(
        ScheduleRules(fps=FPS, blend_ticks=blend, replan_ticks=1, min_replan_ticks=1),
        chunk_size=size,
        action_size=1,
    )
    first = schedule.ask(0)
    assert first is not None
    schedule.offer(first, np.zeros((size, 1), np.float32), 0)
    path = [schedule.step(tick, 0.0).action for tick in range(5)]
    second = schedule.ask(5)
    assert second is not None
    schedule.offer(second, np.ones((size, 1), np.float32), 5)
    path += [schedule.step(tick, 0.0).action for tick in range(5, size)]
    jerk = np.diff(np.array([float(action[0]) for action in path if action is not None]), 3)
    assert np.abs(jerk).max() <= 0.5 / (blend + 1)


class AnyLoop(RuleBasedStateMachine):
    """Any order of ticks, answers, losses, errors and new episodes.

    Every chunk says in its rows which tick they are for, so honest chunks agree wherever they
    overlap: what is played at tick t must say exactly t (and this episode's own bias). Only where
    the old chunk had ended inside the blend may it say less, on its way from the held action.
    """

    def __init__(self) -> None:
        super().__init__()
        self.schedule = scheduler(
            blend_ticks=BLEND, retry_ticks=4, min_replan_ticks=2, replan_ticks=5
        )
        self.tick = 0
        self.bias = 0.0
        self.waiting: list[tuple[int, int, float]] = []  # request, observed, bias of its episode
        self.newest_joined = -1
        self.last_asked = -1000
        self.exact_from = 0
        self.schedule.begin()

    @rule(ticks=st.integers(1, 4))
    def loop(self, ticks: int) -> None:
        for _ in range(ticks):
            request = self.schedule.ask(self.tick)
            if request is not None:
                assert self.tick - self.last_asked >= 2
                self.last_asked = self.tick
                self.waiting.append((request, self.tick, self.bias))
            step = self.schedule.step(self.tick, self.tick / FPS)
            if step.action is not None:
                said = step.action - np.float32(self.bias)
                assert np.all(said <= self.tick + 1e-2), "an action from the future"
                if self.tick >= self.exact_from:
                    assert said == pytest.approx(self.tick, abs=1e-2)
                assert 0 <= self.tick - self.newest_joined < CHUNK
            else:
                assert step.held_s >= 0.0
            self.tick += 1

    @rule(ticks=st.integers(1, 40))
    def the_loop_is_late_itself(self, ticks: int) -> None:
        self.tick += ticks

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), repeat=st.booleans())
    def answer(self, data: st.DataObject, repeat: bool) -> None:
        index = data.draw(st.integers(0, len(self.waiting) - 1))
        request, observed, bias = self.waiting[index]
        if not repeat:
            del self.waiting[index]
        offer = self.schedule.offer(request, chunk_of(observed, bias), self.tick)
        if bias != self.bias:
            assert offer is Offer.UNKNOWN
        if offer is Offer.JOINED:
            assert observed > self.newest_joined
            assert observed <= self.tick < observed + CHUNK
            ended = self.newest_joined + CHUNK < self.tick + BLEND
            if self.newest_joined >= 0 and ended:
                self.exact_from = self.tick + BLEND
            self.newest_joined = observed

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        request, _, _ = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        self.schedule.failed(request)

    @rule()
    def lose_the_connection(self) -> None:
        self.schedule.lost()

    @rule()
    def begin_again(self) -> None:
        self.schedule.begin()
        self.bias += 10_000.0
        self.newest_joined = -1
        self.last_asked = -1000
        self.exact_from = 0

    @invariant()
    def reckons_with_a_bounded_latency(self) -> None:
        assert 1 <= self.schedule.latency_ticks <= 2 * CHUNK


AnyLoop.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestAnyLoop = AnyLoop.TestCase
