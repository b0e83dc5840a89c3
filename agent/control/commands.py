"""What the supervisor may ask of the control process. Runs on worker threads, which may wait."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.config import AgentConfig
from agent.control.arm_controller import ArmController
from agent.control.arm_phases import ArmPhase
from agent.control.errors import FirstMoveRefused
from agent.control.motion_run import MotionRun
from agent.control.policy_source import PolicySource
from agent.control.sources import LeaderSource
from agent.errors import Refused
from agent.operations.arguments import ArmName, CalibrationStep
from agent.operations.operation import RAN_ITS_TIME, Operation
from agent.operations.table import OPERATIONS, control_commands
from agent.recording.session import RecordingSession
from robot_io.arm import Leader

log = logging.getLogger(__name__)

IN_STEP_S = 25.0
PARKED_S = 35.0


@dataclass
class RolloutRun:
    """The running episode of a policy, or the last one."""

    policy: str | None = None
    running: bool = False
    recorded: bool = False
    seconds: float = 0.0
    ticks: int = 0
    clamped_ticks: int = 0  # of them, those where a limit met the policy's goal
    missed_deadlines: int = 0
    missed_before: int = 0
    outcome: str | None = None
    success: bool | None = None  # None: nobody said
    intervention_ticks: int = 0


class Commands:
    """One method a command; each returns what the reply carries or raises an AgentError."""

    def __init__(
        self,
        config: AgentConfig,
        controller: ArmController,
        recording: RecordingSession,
        policy: PolicySource,
        clock: Callable[[], float] = time.monotonic,
        operations: Iterable[Operation] = OPERATIONS,
    ) -> None:
        self._config = config
        self._known = control_commands(operations)
        self._controller = controller
        self._recording = recording
        self._policy = policy
        self._clock = clock
        self._run = RolloutRun()
        self._started_s = 0.0
        self._limits = 1.0  # the loaded policy's share of the arm's

    def run(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Run one command of the operations table by name. Raises Refused, BadArguments."""
        if name not in self._known:
            raise Refused(f"the control process knows no command {name!r}")
        checked = self._known[name].parse(arguments)
        checked.check(self._config)
        method: Callable[..., dict[str, Any]] = getattr(self, name)
        return method(**checked.model_dump())

    def calibrate(self, arm: ArmName, step: CalibrationStep) -> dict[str, Any]:
        """One step; torque is off and stays off."""
        controller = self._controller
        return controller.call(lambda: controller.calibrate(arm, step))

    def teleop_start(self) -> dict[str, Any]:
        """Returns when the follower follows the leader."""
        controller = self._controller
        source = LeaderSource(self._leader(), self._config.control.max_missed_reads)
        _wait_in_step(controller.call(lambda: controller.start_motion(source, "teleop")))
        return {}

    def record_start(self, task: str) -> dict[str, Any]:
        """Returns when the first tick of the episode may come."""
        controller = self._controller
        if self._recording.active:
            raise Refused("an episode is already being recorded; finish or discard it first")
        controller.call(controller.require_ready)
        self._require_view()
        phase, run = controller.call(lambda: (controller.phase, controller.last_run))
        if phase is ArmPhase.IDLE:
            self.teleop_start()
        elif phase is not ArmPhase.TELEOP or run is None:
            raise Refused(f"recording needs teleoperation; the arm is {_doing(phase)}")
        else:
            _wait_in_step(run)
        return {"episode_id": self._recording.start(task, self._calibration_digest())}

    def record_finish(self, success: bool | None = None) -> dict[str, Any]:
        """The episode is durable when this returns."""
        return self._recording.finish(success)

    def record_discard(self) -> dict[str, Any]:
        """Nothing of the episode is kept."""
        self._recording.discard()
        return {}

    def park(self, energise: bool) -> dict[str, Any]:
        """Park and release; an arm at rest is moved only with `energise`."""
        controller = self._controller
        self._recording.set_aside("the arm was parked before the episode was finished")

        def start() -> MotionRun | None:
            return controller.start_park() if energise or controller.phase.moving else None

        run = controller.call(start)
        if run is not None:
            _wait_parked(run)
        return {}

    def rollout_arm(self, folder: str, policy: str, limits: float) -> dict[str, Any]:
        """Have the inference process load the policy; waits for it."""
        if self._run.running:
            raise Refused("a rollout is running; policies are swapped between episodes only")
        self._controller.call(self._controller.require_ready)
        self._controller.lease.end()  # nothing moves while a policy is loaded
        loaded = self._policy.load(Path(folder), self._config.rollout.load_timeout_s)
        self._run = RolloutRun(policy=loaded.name)
        self._limits = limits
        return {
            "policy": policy,
            "version": loaded.version,
            "digest": loaded.digest,
            "chunk_size": loaded.chunk_size,
            "fps": loaded.fps,
            "latency_ms": loaded.latency_ms,
            "lease": self._controller.lease.begin(),
            "lease_s": self._controller.lease.lasts_s,
            "limits": limits,
        }

    def rollout_beat(self, lease: str) -> dict[str, Any]:
        """The operator is there still."""
        self._controller.lease.renew(lease)
        return {}

    def rollout_start(self, seconds: float, task: str | None, record: bool) -> dict[str, Any]:
        """Give command to the policy; the episode ends by itself, in the park pose."""
        controller = self._controller
        loaded = self._policy.loaded
        if loaded is None:
            raise Refused("no policy is loaded; arm one first (rollout/arm)")
        if self._run.running:
            raise Refused("a rollout is already running; stop it first (rollout/stop)")
        if not controller.lease.held:
            raise Refused("nobody holds the rollout's lease; arm it again (rollout/arm)")
        self._require_view()
        self._run = RolloutRun(
            policy=loaded.name,
            running=True,
            recorded=record,
            missed_before=controller.pacer.missed,
        )
        self._started_s = self._clock()
        self._policy.task = task or ""
        try:
            if record:
                self._recording.start(task or "rollout", self._calibration_digest(), loaded)
            controller.call(
                lambda: controller.start_motion(
                    self._policy, "rollout", seconds=seconds, limits=self._limits
                )
            )
        except (Refused, TimeoutError) as error:
            self._end_run(str(error))
            if record:
                self._recording.set_aside(str(error))
            raise
        return {"policy": loaded.name, "version": loaded.version}

    def rollout_takeover(self) -> dict[str, Any]:
        """The arm holds at once, and follows the leader when that is near."""
        self._require_running()
        leader = self._leader()
        source = LeaderSource(leader, self._config.control.max_missed_reads)
        self._controller.call(lambda: self._controller.take_over(source))
        return {}

    def rollout_handback(self) -> dict[str, Any]:
        """The policy has the arm again, by the ramp."""
        self._require_running()
        self._controller.call(lambda: self._controller.hand_back(self._policy))
        return {}

    def rollout_success(self) -> dict[str, Any]:
        """End the episode, in which the task was done; returns when the arm is parked."""
        return self._finish_run("success", success=True)

    def rollout_failure(self) -> dict[str, Any]:
        """End the episode, in which the task was not done; returns when the arm is parked."""
        return self._finish_run("failure", success=False)

    def rollout_stop(self) -> dict[str, Any]:
        """End the episode; returns when the arm is parked."""
        return self._finish_run("stopped by the operator")

    def rollout_disarm(self) -> dict[str, Any]:
        """End the episode if one runs, then forget the policy."""
        if self._run.running:
            self.rollout_stop()
        self._controller.lease.end()
        self._policy.unload()
        return {}

    def estop(self, release: bool) -> dict[str, Any]:
        """Stop now."""
        controller = self._controller
        controller.call(lambda: controller.stop_here(release=release))
        self._recording.set_aside("the emergency stop ended it")
        self._end_run("the emergency stop ended it")
        return {}

    def reset(self) -> dict[str, Any]:
        """Look at the hardware again; park an arm that is energised."""
        controller = self._controller
        self._recording.set_aside("a fault ended it")
        run = controller.call(controller.reset)
        if run is not None:
            _wait_parked(run)
        controller.lease.end()
        if self._policy.loaded is not None:
            self._policy.unload()
        return {"parked": run is not None}

    # What the loop thread reports.

    def tick(self, *, clamped: bool = False) -> None:
        """One tick of motion was made; a subscriber."""
        if self._run.running and self._controller.phase is ArmPhase.ROLLOUT:
            self._run.ticks += 1
            self._run.clamped_ticks += clamped
        elif self._run.running and self.corrected_by_person:
            self._run.intervention_ticks += 1

    @property
    def corrected_by_person(self) -> bool:
        """True while the leader has the arm of a rollout wholly."""
        motion = self._controller.motion
        taken_over = self._controller.phase is ArmPhase.TAKEOVER
        return taken_over and motion is not None and motion.in_step

    def motion_ended(self, name: str, reason: str | None) -> None:
        """Somebody or something ended a motion; the events of `ArmController`."""
        if name == "operator_lost":
            self._recording.fail(str(reason))
            self._run.outcome = reason if self._run.running else self._run.outcome
        elif name == "abandoned":
            if self._policy.loaded is not None:
                self._policy.unload()
        elif name == "fault":
            self._recording.fail(f"a fault ended it: {reason}")
            self._end_run(f"fault: {reason}")
        else:
            run = self._controller.last_run
            refusal = None if run is None else run.refusal
            self._end_run(self._run.outcome or refusal or RAN_ITS_TIME)

    def finish_recorded_rollout(self) -> None:
        """Save a rollout's episode once it has ended; waits for the disk."""
        if self._run.recorded and not self._run.running and self._recording.active:
            try:
                self._recording.finish(self._run.success)
            except Refused as error:
                log.error("%s", error)  # noqa: TRY400

    def rollout_status(self) -> dict[str, Any]:
        """The `rollout` part of the status."""
        run, source = self._run, self._policy.status()
        motion = self._controller.motion
        now_missed = self._controller.pacer.missed - run.missed_before
        return {
            "armed": self._policy.loaded is not None,
            "running": run.running,
            "policy": run.policy,
            "ticks": run.ticks,
            "clamped_ticks": run.clamped_ticks,
            "limits": self._limits,
            "holds": source["held_ticks"],
            "missed_deadlines": now_missed if run.running else run.missed_deadlines,
            "seconds": round(self._clock() - self._started_s, 2) if run.running else run.seconds,
            "outcome": run.outcome,
            "success": run.success,
            "takeover": self._controller.phase is ArmPhase.TAKEOVER,
            "awaited": None if motion is None else motion.awaited,
            "intervention_ticks": run.intervention_ticks,
            "inference": source,
        }

    def _end_run(self, outcome: str) -> None:
        run = self._run
        if not run.running:
            return
        run.missed_deadlines = self._controller.pacer.missed - run.missed_before
        run.seconds = round(self._clock() - self._started_s, 2)
        run.outcome = outcome
        run.running = False

    def _finish_run(self, outcome: str, *, success: bool | None = None) -> dict[str, Any]:
        self._require_running()
        if self._controller.phase in (ArmPhase.ROLLOUT, ArmPhase.TAKEOVER):
            self._run.outcome = outcome
        if success is not None:  # also of an episode that parks already
            self._run.success = success
        _wait_parked(self._controller.call(self._controller.start_park))
        return {"rollout": self.rollout_status()}

    def _require_running(self) -> None:
        if not self._run.running:
            raise Refused("no rollout is running")

    def _leader(self) -> Leader:
        arms = self._controller.arms
        if arms.leader is None:
            reason = arms.problems.get("leader", "no leader is configured ([teleop])")
            raise Refused(f"no teleoperation: {reason}")
        return arms.leader

    def _require_view(self) -> None:
        """An episode begins only with every camera there and every tracked object seen once."""
        controller = self._controller
        view = controller.call(controller.look)
        if view.missing:
            raise Refused(view.missing[0])
        if not view.located:
            raise Refused(controller.cameras.unseen())

    def _calibration_digest(self) -> str:
        follower = self._controller.arms.follower
        return "" if follower is None else follower.calibration.digest()


def _doing(phase: ArmPhase) -> str:
    return phase.value if phase.purpose is None else f"moving ({phase.purpose})"


def _wait_in_step(run: MotionRun) -> None:
    """Until the source has the arm. Raises Refused if it was not let in, or at fault."""
    try:
        run.in_step.result(IN_STEP_S)
    except FirstMoveRefused as refusal:
        _wait_parked(run)
        raise Refused(f"{refusal}; bring the leader near the follower's pose") from refusal
    except TimeoutError as error:
        raise Refused(f"the follower did not come into step within {IN_STEP_S:.0f} s") from error


def _wait_parked(run: MotionRun) -> None:
    """Until the arm is released. Raises Refused if it cannot be."""
    try:
        run.parked.result(PARKED_S)
    except TimeoutError as error:
        raise Refused(f"the arm was not parked within {PARKED_S:.0f} s") from error
