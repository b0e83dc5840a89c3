"""The arm controller on two arms as bytes: how a motion begins, what ends it, what is held."""

from __future__ import annotations

from concurrent.futures import Future
from functools import partial

import numpy as np
import pytest
from arm_rig import ENERGISED, GOAL, HIGH, PERIOD_S, RELEASED, ArmRig, Script
from fake_servos import IDS

from agent.control.arm_phases import ArmPhase
from agent.control.errors import FirstMoveRefused
from agent.control.motion_run import MotionRun
from agent.errors import Refused
from robot_io.sts3215 import REGISTERS

TORQUE = REGISTERS["Torque_Enable"].address


def until(rig: ArmRig, phase: ArmPhase, *, longest_s: float = 10.0) -> float:
    """Step until the phase is reached; the seconds that it took."""
    began_s = rig.clock.now_s
    while rig.controller.phase is not phase:
        assert rig.clock.now_s - began_s < longest_s, f"still {rig.controller.phase}"
        rig.step()
    return rig.clock.now_s - began_s


def begin(rig: ArmRig, source: Script | None = None, **more: float) -> tuple[Script, MotionRun]:
    """Teleoperation by a script, one tick old."""
    rig.step()
    source = source or Script(rig.here())
    run = rig.controller.start_motion(source, "teleop", **more)
    rig.step()
    return source, run


def why(future: Future[None]) -> str:
    error = future.exception(timeout=0)
    assert error is not None
    return str(error)


# -- beginning ---------------------------------------------------------------------------------


def test_the_arm_is_energised_with_its_goal_where_it_stands(rig: ArmRig) -> None:
    """A goal that a dead process left would throw it."""
    rig.step()
    for servo_id in IDS:
        rig.follower.set(servo_id, "Goal_Position", 2900)
    off_by = []

    def watch(servo_id: int, address: int, data: bytes) -> None:
        if address == TORQUE and data == b"\x01":
            present = rig.follower.get(servo_id, "Present_Position")
            off_by.append(rig.follower.get(servo_id, "Goal_Position") - present)

    rig.follower.on_write = watch
    rig.controller.start_motion(Script(), "teleop")
    assert off_by == [0] * 6
    assert rig.torque == ENERGISED
    rig.step(5)  # the source wants nothing
    assert rig.goals == rig.positions


def test_a_joint_outside_its_range_gets_the_end_of_the_range_before_torque(rig: ArmRig) -> None:
    rig.step()
    rig.follower.set(2, "Present_Position", HIGH + 15)
    goals = []

    def watch(servo_id: int, address: int, data: bytes) -> None:
        if address == TORQUE and data == b"\x01":
            goals.append(rig.follower.get(2, "Goal_Position"))

    rig.follower.on_write = watch
    rig.controller.start_motion(Script(), "teleop")
    assert goals == [HIGH] * 6


def test_an_arm_that_cannot_be_energised_is_refused_and_stays_released(rig: ArmRig) -> None:
    rig.step()
    rig.follower.on_write = lambda servo_id, address, _: (
        rig.follower.set(4, "Goal_Position", 2900) if (servo_id, address) == (4, GOAL) else None
    )
    with pytest.raises(Refused, match=r"could not be energised: wrist_flex"):
        rig.controller.start_motion(Script(), "teleop")
    assert rig.controller.phase is ArmPhase.IDLE
    assert rig.torque == RELEASED
    rig.follower.on_write = None
    rig.controller.start_motion(Script(), "teleop")


def test_a_source_has_the_arm_wholly_only_after_the_ramp(rig: ArmRig) -> None:
    rig.obey()
    source, run = begin(rig, Script())
    rig.step(20)
    assert not run.in_step.done()  # it has not said where it is
    source.goal = rig.here() + np.array([30, 0, 0, 0, 0, 0], np.float32)
    rig.step(7)  # 30 degrees at 60 a second take 0.75 s with a smooth beginning and end
    assert not run.in_step.done()
    rig.step(3)
    assert run.in_step.result(0) is None
    assert rig.here()[0] == pytest.approx(source.goal[0], abs=0.1)
    assert not run.parked.done()


