"""One tick on a real bus: what is read, asked, limited, sent and told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from arm_rig import LOW, PERIOD_S, ArmRig, Script

from agent.control.cameras import View
from agent.control.errors import FirstMoveRefused, MotionFault
from agent.control.loop import MAX_DT_PERIODS, MotionLoop, Tick

LIMITS = {
    "fps": 1.0 / PERIOD_S,
    "realtime_priority": 0,
    "max_missed_reads": 1,
    "max_velocity_per_s": 50.0,
    "max_step": 20.0,
    "first_move_max": 30.0,
    "first_move_speed_per_s": 60.0,
    "ramp_s": 0.2,
}


class Loop(ArmRig):
    """A motion loop on an energised follower; each tick comes one period after the last."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, table={"control": LIMITS})
        self.controller.step()
        follower = self.controller.arms.follower
        assert follower is not None
        self.view = View(environment=np.array([0.1, 0.2], np.float32), missing=("camera a: gone",))
        self.motion = MotionLoop(
            follower, lambda: self.view, self.config.control, self.clock, {"test": self._subscribe}
        )
        self.motion.engage()

    def tick(self, count: int = 1, *, dt_s: float = PERIOD_S) -> Tick | None:
        tick = None
        for _ in range(count):
            self.clock.now_s += dt_s
            tick = self.motion.tick()
        return tick


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    made = Loop(tmp_path)
    yield made
    made.close()


def test_a_tick_carries_what_was_seen_wanted_and_sent(loop: Loop) -> None:
    goal = loop.here() + 3
    loop.motion.hand_over(Script(goal))
    loop.tick(4)
    tick = loop.tick()
    assert tick is not None and loop.ticks[-1] is tick
    assert tick.observation.state == pytest.approx(loop.here())
    assert tick.observation.environment == pytest.approx([0.1, 0.2])
    assert tick.observation.t_s == tick.reading.t_read_s
    assert tick.requested == pytest.approx(goal)
    assert tick.sent == pytest.approx(goal, abs=0.1)  # in whole ticks of the servo
    assert tick.t_sent_s == loop.clock.now_s
    assert tick.missing == ("camera a: gone",)
    assert [told.observation.tick for told in loop.ticks] == [1, 2, 3, 4, 5]


def test_without_a_source_the_pose_is_held_and_nobody_is_told(loop: Loop) -> None:
    before = loop.goals
    assert loop.tick(3) is not None
    loop.motion.follower.read()
    assert loop.goals == before
    assert loop.ticks == []


def test_a_source_is_begun_once_and_ended_once(loop: Loop) -> None:
    first, second = Script(loop.here()), Script(loop.here())
    loop.motion.hand_over(first)
    loop.tick(3)
    loop.motion.hand_over(second)
    loop.motion.hand_over(None)  # it never began, so it does not end
    assert (first.begun, first.ended, second.begun, second.ended) == (1, 1, 0, 0)


def test_the_handover_is_slow_for_a_distant_goal_and_short_for_a_near_one(loop: Loop) -> None:
    loop.obey()
    source = Script(loop.here() + np.array([28, 0, 0, 0, 0, 0], np.float32))
    loop.motion.hand_over(source)
    starts = loop.here()[0]
    places = []
    for _ in range(9):
        loop.tick()
        loop.motion.follower.read()
        places.append(float(loop.here()[0] - starts))
    assert loop.motion.in_step  # 1.5 × 28 / 60 = 0.7 s
    speeds = np.diff(places) / PERIOD_S
    assert max(speeds) <= LIMITS["first_move_speed_per_s"] + 2.0
    assert places[-1] == pytest.approx(28.0, abs=0.2)
    source.goal = loop.here()
    loop.motion.hand_over(source)
    loop.tick(4)  # ramp_s
    assert loop.motion.in_step


def test_a_source_does_not_come_into_step_while_the_arm_does_not_answer(loop: Loop) -> None:
    loop.motion.hand_over(Script(loop.here()))
    loop.tick()
    loop.follower.mute = {4}
    assert loop.tick(dt_s=5.0) is None
    assert not loop.motion.in_step
    loop.follower.mute = set()
    loop.tick()
    assert loop.motion.in_step


def test_a_first_goal_too_far_away_is_never_sent(loop: Loop) -> None:
    before = loop.goals
    loop.motion.hand_over(Script(loop.here() + 31))
    with pytest.raises(FirstMoveRefused, match="shoulder_pan by 31"):
        loop.tick()
    loop.motion.follower.read()
    assert loop.goals == before


def test_each_source_is_looked_at_anew(loop: Loop) -> None:
    loop.motion.hand_over(Script(loop.here()))
    loop.tick(3)
    loop.motion.hand_over(Script(loop.here() + 31))
    with pytest.raises(FirstMoveRefused):
        loop.tick()


def test_the_gripper_may_be_handed_over_at_any_opening(loop: Loop) -> None:
    loop.motion.hand_over(Script(loop.here() + np.array([0, 0, 0, 0, 0, 45], np.float32)))
    loop.tick()


