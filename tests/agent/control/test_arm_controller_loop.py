"""The arm controller's loop: what each pass does, how it is paced, and what its end closes."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from arm_rig import PERIOD_S, ArmRig, Script
from fake_servos import IDS

from agent.control.arm_controller import IDLE_PERIOD_S, RANGE_PERIOD_S, ArmController
from agent.control.arm_phases import ArmPhase
from agent.control.pacer import Pacer
from agent.errors import Refused


class CountingPacer(Pacer):
    """Waits for nobody; counts."""

    def __init__(self) -> None:
        super().__init__(PERIOD_S, lambda: 0.0, lambda _: None)
        self.waits = self.restarts = 0

    def wait(self) -> None:
        self.waits += 1

    def restart(self) -> None:
        self.restarts += 1


def waits_of(
    controller: ArmController, passes: int, monkeypatch: pytest.MonkeyPatch
) -> list[float]:
    """Run the loop for some passes at rest; how long it would have slept after each."""
    slept: list[float] = []
    run_calls = controller._calls.run

    def run(wait_s: float | None) -> None:
        if wait_s is not None:
            slept.append(wait_s)
            if len(slept) == passes:
                controller.end()
        run_calls(None)

    monkeypatch.setattr(controller._calls, "run", run)
    controller.run()
    return slept


def test_at_rest_it_sleeps_a_fifth_of_a_second_between_two_looks(
    rig: ArmRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert waits_of(rig.controller, 4, monkeypatch) == [IDLE_PERIOD_S] * 4


def test_a_range_that_is_recorded_is_looked_at_more_often(
    rig: ArmRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    monkeypatch.setattr(rig.controller.calibration, "recording", True)
    monkeypatch.setattr(rig.controller.calibration, "observe", lambda: looked.append(1))
    assert waits_of(rig.controller, 3, monkeypatch) == [RANGE_PERIOD_S] * 3
    assert len(looked) >= 3


def test_the_end_closes_ports_and_cameras_and_gives_a_calibration_up(
    rig: ArmRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    controller = rig.controller
    rig.step()
    assert controller.arms.follower is not None
    monkeypatch.setattr(controller.cameras, "close", lambda: closed.append("cameras"))
    monkeypatch.setattr(controller.calibration, "abandon", lambda: closed.append("calibration"))
    waits_of(controller, 2, monkeypatch)
    assert sorted(closed) == ["calibration", "cameras"]
    assert controller.arms.follower is None


def test_in_motion_it_waits_for_the_deadline_of_each_tick(rig: ArmRig) -> None:
    controller = rig.controller
    assert controller.pacer.period_s == pytest.approx(PERIOD_S)
    rig.step()
    controller.pacer = pacer = CountingPacer()
    controller.start_motion(Script(rig.here()), "teleop")
    assert pacer.restarts == 1, "the first tick of a motion is not late"
    ticks = controller.rate.ticks

    def end_after_some() -> None:
        if pacer.waits == 5:
            rig.clock.now_s += 100.0  # whatever is left of the way to rest is over
            controller.end()

    step = controller.step

    def stepping() -> None:
        rig.clock.now_s += PERIOD_S
        end_after_some()
        step()

    controller.step = stepping  # type: ignore[method-assign]
    controller.run()
    assert pacer.waits >= 5
    assert controller.rate.ticks > ticks


def test_the_pace_is_that_of_the_controllers_own_clock(rig: ArmRig) -> None:
    rig.controller.pacer.restart()
    rig.clock.now_s += 10 * PERIOD_S
    rig.controller.pacer.wait()
    assert rig.controller.pacer.missed == 10


def test_each_pass_is_one_beat(rig: ArmRig) -> None:
    before = rig.controller.beats
    rig.step(3)
    assert rig.controller.beats == before + 3


def test_the_rate_is_that_of_this_motion_alone(rig: ArmRig) -> None:
    rig.step()
    rig.controller.start_motion(Script(rig.here()), "teleop")
    rig.step(11)
    assert rig.controller.rate.ticks == 11
    assert rig.controller.rate.rate_hz == pytest.approx(1.0 / PERIOD_S)
    rig.controller.start_park()
    while rig.controller.phase is not ArmPhase.IDLE:
        rig.step()
    rig.controller.start_motion(Script(rig.here()), "teleop")
    rig.step(3)
    assert rig.controller.rate.ticks == 3


def test_a_status_may_be_asked_for_before_the_first_pass(rig: ArmRig) -> None:
    assert rig.controller.problems() == [
        "follower is not connected yet",
        "leader is not connected yet",
    ]
    rig.controller.arms.problems.clear()
    with pytest.raises(Refused, match="not ready: the follower is not connected"):
        rig.controller.require_ready()


def test_an_arm_at_rest_is_read_and_its_warnings_wait_for_a_motion(rig: ArmRig) -> None:
    rig.step(2)
    motion = rig.controller.motion
    assert motion is not None and motion.reading is not None
    np.testing.assert_allclose(motion.reading.position, rig.here(), atol=0.1)
    motion.warnings = ("follower elbow_flex is warm",)
    assert rig.controller.problems() == []
    rig.step()
    assert rig.controller.motion is motion, "one loop for one follower"
    rig.controller.start_motion(Script(rig.here()), "teleop")
    motion.warnings = ("follower elbow_flex is warm",)
    assert rig.controller.problems() == ["follower elbow_flex is warm"]


def test_another_follower_has_a_loop_of_its_own(rig: ArmRig) -> None:
    rig.step(2)
    motion = rig.controller.motion
    rig.controller.arms.lose("follower", "taken for a calibration")
    rig.step()
    assert rig.controller.phase is ArmPhase.CLOSED
    rig.controller._reconnect_s = float("inf")  # nobody looks; a calibration connects
    rig.controller.arms.connect()
    rig.controller._watch._missed = 3  # of the one before: one more would lose this one
    rig.follower.mute = set(IDS)
    rig.step()
    assert rig.controller.phase is ArmPhase.IDLE
    assert rig.controller.motion is not motion


def test_an_arm_found_energised_is_held_without_a_late_first_tick(rig: ArmRig) -> None:
    for servo_id in IDS:
        rig.follower.set(servo_id, "Torque_Enable", 1)
    rig.controller.pacer = pacer = CountingPacer()
    rig.step()
    assert rig.controller.phase is ArmPhase.HOLDING
    assert pacer.restarts == 1


def test_nobody_commands_an_arm_that_did_not_let_go(rig: ArmRig) -> None:
    rig.step()
    rig.controller.start_motion(Script(rig.here()), "teleop")
    rig.controller.start_park()
    rig.step(3)
    rig.follower.mute = rig.follower.deaf = {2}
    rig.controller._parking.over = lambda now_s: True  # type: ignore[method-assign, union-attr]
    rig.step()
    assert rig.controller.phase is ArmPhase.HOLDING
    assert rig.controller.motion is not None and rig.controller.motion.source is None


def test_who_waits_for_the_park_hears_of_it_also_at_the_end(rig: ArmRig) -> None:
    rig.obey()
    rig.step()
    run = rig.controller.start_motion(Script(rig.here()), "teleop")
    rig.step()
    rig.controller.end()
    while rig.controller.phase is not ArmPhase.ENDED:
        rig.step()
    assert run.parked.result(0) is None


def test_a_call_gives_its_result_to_the_thread_that_asked(rig: ArmRig) -> None:
    got: list[int] = []
    asker = threading.Thread(target=lambda: got.append(rig.controller.call(lambda: 5)))
    asker.start()
    while asker.is_alive():
        rig.step()
        asker.join(0.01)
    assert got == [5]