def test_a_first_goal_too_far_away_parks_and_nothing_follows_it(rig: ArmRig) -> None:
    rig.obey()
    far = np.array([80, 0, 0, 0, 0, 0], np.float32)
    rig.step()
    far += rig.here()
    far[0] += 20  # 100, where 90 are allowed
    _, run = begin(rig, Script(far))
    assert isinstance(run.in_step.exception(0), FirstMoveRefused)
    assert "too far from where the arm is: shoulder_pan by 100.0" in why(run.in_step)
    assert rig.controller.phase is ArmPhase.PARKING
    assert not run.parked.done()
    until(rig, ArmPhase.IDLE)
    assert run.parked.result(0) is None
    assert rig.events == [("released", None)]
    assert abs(rig.here()[0]) < 1.0  # the way to rest, where the pan is 0


def test_the_purpose_and_the_problem_are_said_when_a_start_is_refused(rig: ArmRig) -> None:
    begin(rig)
    with pytest.raises(Refused, match=r"moving already \(teleop\)"):
        rig.controller.start_motion(Script(), "rollout")
    rig.controller.start_park()
    with pytest.raises(Refused, match=r"moving already \(park\)"):
        rig.controller.start_motion(Script(), "rollout")


def test_no_follower_is_said_with_its_reason_and_looked_for_again(rig: ArmRig) -> None:
    rig.follower.mute = {3}
    rig.step()
    with pytest.raises(Refused, match=r"not ready: follower: .*3 \(elbow_flex\) does not answer"):
        rig.controller.start_motion(Script(), "teleop")
    rig.follower.mute = set()
    rig.step(dt_s=2.9)
    assert rig.controller.phase is ArmPhase.CLOSED
    rig.step(dt_s=0.2)
    assert rig.controller.phase is ArmPhase.IDLE
    assert rig.controller.ready


# -- faults ------------------------------------------------------------------------------------


def test_missed_reads_are_held_through_then_a_fault_that_names_the_servo(rig: ArmRig) -> None:
    source, run = begin(rig)
    asked = source.asked
    rig.follower.mute = {3}
    rig.step(2)  # max_missed_reads of the rig
    assert rig.controller.phase is ArmPhase.TELEOP
    assert source.asked == asked
    rig.follower.mute = set()
    rig.step()  # one that comes makes them forgotten
    rig.follower.mute = {3}
    rig.step(2)
    assert rig.events == []
    rig.step()
    assert rig.controller.phase is ArmPhase.HOLDING
    [(name, reason)] = rig.events
    assert name == "fault"
    assert reason is not None and reason.startswith("follower lost after 3 missed reads: ")
    assert "elbow_flex" in reason
    assert rig.torque == ENERGISED
    assert why(run.parked) == f"the arm was not parked: {reason}"
    assert source.ended == 1


def test_three_unhealthy_ticks_are_a_fault_and_two_are_not(rig: ArmRig) -> None:
    begin(rig)
    for _ in range(2):
        rig.follower.set(2, "Present_Temperature", 80)
        rig.step(2)
        rig.follower.set(2, "Present_Temperature", 30)
        rig.step()
    assert rig.controller.phase is ArmPhase.TELEOP
    rig.follower.set(2, "Present_Temperature", 80)
    rig.step(3)
    assert rig.controller.phase is ArmPhase.HOLDING
    assert rig.events == [("fault", "follower shoulder_lift: 80 degC, let it cool down")]
    assert rig.torque == ENERGISED
    assert "follower shoulder_lift: 80 degC, let it cool down" in rig.controller.problems()