def test_no_goal_is_faster_than_the_limit_even_after_a_stall(loop: Loop) -> None:
    loop.obey()
    source = Script(loop.here())
    loop.motion.hand_over(source)
    loop.tick(4)
    before = loop.here()[0]
    source.goal = loop.here() + np.array([60, 0, 0, 0, 0, 0], np.float32)
    tick = loop.tick()
    assert tick is not None
    assert tick.sent[0] - before == pytest.approx(50.0 * PERIOD_S, abs=0.1)
    before = tick.sent[0]
    tick = loop.tick(dt_s=10.0)
    assert tick is not None
    allowed = 50.0 * PERIOD_S * MAX_DT_PERIODS
    assert tick.sent[0] - before == pytest.approx(allowed, abs=0.1)


def test_a_goal_does_not_run_away_from_an_arm_that_does_not_follow(loop: Loop) -> None:
    source = Script(loop.here())
    loop.motion.hand_over(source)
    loop.tick(4)
    source.goal = loop.here() + np.array([60, 0, 0, 0, 0, 0], np.float32)
    tick = loop.tick(20)
    assert tick is not None
    assert tick.sent[0] - loop.here()[0] == pytest.approx(LIMITS["max_step"], abs=0.1)


def test_a_goal_beyond_the_range_is_clipped_to_it(loop: Loop) -> None:
    loop.obey()
    source = Script(loop.here())
    loop.motion.hand_over(source)
    loop.tick(4)
    source.goal = np.full(6, -500, np.float32)
    loop.tick(60)
    loop.motion.follower.read()
    assert loop.goals == [LOW] * 6


def test_a_missed_read_sends_nothing_and_asks_nobody(loop: Loop) -> None:
    source = Script(loop.here())
    loop.motion.hand_over(source)
    loop.tick()
    asked = source.asked
    loop.motion.follower.read()  # the goal before has arrived
    loop.follower.mute = {4}
    loop.follower.requests.clear()
    assert loop.tick() is None
    assert (source.asked, loop.motion.missed_reads) == (asked, 1)
    assert len(loop.follower.requests) == 1  # the read alone
    with pytest.raises(MotionFault, match=r"follower lost after 2 missed reads: .*wrist_flex"):
        loop.tick()


def test_an_unplugged_arm_is_a_fault_at_once(loop: Loop) -> None:
    loop.motion.hand_over(Script(loop.here()))
    loop.tick()
    loop.follower.unplug()
    with pytest.raises(MotionFault, match=r"^follower unplugged: "):
        loop.tick()


def test_an_arm_that_is_held_is_not_at_fault_again_for_its_health(loop: Loop) -> None:
    loop.follower.set(2, "Present_Temperature", 80)
    loop.tick(5)
    assert loop.motion.warnings == ("follower shoulder_lift: 80 degC, let it cool down",)
    loop.motion.engage()
    loop.motion.hand_over(Script(loop.here()))
    loop.tick(2)  # a new motion has its three ticks
    with pytest.raises(MotionFault, match="shoulder_lift: 80 degC"):
        loop.tick()


def test_an_arm_that_is_energised_already_keeps_its_torque_while_its_goal_comes_home(
    loop: Loop,
) -> None:
    loop.follower.set(1, "Present_Position", 1900)
    off = []
    loop.follower.on_write = lambda servo_id, address, data: (
        off.append(servo_id) if not all(loop.torque) else None
    )
    loop.motion.engage()
    loop.motion.follower.read()
    assert loop.goals == loop.positions
    assert off == []


def test_an_arm_that_was_moved_by_hand_is_not_pulled_back_to_its_last_goal(loop: Loop) -> None:
    source = Script(loop.here())
    loop.motion.hand_over(source)
    loop.tick(4)
    loop.motion.hand_over(None)
    loop.motion.follower.release()
    loop.follower.set(1, "Present_Position", 2400)
    loop.motion.engage()
    loop.motion.hand_over(Script(loop.here()))
    for _ in range(3):
        loop.tick()
        loop.motion.follower.read()
        assert loop.goals == loop.positions


def test_a_stop_brings_the_goal_back_to_where_the_arm_is(loop: Loop) -> None:
    source = Script(loop.here())
    loop.motion.hand_over(source)
    loop.tick(4)
    source.goal = loop.here() + 15
    loop.tick(10)
    assert loop.goals != loop.positions
    loop.motion.stop_here()
    loop.tick(3)
    loop.motion.follower.read()
    assert loop.goals == loop.positions
    assert loop.motion.source is None and source.ended == 1


def test_a_subscriber_with_a_bug_ends_the_motion_by_name(loop: Loop) -> None:
    loop.motion.hand_over(Script(loop.here()))
    loop.crash_in_subscriber = KeyError("x")
    with pytest.raises(MotionFault, match=r"^subscriber test died: KeyError: 'x'$"):
        loop.tick()
