"""What the commands promise to whoever waits for them, with the loop on a thread of its own."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arm_rig import ENERGISED, RELEASED, ArmRig, Script
from fake_servos import IDS

from agent.control import commands as commands_module
from agent.control.arm_phases import ArmPhase
from agent.control.cameras import View
from agent.control.commands import Commands
from agent.control.policy_source import LoadedPolicy, PolicySource
from agent.control.recorded_tick import record_tick
from agent.errors import Refused
from agent.inference.channel import PolicyChannel
from agent.recording.journal import EpisodeReader
from agent.recording.session import RecordingSession

QUICK = {"fps": 25.0, "realtime_priority": 0, "max_missed_reads": 10, "park_speed_per_s": 180.0}


LEASE_S = 8.0  # longer than any test that does not wait for its end


class ScriptedPolicy(PolicySource):
    """A policy that is armed and wants what the script says."""

    script: Script
    ready: LoadedPolicy | None = None

    @property
    def loaded(self) -> LoadedPolicy | None:
        return self.ready

    def unload(self) -> None:
        self.ready = None

    def begin(self, observation: Any, now_s: float) -> None:
        self.script.begin(observation, now_s)

    def action(self, observation: Any, now_s: float) -> Any:
        return self.script.action(observation, now_s)

    def end(self) -> None:
        self.script.end()


class Bench(ArmRig):
    """Commands on a controller that runs; a worker for those that wait."""

    def __init__(self, folder: Path, **more: Any) -> None:
        super().__init__(folder, table={"control": QUICK, "rollout": {"lease_s": LEASE_S}}, **more)
        self.obey()
        self.controller = self.make(time.monotonic)
        self.recording = RecordingSession(self.config, lambda: self.controller.pacer.missed)
        channel = PolicyChannel(self.config.inference_socket)
        self.policy = ScriptedPolicy.from_config(self.config, channel)
        self.policy.script = Script()
        self.commands = Commands(self.config, self.controller, self.recording, self.policy)
        self.workers = ThreadPoolExecutor(2)
        self.thread = threading.Thread(target=self.controller.run)
        self.thread.start()
        self.until(ArmPhase.IDLE)

    def on_event(self, name: str, reason: str | None) -> None:
        super().on_event(name, reason)
        self.commands.motion_ended(name, reason)

    def _subscribe(self, tick: Any) -> None:
        super()._subscribe(tick)
        self.commands.tick()
        if self.controller.phase.purpose != "park":
            by_person = self.commands.corrected_by_person
            record_tick(self.recording, tick, intervention=by_person)

    def until(self, *phases: ArmPhase) -> None:
        end_s = time.monotonic() + 10.0
        while self.controller.phase not in phases:
            assert time.monotonic() < end_s, f"still {self.controller.phase}"
            time.sleep(0.005)

    def until_tick(self, count: int) -> None:
        end_s = time.monotonic() + 10.0
        while len(self.ticks) < count:
            assert time.monotonic() < end_s, f"{len(self.ticks)} ticks"
            time.sleep(0.005)

    def until_event(self, name: str) -> None:
        end_s = time.monotonic() + 10.0
        while name not in [event for event, _ in self.events]:
            assert time.monotonic() < end_s, f"{self.events}"
            time.sleep(0.005)

    def until_intervention(self, ticks: int) -> None:
        end_s = time.monotonic() + 10.0
        while self.commands.rollout_status()["intervention_ticks"] < ticks:
            assert time.monotonic() < end_s, "the leader has not got the arm"
            time.sleep(0.005)

    def ask(self, name: str, **arguments: Any) -> Future[dict[str, Any]]:
        return self.workers.submit(self.commands.run, name, arguments)

    def lead(self, by: int) -> None:
        assert self.leader is not None
        for servo_id in IDS:
            self.leader.set(servo_id, "Present_Position", 2000 + servo_id + by)

    def close(self) -> None:
        self.controller.end()
        self.thread.join(15.0)
        assert not self.thread.is_alive()
        self.workers.shutdown()
        self.recording.close()
        super().close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


@pytest.fixture
def armed(bench: Bench) -> Bench:
    bench.policy.ready = LoadedPolicy("7", 7, "ab", 1.0, None)  # type: ignore[arg-type]
    bench.policy.script.goal = bench.here()
    bench.controller.lease.begin()
    return bench


def saved(bench: Bench) -> EpisodeReader:
    """The one episode that was kept."""
    bench.commands.finish_recorded_rollout()
    [path] = bench.config.journal_dir.glob("*.mcap")
    return EpisodeReader(path)


def test_teleoperation_has_begun_when_the_follower_follows(bench: Bench) -> None:
    bench.lead(100)
    assert bench.ask("teleop_start").result(10) == {}
    assert bench.controller.phase is ArmPhase.TELEOP
    assert bench.positions == pytest.approx([2000 + servo_id + 100 for servo_id in IDS], abs=2)


def test_a_leader_far_away_is_told_when_the_arm_is_released_again(bench: Bench) -> None:
    bench.lead(990)
    bench.follower.set(1, "Present_Position", 1500)
    with pytest.raises(
        Refused, match=r"too far.*shoulder_pan by .*; bring the leader near the follower's pose$"
    ):
        bench.ask("teleop_start").result(15)
    assert bench.controller.phase is ArmPhase.IDLE
    assert bench.torque == RELEASED


def test_without_a_leader_there_is_no_teleoperation(tmp_path: Path) -> None:
    bench = Bench(tmp_path, leader=False)
    try:
        with pytest.raises(Refused, match=r"no teleoperation: no leader is configured"):
            bench.commands.teleop_start()
    finally:
        bench.close()


def test_a_fault_on_the_way_is_told_at_once_with_its_reason(bench: Bench) -> None:
    bench.lead(600)
    waiting = bench.ask("teleop_start")
    bench.until_tick(1)
    bench.follower.mute = {3}
    with pytest.raises(Refused, match=r"^follower lost after 11 missed reads: .*elbow_flex"):
        waiting.result(20)
    assert bench.torque == ENERGISED


def test_an_emergency_stop_on_the_way_ends_the_waiting(bench: Bench) -> None:
    bench.lead(600)
    waiting = bench.ask("teleop_start")
    bench.until(ArmPhase.TELEOP)
    bench.commands.estop(release=False)
    with pytest.raises(Refused, match="the motion was ended"):
        waiting.result(10)


def test_a_park_on_the_way_is_no_success_of_who_waited(bench: Bench) -> None:
    bench.lead(600)
    waiting = bench.ask("teleop_start")
    bench.until(ArmPhase.TELEOP)
    assert bench.commands.park(energise=False) == {}
    with pytest.raises(Refused, match="the motion was ended"):
        waiting.result(10)


def test_waiting_has_an_end_that_says_for_what(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands_module, "IN_STEP_S", 0.1)
    monkeypatch.setattr(commands_module, "PARKED_S", 0.1)
    bench.lead(600)
    with pytest.raises(Refused, match="the follower did not come into step within 0 s"):
        bench.commands.teleop_start()
    with pytest.raises(Refused, match="the arm was not parked within 0 s"):
        bench.commands.park(energise=False)


def test_a_park_returns_when_the_arm_is_released_at_rest(bench: Bench) -> None:
    bench.ask("teleop_start").result(10)
    bench.commands.park(energise=False)
    assert bench.controller.phase is ArmPhase.IDLE
    assert bench.torque == RELEASED
    assert bench.here()[3] == pytest.approx(66.0, abs=0.5)
    assert bench.events == [("released", None)]


def test_an_arm_at_rest_is_moved_only_where_that_was_asked_for(bench: Bench) -> None:
    bench.commands.park(energise=False)
    assert bench.events == []
    bench.commands.park(energise=True)
    assert bench.events == [("released", None)]


def test_a_park_that_is_stopped_says_that_the_arm_is_held(bench: Bench) -> None:
    bench.ask("teleop_start").result(10)
    waiting = bench.ask("park", energise=False)
    bench.until(ArmPhase.PARKING)
    bench.commands.estop(release=False)
    with pytest.raises(Refused, match="the arm was not parked: it is held"):
        waiting.result(10)
    assert bench.commands.reset() == {"parked": True}
    assert bench.torque == RELEASED
    assert bench.commands.reset() == {"parked": False}


def test_two_may_wait_for_the_same_park(bench: Bench) -> None:
    bench.ask("teleop_start").result(10)
    first, second = bench.ask("park", energise=False), bench.ask("park", energise=True)
    assert (first.result(10), second.result(10)) == ({}, {})
    assert bench.events == [("released", None)]


def test_recording_begins_with_teleoperation_and_is_durable_at_its_finish(bench: Bench) -> None:
    episode = bench.ask("record_start", task="lift").result(10)["episode_id"]
    assert bench.controller.phase is ArmPhase.TELEOP
    with pytest.raises(Refused, match="already being recorded"):
        bench.commands.record_start("again")
    bench.until_tick(len(bench.ticks) + 10)
    result = bench.commands.record_finish()
    assert episode in result["episode"] and result["frames"] >= 9
    bench.ask("record_start", task="lift").result(10)
    assert bench.commands.record_discard() == {}
    bench.commands.park(energise=False)


def test_recording_needs_teleoperation(armed: Bench) -> None:
    armed.commands.rollout_start(30.0, "t", record=False)
    with pytest.raises(Refused, match=r"needs teleoperation; the arm is moving \(rollout\)"):
        armed.commands.record_start("t")


def test_recording_needs_every_camera_and_the_object_seen_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    cameras = bench.controller.cameras
    monkeypatch.setattr(cameras, "look", lambda: View(missing=("camera wrist is gone: why",)))
    with pytest.raises(Refused, match=r"^camera wrist is gone: why$"):
        bench.commands.record_start("lift")
    nowhere = np.full(2, np.nan, np.float32)
    monkeypatch.setattr(cameras, "look", lambda: View(environment=nowhere))
    with pytest.raises(Refused, match="was not seen yet by camera"):
        bench.commands.record_start("lift")
    assert bench.controller.phase is ArmPhase.IDLE
    assert not bench.recording.active


def test_a_fault_fails_the_episode_and_a_park_sets_it_aside(bench: Bench) -> None:
    bench.ask("record_start", task="lift").result(10)
    bench.follower.mute = {3}
    bench.until(ArmPhase.HOLDING)
    with pytest.raises(Refused, match="not saved: a fault ended it: follower lost"):
        bench.commands.record_finish()
    bench.follower.mute = set()
    bench.commands.reset()
    bench.ask("record_start", task="lift").result(10)
    bench.commands.park(energise=False)
    assert not bench.recording.active
    assert len(list((bench.config.journal_dir / "unfinished").glob("*.part"))) == 2


def test_a_rollout_ends_by_itself_and_its_episode_is_saved(armed: Bench) -> None:
    assert armed.commands.rollout_start(0.5, "lift", record=True) == {"policy": "7", "version": 7}
    assert armed.commands.rollout_status()["running"]
    with pytest.raises(Refused, match="already running"):
        armed.commands.rollout_start(1.0, "lift", record=False)
    armed.until(ArmPhase.PARKING)
    armed.until(ArmPhase.IDLE)
    armed.commands.finish_recorded_rollout()
    status = armed.commands.rollout_status()
    assert (status["running"], status["outcome"]) == (False, "ran its time")
    assert status["ticks"] >= 5
    assert armed.recording.status()["episodes"] == 1


def test_a_rollout_tells_what_ended_it(armed: Bench) -> None:
    armed.commands.rollout_start(30.0, "t", record=False)
    rollout = armed.commands.rollout_stop()["rollout"]
    assert rollout["outcome"] == "stopped by the operator"
    assert armed.controller.phase is ArmPhase.IDLE

    armed.policy.script.goal = armed.here()
    armed.commands.rollout_start(30.0, "t", record=False)
    armed.commands.estop(release=False)
    assert armed.commands.rollout_status()["outcome"] == "the emergency stop ended it"
    armed.commands.reset()
    assert armed.policy.loaded is None  # a reset forgets it

    with pytest.raises(Refused, match="no policy is loaded; arm one first"):
        armed.commands.rollout_start(30.0, "t", record=False)


@pytest.mark.parametrize("success", [True, False])
def test_the_operator_says_how_an_episode_went(armed: Bench, success: bool) -> None:
    armed.commands.rollout_start(30.0, "lift", record=True)
    armed.until_tick(5)
    verb = "success" if success else "failure"
    rollout = armed.ask(f"rollout_{verb}").result(10)["rollout"]
    assert (rollout["outcome"], rollout["success"]) == (verb, success)
    assert armed.torque == RELEASED
    reader = saved(armed)
    assert reader.end is not None and reader.end.success is success
    assert (reader.meta.source, reader.meta.policy, reader.meta.policy_digest) == (
        "rollout",
        "7",
        "ab",
    )


def test_how_it_went_may_still_be_said_while_the_arm_parks(armed: Bench) -> None:
    armed.commands.rollout_start(0.3, "lift", record=True)
    armed.until(ArmPhase.PARKING)
    rollout = armed.ask("rollout_success").result(10)["rollout"]
    assert (rollout["outcome"], rollout["success"]) == ("ran its time", True)


def test_the_leader_takes_over_when_it_is_near_and_its_ticks_are_marked(armed: Bench) -> None:
    armed.lead(990)  # too far: the policy is stopped all the same
    armed.follower.set(1, "Present_Position", 1500)
    armed.policy.script.goal = armed.here()
    armed.commands.rollout_start(30.0, "lift", record=True)
    armed.until_tick(5)
    armed.commands.rollout_takeover()
    asked = armed.policy.script.asked
    armed.until_tick(len(armed.ticks) + 3)
    status = armed.commands.rollout_status()
    assert status["takeover"] and "too far" in status["awaited"]
    assert armed.policy.script.asked == asked
    held = armed.here()
    armed.lead(300)
    armed.until_intervention(5)
    assert armed.commands.rollout_status()["awaited"] is None
    assert armed.here() != pytest.approx(held, abs=5.0)
    armed.policy.script.goal = armed.here()
    armed.commands.rollout_handback()
    armed.until_tick(len(armed.ticks) + 5)
    assert armed.controller.phase is ArmPhase.ROLLOUT
    assert armed.policy.script.asked > asked
    armed.commands.rollout_success()
    told = [sample.intervention for sample, _ in saved(armed).samples()]
    changes = sum(a != b for a, b in itertools.pairwise(told))
    assert sum(told) >= 5 and changes == 2  # one stretch, in the middle
    assert not told[0] and not told[-1]


def test_a_takeover_needs_a_rollout_and_a_way_back_a_takeover(armed: Bench) -> None:
    with pytest.raises(Refused, match="no rollout is running"):
        armed.commands.rollout_takeover()
    armed.commands.rollout_start(30.0, "t", record=False)
    with pytest.raises(Refused, match="the leader takes over where a policy drives"):
        armed.commands.rollout_handback()
    armed.commands.rollout_takeover()
    with pytest.raises(Refused, match="the leader takes over where a policy drives"):
        armed.commands.rollout_takeover()
    armed.commands.rollout_stop()


def test_no_rollout_begins_without_its_operators_lease(armed: Bench) -> None:
    armed.controller.lease.end()
    with pytest.raises(Refused, match="nobody holds the rollout's lease"):
        armed.commands.rollout_start(5.0, "t", record=False)
    with pytest.raises(Refused, match="lease is over; arm it again"):
        armed.commands.rollout_beat("an old one")


def test_a_rollout_whose_operator_is_gone_holds_then_parks_and_is_set_aside(
    armed: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(armed.controller.lease, "lasts_s", 0.3)
    lease = armed.controller.lease.begin()
    armed.commands.rollout_start(30.0, "lift", record=True)
    for _ in range(8):
        time.sleep(0.1)
        armed.commands.rollout_beat(lease)
    assert armed.controller.phase is ArmPhase.ROLLOUT
    renewed_s = time.monotonic()
    armed.until(ArmPhase.ABANDONED)
    assert 0.2 <= time.monotonic() - renewed_s <= 1.0
    asked = armed.policy.script.asked
    assert armed.torque == ENERGISED
    with pytest.raises(Refused, match="lease is over"):
        armed.commands.rollout_beat(lease)  # too late: it does not go on
    armed.until(ArmPhase.PARKING)
    armed.until(ArmPhase.IDLE)
    armed.until_event("abandoned")
    assert armed.policy.script.asked == asked
    assert armed.torque == RELEASED
    assert armed.policy.loaded is None
    assert [name for name, _ in armed.events] == ["operator_lost", "released", "abandoned"]
    status = armed.commands.rollout_status()
    assert (status["running"], status["outcome"]) == (False, "the rollout's operator is gone")
    armed.commands.finish_recorded_rollout()
    assert not list(armed.config.journal_dir.glob("*.mcap"))
    assert len(list((armed.config.journal_dir / "unfinished").glob("*.part"))) == 1


def test_an_operator_who_leaves_between_two_episodes_disarms(
    armed: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(armed.controller.lease, "lasts_s", 0.1)
    armed.controller.lease.begin()
    armed.until_event("abandoned")
    assert armed.controller.phase is ArmPhase.IDLE
    assert armed.policy.loaded is None


def test_a_policy_that_begins_far_away_is_refused_by_name(armed: Bench) -> None:
    armed.policy.script.goal = armed.here() + 100
    armed.commands.rollout_start(30.0, "t", record=False)
    armed.until(ArmPhase.PARKING)
    armed.until(ArmPhase.IDLE)
    outcome = armed.commands.rollout_status()["outcome"]
    assert outcome.startswith("the first goal is too far from where the arm is: shoulder_pan")


def test_a_policys_fault_ends_the_rollout_and_holds(armed: Bench) -> None:
    armed.commands.rollout_start(30.0, "t", record=False)
    armed.policy.script.fault = "no action from the policy for 1.0 s"
    armed.until(ArmPhase.HOLDING)
    outcome = armed.commands.rollout_status()["outcome"]
    assert outcome == "fault: no action from the policy for 1.0 s"
    assert armed.torque == ENERGISED


def test_a_rollout_that_cannot_begin_is_over(armed: Bench) -> None:
    armed.commands.estop(release=True)
    with pytest.raises(Refused, match="emergency stop is on"):
        armed.commands.rollout_start(5.0, "lift", record=True)
    status = armed.commands.rollout_status()
    assert not status["running"] and "emergency stop" in status["outcome"]
    assert not armed.recording.active
    with pytest.raises(Refused, match="no rollout is running"):
        armed.commands.rollout_stop()


def test_calibration_is_refused_while_the_arm_is_energised(bench: Bench) -> None:
    bench.ask("teleop_start").result(10)
    with pytest.raises(Refused, match="the arm is energised; park it first"):
        bench.commands.calibrate("leader", "homing")
    bench.commands.park(energise=False)
    assert bench.commands.calibrate("leader", "homing")["step"] == "homing"


def test_an_unknown_command_is_refused_by_name(bench: Bench) -> None:
    with pytest.raises(Refused, match="knows no command 'dance'"):
        bench.commands.run("dance", {})