def test_a_source_that_reports_a_fault_commands_no_more(rig: ArmRig) -> None:
    source, run = begin(rig)
    source.goal, source.fault = rig.here() + 5, "leader unplugged: pulled"
    rig.step()
    source.fault = None
    goals, asked = rig.goals, source.asked
    rig.step(5)
    assert rig.goals == goals
    assert source.asked == asked
    assert why(run.in_step) == "leader unplugged: pulled"


def test_a_fault_is_announced_once_however_long_it_lasts(rig: ArmRig) -> None:
    begin(rig)
    rig.follower.mute = {3}
    rig.step(8)
    assert len(rig.events) == 1


def test_an_arm_that_is_held_after_a_fault_is_parked_by_reset_alone(rig: ArmRig) -> None:
    rig.obey()
    source, _ = begin(rig)
    source.fault = "broken"
    rig.step()
    with pytest.raises(Refused, match="held after a fault; `armada reset` parks it"):
        rig.controller.start_motion(Script(), "teleop")
    run = rig.controller.reset()
    assert run is not None and rig.controller.phase is ArmPhase.PARKING
    until(rig, ArmPhase.IDLE)
    assert run.parked.result(0) is None
    assert rig.torque == RELEASED


def test_a_reset_that_finds_a_mute_servo_is_refused_and_the_arm_stays_held(rig: ArmRig) -> None:
    begin(rig)
    rig.follower.mute = {3}
    rig.step(3)
    with pytest.raises(Refused, match=r"could not be energised: .*elbow_flex"):
        rig.controller.reset()
    assert rig.controller.phase is ArmPhase.HOLDING
    assert rig.torque == ENERGISED


def test_unplugged_in_motion_closes_the_port_and_waits_for_a_reset(rig: ArmRig) -> None:
    _, run = begin(rig)
    rig.follower.unplug()
    rig.step()
    [(name, reason)] = rig.events
    assert name == "fault" and reason is not None and reason.startswith("follower unplugged: ")
    assert rig.controller.arms.follower is None
    assert rig.controller.problems() == [reason]
    assert not rig.controller.ready
    assert why(run.parked) == f"the arm was not parked: {reason}"
    rig.step(3, dt_s=5.0)
    assert rig.controller.phase is ArmPhase.LOST
    with pytest.raises(Refused, match="not ready: follower"):
        rig.controller.reset()
    rig.step()
    assert rig.controller.phase is ArmPhase.CLOSED  # the operator has asked: it is looked for


def test_unplugged_at_rest_is_a_fault_too(rig: ArmRig) -> None:
    rig.step()
    rig.follower.unplug()
    rig.step()
    [(name, reason)] = rig.events
    assert name == "fault" and reason is not None and reason.startswith("follower unplugged: ")
    assert rig.controller.phase is ArmPhase.LOST


def test_a_servo_that_is_mute_at_rest_is_lost_after_some_reads(rig: ArmRig) -> None:
    rig.step()
    rig.follower.mute = {5}
    rig.step(3)
    assert rig.events == []
    rig.step()
    [(name, reason)] = rig.events
    assert name == "fault" and reason is not None and "wrist_roll" in reason


def test_an_unplugged_leader_holds_the_follower(rig: ArmRig) -> None:
    from agent.control.sources import LeaderSource

    rig.step()
    leader = rig.controller.arms.leader
    assert leader is not None and rig.leader is not None
    rig.controller.start_motion(LeaderSource(leader, 2), "teleop")
    rig.step(3)
    assert rig.events == []
    rig.leader.unplug()
    rig.step()
    [(name, reason)] = rig.events
    assert name == "fault" and reason is not None and reason.startswith("leader unplugged: ")
    assert rig.controller.phase is ArmPhase.HOLDING
    assert rig.torque == ENERGISED
    assert rig.controller.arms.leader is None
    assert rig.controller.problems() == [reason]


def test_a_release_that_fails_is_a_fault_that_names_the_servo_and_reset_tries_again(
    rig: ArmRig,
) -> None:
    _, run = begin(rig)
    rig.controller.start_park()
    rig.step(24)
    assert rig.controller.phase is ArmPhase.PARKING
    rig.follower.mute = {2}
    rig.follower.deaf = {2}
    rig.controller._parking.over = lambda now_s: True  # type: ignore[method-assign, union-attr]
    rig.step()
    reason = "follower: shoulder_lift may be energised still; reset tries again"
    assert rig.events == [("fault", reason)]
    assert rig.controller.phase is ArmPhase.HOLDING
    assert rig.torque == [False, True, False, False, False, False]
    assert why(run.parked) == f"the arm was not parked: {reason}"
    rig.follower.mute = rig.follower.deaf = set()
    run_again = rig.controller.reset()
    assert run_again is not None
    until(rig, ArmPhase.IDLE)
    assert rig.torque == RELEASED


# -- an arm that is found energised ------------------------------------------------------------


def energise(rig: ArmRig) -> None:
    for servo_id in IDS:
        rig.follower.set(servo_id, "Goal_Position", 2500)
        rig.follower.set(servo_id, "Torque_Enable", 1)


def test_an_arm_found_energised_is_held_where_it_is_and_announced(rig: ArmRig) -> None:
    energise(rig)
    rig.step(3)
    assert rig.controller.phase is ArmPhase.HOLDING
    assert rig.events == [("fault", "the arm was found energised; `armada reset` parks it")]
    assert rig.torque == ENERGISED
    assert rig.goals == rig.positions
    run = rig.controller.reset()
    assert run is not None
    until(rig, ArmPhase.IDLE)
    assert rig.torque == RELEASED


def test_an_energised_arm_that_cannot_be_held_is_announced_all_the_same(rig: ArmRig) -> None:
    rig.follower.set(2, "Torque_Enable", 1)
    rig.follower.on_write = lambda servo_id, address, _: (
        rig.follower.set(4, "Goal_Position", 2900) if (servo_id, address) == (4, GOAL) else None
    )
    rig.step()
    assert rig.events == [("fault", "the arm was found energised; `armada reset` parks it")]
    assert rig.controller.phase is ArmPhase.HOLDING


def test_an_arm_that_a_reset_finds_energised_is_parked_without_a_fault(rig: ArmRig) -> None:
    rig.obey()
    rig.follower.mute = {1}
    rig.step()
    assert rig.controller.phase is ArmPhase.CLOSED
    rig.follower.mute = set()
    energise(rig)
    run = rig.controller.reset()
    assert run is not None
    assert rig.events == []
    assert rig.controller.phase is ArmPhase.PARKING
    until(rig, ArmPhase.IDLE)


# -- stopping ----------------------------------------------------------------------------------


def test_an_emergency_stop_holds_where_the_arm_is_and_nobody_moves_it(rig: ArmRig) -> None:
    """The fake does not follow: its goal runs ahead of it, and comes back."""
    source, run = begin(rig)
    source.goal = rig.here() + 40
    rig.step(20)
    assert rig.goals != rig.positions
    asked = source.asked
    rig.controller.stop_here(release=False)
    rig.step(5)
    assert rig.goals == rig.positions
    assert (source.asked, source.ended) == (asked, 1)
    assert rig.torque == ENERGISED
    assert why(run.parked) == "the arm was not parked: it is held"
    assert rig.events == []


def test_what_comes_late_does_not_move_a_stopped_arm(rig: ArmRig) -> None:
    begin(rig)
    rig.controller.stop_here(release=False)
    start = partial(rig.controller.start_motion, Script(), "teleop")
    for late in (rig.controller.start_park, start):
        with pytest.raises(Refused, match=r"emergency stop is on; `armada reset`"):
            late()
    assert rig.controller.phase is ArmPhase.STOPPED


@pytest.mark.parametrize("energised", [True, False])
def test_a_stop_with_release_leaves_nothing_energised_until_a_reset(
    rig: ArmRig, energised: bool
) -> None:
    rig.step()
    if energised:
        begin(rig)
    rig.controller.stop_here(release=True)
    assert rig.torque == RELEASED
    assert rig.events == []
    with pytest.raises(Refused, match="emergency stop is on"):
        rig.controller.start_motion(Script(), "teleop")
    assert rig.controller.reset() is None
    assert rig.controller.phase is ArmPhase.IDLE
    begin(rig)


def test_an_arm_that_is_stopped_while_it_parks_counts_as_released_only_if_it_is(
    rig: ArmRig,
) -> None:
    _, run = begin(rig)
    rig.controller.start_park()
    assert why(run.in_step) == "the motion was ended"
    rig.controller.stop_here(release=True)
    assert run.parked.result(0) is None


def test_a_rollout_ends_by_itself_in_the_park_pose(rig: ArmRig) -> None:
    rig.obey()
    rig.step()
    run = rig.controller.start_motion(Script(rig.here()), "rollout", seconds=1.0)
    took_s = until(rig, ArmPhase.PARKING)
    assert took_s == pytest.approx(1.0, abs=1.5 * PERIOD_S)
    until(rig, ArmPhase.IDLE)
    assert run.parked.result(0) is None
    assert run.refusal is None
    assert rig.events == [("released", None)]
    rest = np.asarray(rig.config.robot.park_pose, np.float32)
    lower, upper = rig.calibration.lower, rig.calibration.upper
    assert rig.here() == pytest.approx(np.clip(rest, lower, upper), abs=0.2)


def test_a_time_set_for_a_rollout_does_not_end_the_next_motion(rig: ArmRig) -> None:
    rig.obey()
    rig.step()
    rig.controller.start_motion(Script(rig.here()), "rollout", seconds=1.0)
    rig.controller.start_park()
    until(rig, ArmPhase.IDLE)
    begin(rig)
    rig.step(30)
    assert rig.controller.phase is ArmPhase.TELEOP


# -- a person in charge --------------------------------------------------------------------------


def test_without_its_operator_a_rollout_holds_where_it_is_then_parks(rig: ArmRig) -> None:
    rig.obey()
    rig.step()
    source = Script(rig.here() + 20)
    run = rig.controller.start_motion(source, "rollout", seconds=60.0)
    rig.controller.lease.begin()
    for _ in range(5):
        rig.step()  # half a second: it goes on
    assert rig.controller.phase is ArmPhase.ROLLOUT
    assert until(rig, ArmPhase.ABANDONED) == pytest.approx(0.6, abs=1.5 * PERIOD_S)
    assert rig.events == [("operator_lost", "the rollout's operator is gone")]
    here, asked = rig.positions, source.asked
    assert (source.ended, rig.torque) == (1, ENERGISED)
    assert until(rig, ArmPhase.PARKING) == pytest.approx(2.0, abs=1.5 * PERIOD_S)
    assert (rig.positions, source.asked) == (here, asked)
    assert not run.parked.done()
    until(rig, ArmPhase.IDLE)
    assert run.parked.result(0) is None
    assert [name for name, _ in rig.events] == ["operator_lost", "released", "abandoned"]
    rig.step(3)
    assert len(rig.events) == 3  # told once


def test_an_operator_who_is_heard_of_keeps_the_rollout(rig: ArmRig) -> None:
    rig.step()
    rig.controller.start_motion(Script(rig.here()), "rollout")
    lease = rig.controller.lease.begin()
    for _ in range(30):
        rig.step()
        rig.controller.lease.renew(lease)
    assert rig.controller.phase is ArmPhase.ROLLOUT
    rig.controller.lease.end()
    rig.step(30)
    assert rig.controller.phase is ArmPhase.ROLLOUT


def test_only_the_newest_operator_renews(rig: ArmRig) -> None:
    first = rig.controller.lease.begin()
    second = rig.controller.lease.begin()
    rig.controller.lease.renew(second)
    with pytest.raises(Refused, match="lease is over"):
        rig.controller.lease.renew(first)


def test_an_operator_who_is_gone_while_the_arm_rests_is_told_at_once(rig: ArmRig) -> None:
    rig.step()
    rig.controller.lease.begin()
    rig.step(12)
    assert [name for name, _ in rig.events] == ["operator_lost", "abandoned"]
    assert rig.torque == RELEASED


def test_the_time_of_a_takeover_is_not_the_policys(rig: ArmRig) -> None:
    rig.obey()
    rig.step()
    policy, leader = Script(rig.here()), Script(rig.here())
    rig.controller.start_motion(policy, "rollout", seconds=2.0)
    rig.step(10)
    rig.controller.take_over(leader)
    rig.step(40)
    assert rig.controller.phase is ArmPhase.TAKEOVER
    assert (policy.ended, leader.begun) == (1, 1)
    rig.controller.hand_back(policy)
    assert until(rig, ArmPhase.PARKING) == pytest.approx(1.0, abs=1.5 * PERIOD_S)
    assert (leader.ended, policy.begun) == (1, 2)


def test_a_leader_that_is_far_holds_the_arm_until_it_comes_near(rig: ArmRig) -> None:
    rig.obey()
    rig.step()
    policy, leader = Script(rig.here()), Script(rig.here() + 95)
    rig.controller.start_motion(policy, "rollout")
    rig.step(2)
    rig.controller.take_over(leader)
    here = rig.positions
    rig.step(5)
    motion = rig.controller.motion
    assert motion is not None
    assert motion.awaited is not None and "too far" in motion.awaited
    assert (rig.controller.phase, rig.positions) == (ArmPhase.TAKEOVER, here)
    leader.goal = rig.here() + 5
    rig.step(20)
    assert motion.awaited is None and motion.in_step
    assert rig.here() == pytest.approx(leader.goal, abs=0.5)


def test_a_takeover_that_is_refused_changes_nothing(rig: ArmRig) -> None:
    source, _ = begin(rig)
    with pytest.raises(Refused, match="where a policy drives"):
        rig.controller.take_over(Script(rig.here()))
    asked = source.asked
    rig.step()
    assert source.asked == asked + 1


# -- calibration -------------------------------------------------------------------------------


def test_calibration_and_motion_exclude_each_other(rig: ArmRig) -> None:
    begin(rig)
    with pytest.raises(Refused, match="the arm is energised; park it first"):
        rig.controller.calibrate("follower", "homing")
    rig.controller.stop_here(release=True)
    rig.controller.reset()
    rig.controller.calibrate("leader", "homing")
    for start in (rig.controller.start_park, lambda: begin(rig)):
        with pytest.raises(Refused, match=r"the leader is being calibrated: finish it"):
            start()
    assert rig.torque == RELEASED
    rig.controller.reset()
    assert rig.controller.calibration.busy is None


def test_a_follower_that_is_calibrated_is_not_ready_and_no_fault(rig: ArmRig) -> None:
    rig.step()
    rig.controller.calibrate("follower", "homing")
    rig.step(3, dt_s=5.0)
    assert rig.controller.phase is ArmPhase.CLOSED
    assert rig.controller.problems() == ["follower is being calibrated"]
    assert rig.events == []


# -- the end -----------------------------------------------------------------------------------


def test_an_end_in_motion_parks_then_releases(rig: ArmRig) -> None:
    rig.obey()
    source, _ = begin(rig)
    rig.controller.end()
    rig.controller.end()  # a second signal changes nothing
    rig.step()
    assert rig.controller.phase is ArmPhase.ENDING
    with pytest.raises(Refused, match="the control process is ending"):
        rig.controller.start_motion(Script(), "teleop")
    until(rig, ArmPhase.ENDED)
    assert rig.torque == RELEASED
    assert rig.events == [("released", None)]
    assert abs(rig.here()[3] - 66.0) < 1.0
    assert source.ended == 1


def test_an_end_waits_ten_seconds_for_the_park_pose_and_no_longer(rig: ArmRig) -> None:
    begin(rig)
    rig.controller.end()
    rig.step()
    rig.controller._parking.over = lambda now_s: False  # type: ignore[method-assign, union-attr]
    rig.step(dt_s=9.8)
    rig.controller.end()  # asking again gives it no more time
    assert rig.controller.phase is ArmPhase.ENDING
    rig.step(dt_s=0.3)
    assert rig.controller.phase is ArmPhase.ENDED
    assert rig.torque == RELEASED


def test_an_end_after_an_emergency_stop_moves_nothing(rig: ArmRig) -> None:
    begin(rig)
    rig.controller.stop_here(release=False)
    goals = rig.goals
    rig.controller.end()
    rig.step()
    assert rig.controller.phase is ArmPhase.ENDED
    assert rig.goals == goals
    assert rig.torque == RELEASED


def test_an_end_with_a_mute_servo_lets_go_of_all_the_others(rig: ArmRig) -> None:
    begin(rig)
    rig.follower.mute = rig.follower.deaf = {2}
    rig.step(3)
    rig.controller.end()
    rig.step()
    assert rig.controller.phase is ArmPhase.ENDED
    assert rig.torque == [False, True, False, False, False, False]


def test_the_loop_returns_when_it_has_ended_and_refuses_who_comes_later(rig: ArmRig) -> None:
    rig.controller.end()
    rig.controller.run()
    assert rig.controller.phase is ArmPhase.ENDED
    with pytest.raises(Refused, match="the control process is ending"):
        rig.controller.call(lambda: None)


# -- what other threads ask ----------------------------------------------------------------------


def test_a_call_that_its_asker_gave_up_is_not_carried_out_later(rig: ArmRig) -> None:
    """Else an arm would begin to move after the operator was told that it does not."""
    rig.step()
    with pytest.raises(TimeoutError):
        rig.controller.call(lambda: rig.controller.start_motion(Script(), "teleop"), timeout_s=0.0)
    rig.step()
    assert rig.controller.phase is ArmPhase.IDLE
    assert rig.torque == RELEASED


def test_a_bug_in_a_call_ends_the_loop_and_the_arm_goes_on_holding(rig: ArmRig) -> None:
    begin(rig)
    asked: Future[object] = rig.controller._calls.leave(lambda: [][1])
    with pytest.raises(IndexError):
        rig.step()
    assert isinstance(asked.exception(0), IndexError)
    assert rig.torque == ENERGISED


def test_a_subscriber_that_dies_is_a_fault_that_names_it_and_the_arm_holds(rig: ArmRig) -> None:
    begin(rig)
    rig.crash_in_subscriber = TypeError("no such thing")
    rig.step(3)
    assert rig.events == [("fault", "subscriber test died: TypeError: no such thing")]
    assert rig.controller.phase is ArmPhase.HOLDING
    assert rig.torque == ENERGISED


def test_a_thread_that_dies_holds_an_arm_that_moves_and_stays_in_the_status(rig: ArmRig) -> None:
    line = "thread journal died: ValueError: odd"
    rig.step()
    rig.controller.crashed(line)
    rig.step()
    assert rig.controller.phase is ArmPhase.IDLE
    assert (rig.events, rig.controller.problems()) == ([], [line])
    begin(rig)
    rig.controller.crashed(line)
    rig.step()
    assert rig.controller.phase is ArmPhase.HOLDING
    assert rig.events == [("fault", line)]
    assert rig.controller.problems() == [line]
    assert rig.torque == ENERGISED


def test_subscribers_hear_of_every_tick_of_a_motion_and_of_no_other(rig: ArmRig) -> None:
    begin(rig)
    rig.step(4)
    assert len(rig.ticks) == 5
    rig.controller.stop_here(release=False)
    rig.step(4)
    assert len(rig.ticks) == 5
