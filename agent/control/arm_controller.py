"""The one thread that owns the arms, from port to torque: the shell of `arm_phases`.

Other threads ask by `call`, which runs a function between two ticks, and wait for a `MotionRun`.
Nothing here waits for anybody but the servos.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

from agent.config import AgentConfig
from agent.control.arm_phases import ArmEvent, ArmPhase, Effect, next_phase
from agent.control.arms import Arms
from agent.control.calibration_session import CalibrationSession
from agent.control.cameras import Cameras, View
from agent.control.errors import FirstMoveRefused, MotionFault
from agent.control.idle_watch import IdleWatch
from agent.control.lease import OperatorLease
from agent.control.loop import FirstMove, MotionLoop, Subscriber
from agent.control.loop_calls import LoopCalls
from agent.control.motion_run import MotionRun
from agent.control.observation import ActionSource
from agent.control.pacer import Pacer, RateMeter
from agent.control.parking import Parking
from agent.errors import Refused
from agent.operations.arguments import ArmName, CalibrationStep
from robot_io.errors import RobotIOError

log = logging.getLogger(__name__)

IDLE_PERIOD_S = 0.2
RANGE_PERIOD_S = 0.03  # while a joint's range is recorded: a person's hand turns at its ends
RECONNECT_S = 3.0
SHUTDOWN_PARK_S = 10.0
ABANDONED_HOLD_S = 2.0  # a person beside the arm sees that it stopped before it goes to rest
OPERATOR_GONE = "the rollout's operator is gone"


class ArmController:
    """See the module. `on_event(name, reason)` is called on the loop thread."""

    def __init__(
        self,
        config: AgentConfig,
        arms: Arms,
        cameras: Cameras,
        subscribers: Mapping[str, Subscriber],
        on_event: Callable[[str, str | None], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.arms = arms
        self.cameras = cameras
        self.calibration = CalibrationSession(config, arms)
        self.phase = ArmPhase.CLOSED
        self.view = View()
        self.beats = 0
        self.pacer = Pacer(1.0 / config.control.fps, clock)
        self.rate = RateMeter()
        self.lease = OperatorLease(config.rollout.lease_s, clock)
        self.motion: MotionLoop | None = None
        self.last_run: MotionRun | None = None  # or the present one
        self._subscribers = subscribers
        self._on_event = on_event
        self._clock = clock
        self._calls = LoopCalls()
        self._watch = IdleWatch(arms)
        self._crashes: list[str] = []
        self._reconnect_s = 0.0
        # What goes with the event that is handled, or with the phase that it led to.
        self._source: ActionSource | None = None
        self._policy_limits = 1.0
        self._parking: Parking | None = None
        self._until_s: float | None = None
        self._taken_over_s = 0.0
        self._abandoned = False  # and nobody was told yet
        self._reason = ""
        self._effects: dict[Effect, Callable[[], ArmEvent | None]] = {
            Effect.CONNECT: self._connect,
            Effect.HOLD_FOUND: self._hold_found,
            Effect.ENGAGE: self._engage,
            Effect.HAND_OVER: self._hand_over,
            Effect.PARK: self._park,
            Effect.HOLD_HERE: self._hold_here,
            Effect.HOLD: self._hold,
            Effect.LOSE_PORT: self._lose_port,
            Effect.RELEASE: self._release,
            Effect.LET_GO: self._let_go,
            Effect.ANNOUNCE_FAULT: self._announce_fault,
            Effect.ANNOUNCE_RELEASED: self._announce_released,
        }

    # For other threads.

    def call[T](self, function: Callable[[], T], timeout_s: float = 20.0) -> T:
        """Run `function` on the loop thread between two ticks; its result or exception.

        Raises TimeoutError, and then it is not run any more; Refused when the process is ending.
        """
        return self._calls.ask(function, timeout_s)

    def end(self) -> None:
        """Park if energised, release, then let `run` return. May be called in a signal handler."""
        self._calls.leave(self._end)

    def crashed(self, line: str) -> None:
        """A thread of this process died: keep its line for the status; an arm that moves holds."""
        if line not in self._crashes:
            self._crashes.append(line)
        self._calls.leave(lambda: self._happened(ArmEvent.CRASH, line))

    @property
    def ready(self) -> bool:
        """True when the follower may be moved or is moving."""
        return self.phase.connected and "follower" not in self.arms.problems

    def problems(self) -> list[str]:
        """One line for each thing that is not as it should be."""
        lines = [*self.arms.problems.values(), *self.view.missing, *self._crashes]
        if self.motion is not None and self.phase.energised:
            lines += self.motion.warnings
        return lines

    # The loop thread.

    def run(self) -> None:
        """Until `end` was called and the arm is parked and released.

        When anything unforeseen is raised the torque is left on: the arm holds, and the next
        control process finds it so.
        """
        while self.phase is not ArmPhase.ENDED:
            self.step()
            if self.phase.energised:
                self.pacer.wait()
            else:
                self._calls.run(RANGE_PERIOD_S if self.calibration.recording else IDLE_PERIOD_S)
        self._calls.close()
        self.calibration.abandon()
        self.arms.close()
        self.cameras.close()

    def step(self) -> None:
        """One pass of the loop: what was asked for, then one tick. Waits for the servos alone."""
        self.beats += 1
        self._calls.run(None)
        if self.lease.end_if_lost():
            self._abandon()
        if self.phase.energised:
            self._motion_tick()
        elif self.phase is not ArmPhase.ENDED:
            self._idle_tick()
        if self._abandoned and not self.phase.energised:
            self._abandoned = False
            self._on_event("abandoned", OPERATOR_GONE)

    def start_motion(
        self,
        source: ActionSource,
        purpose: Literal["teleop", "rollout"],
        *,
        seconds: float | None = None,
        limits: float = 1.0,
    ) -> MotionRun:
        """Energise the arm and give command to `source`; park after `seconds`. Raises Refused.

        A policy gets that share of the step's and the velocity's limits; nobody else is reduced.
        """
        self._require_free()
        self._source = source
        self._policy_limits = limits
        self._handle(ArmEvent(purpose))
        self._until_s = None if seconds is None else self._clock() + seconds
        return self._present_run()

    def take_over(self, source: ActionSource) -> None:
        """Hold the arm of a rollout until `source` is near, then give it command. Raises Refused.

        What is left of the rollout's time is kept for the policy.
        """
        self._change_hands(ArmEvent.TAKEOVER, source)
        self._taken_over_s = self._clock()

    def hand_back(self, source: ActionSource) -> None:
        """Give the arm of a rollout back to its policy. Raises Refused."""
        self._change_hands(ArmEvent.HAND_BACK, source)
        if self._until_s is not None:
            self._until_s += self._clock() - self._taken_over_s

    def require_ready(self) -> None:
        """Raises Refused with the follower's problem when it cannot be moved."""
        if not self.ready:
            reason = self.arms.problems.get("follower", "the follower is not connected")
            raise Refused(f"not ready: {reason}")

    def start_park(self) -> MotionRun:
        """Move to the rest pose, then release; from any phase. Raises Refused."""
        if not self.phase.moving:
            self._require_free()
        self._handle(ArmEvent.PARK)
        return self._present_run()

    def stop_here(self, *, release: bool) -> None:
        """The emergency stop: hold at once, or release. Refuses nothing."""
        self._handle(ArmEvent.ESTOP_RELEASE if release else ArmEvent.ESTOP)

    def reset(self) -> MotionRun | None:
        """Look at the hardware again; the way to the park pose if the arm is energised.

        Raises Refused with the follower's problem.
        """
        self.calibration.abandon()
        self._handle(ArmEvent.RESET)
        self.require_ready()
        if self.phase is ArmPhase.HOLDING:
            self._handle(ArmEvent.PARK)
        return self._present_run() if self.phase.energised else None

    def calibrate(self, arm: ArmName, step: CalibrationStep) -> dict[str, Any]:
        """Take one step of a calibration; torque is off and stays off. Raises Refused."""
        self._handle(ArmEvent.CALIBRATE)
        return self.calibration.step(arm, step)

    def look(self) -> View:
        """What the cameras see now."""
        self.view = self.cameras.look()
        return self.view

    def _require_free(self) -> None:
        self.require_ready()
        if self.calibration.busy is not None:
            raise Refused(
                f"the {self.calibration.busy} is being calibrated: finish it (range_finish) first"
            )

    def _change_hands(self, event: ArmEvent, source: ActionSource) -> None:
        next_phase(self.phase, event)  # refuses before the source is kept
        self._source = source
        self._handle(event)

    def _abandon(self) -> None:
        """The operator was not heard of: hold, then park; told once the arm is released."""
        log.warning("%s", OPERATOR_GONE)
        self._abandoned = True
        self._on_event("operator_lost", OPERATOR_GONE)
        self._handle(ArmEvent.LEASE_LOST)
        if self.phase is ArmPhase.ABANDONED:
            self._until_s = self._clock() + ABANDONED_HOLD_S

    def _present_run(self) -> MotionRun:
        assert self.last_run is not None  # whoever energises the arm begins one
        return self.last_run

    def _end(self) -> None:
        if self.phase is ArmPhase.ENDING:
            return
        try:
            self._handle(ArmEvent.END)
        except Refused as error:
            log.error("cannot park: %s", error)  # noqa: TRY400
            self._handle(ArmEvent.END_UNPARKED)
        self._until_s = self._clock() + SHUTDOWN_PARK_S

    # The phase.

    def _happened(self, event: ArmEvent, reason: str) -> None:
        self._reason = reason
        self._handle(event)

    def _handle(self, event: ArmEvent) -> None:
        """Change the phase, carry the effects out, then take up what they answer.

        Raises Refused, with the phase as it was.
        """
        before = self.phase
        following = next_phase(before, event)
        self.phase = following.phase
        answers: list[ArmEvent] = []
        try:
            for effect in following.effects:
                answer = self._effects[effect]()
                if answer is not None:
                    answers.append(answer)
        except Refused:
            self.phase = before
            raise
        for answer in answers:
            self._handle(answer)
        self._settle()

    def _settle(self) -> None:
        """Tell those who wait for the run, after whoever hears of events."""
        if self.last_run is not None:
            in_step = self.motion is not None and self.motion.in_step
            self.last_run.settle(self.phase, in_step=in_step)

    # Ticks.

    def _motion_tick(self) -> None:
        assert self.motion is not None
        now_s = self._clock()
        self.rate.tick(now_s)
        try:
            self.motion.tick()
        except FirstMoveRefused as error:
            log.warning("refused: %s", error)
            self._present_run().refuse(error)
            self._handle(ArmEvent.FIRST_MOVE_REFUSED)
        except MotionFault as error:
            self._fault(str(error))
        if self._until_s is not None and now_s >= self._until_s:
            self._handle(ArmEvent.OVERDUE)
        parking = self.phase in (ArmPhase.PARKING, ArmPhase.ENDING)
        if parking and self._parking is not None and self._parking.over(self._clock()):
            self._handle(ArmEvent.PARKED)
        self._settle()

    def _fault(self, reason: str) -> None:
        """A fault of the motion; an arm whose port is gone is let go of."""
        if self.arms.leader is not None and not self.arms.leader.bus.is_open:
            self.arms.lose("leader", reason)
        follower = self.arms.follower
        gone = follower is not None and not follower.bus.is_open
        self._happened(ArmEvent.PORT_LOST if gone else ArmEvent.FAULT, reason)

    def _idle_tick(self) -> None:
        now_s = self._clock()
        self.view = self.cameras.look()
        self.calibration.observe()
        if self.arms.problems and self.calibration.busy is None and now_s >= self._reconnect_s:
            self._handle(ArmEvent.LOOK)
        self._adopt()
        if self.phase.energised:
            return
        if self.phase.released:
            self._make_motion()
        reason = self._watch.look(self.motion, now_s)
        if reason is not None:
            self._happened(ArmEvent.PORT_LOST, reason)

    def _adopt(self) -> None:
        """Bring the phase in line with what a calibration did to the follower."""
        if self.arms.follower is None and self.phase.released:
            self._handle(ArmEvent.TAKEN)
        elif self.arms.follower is not None and not self.phase.connected:
            self._handle(self._found())

    def _found(self) -> ArmEvent:
        self._watch.restart()
        if not self.arms.found_energised:
            return ArmEvent.FOUND
        self._reason = "the arm was found energised; `armada reset` parks it"
        return ArmEvent.FOUND_ENERGISED

    def _make_motion(self) -> MotionLoop:
        """The loop of the follower that is connected now."""
        follower = self.arms.follower
        assert follower is not None
        if self.motion is None or self.motion.follower is not follower:
            self.motion = MotionLoop(
                follower, self.look, self.config.control, self._clock, self._subscribers
            )
        return self.motion

    # Effects. Each answers with an event, or None.

    def _connect(self) -> ArmEvent | None:
        self.arms.connect()
        self._reconnect_s = self._clock() + RECONNECT_S
        if self.phase.connected:
            return None
        return ArmEvent.NOT_FOUND if self.arms.follower is None else self._found()

    def _hold_found(self) -> None:
        try:
            self._make_motion().engage()
        except RobotIOError as error:  # it holds by itself
            log.error("the energised arm cannot be held: %s", error)  # noqa: TRY400
        self.pacer.restart()

    def _engage(self) -> None:
        try:
            self._make_motion().engage()
        except RobotIOError as error:
            raise Refused(f"the arm could not be energised: {error}") from error
        self.last_run = MotionRun()
        self.rate.restart()
        self.pacer.restart()
        log.info("energised for %s", self.phase.purpose)

    def _hand_over(self) -> None:
        assert self.motion is not None
        taken_over = self.phase is ArmPhase.TAKEOVER
        first_move = FirstMove.AWAIT if taken_over else FirstMove.REFUSE
        limits = self._policy_limits if self.phase is ArmPhase.ROLLOUT else 1.0
        self.motion.hand_over(self._source, first_move, limits=limits)

    def _park(self) -> None:
        assert self.motion is not None
        calibration = self.motion.follower.calibration
        self._parking = Parking(self.config, calibration, self._clock())
        self.motion.hand_over(self._parking.source, FirstMove.FREE)
        self._until_s = None

    def _hold_here(self) -> None:
        assert self.motion is not None
        try:
            self.motion.stop_here()
        except RobotIOError as error:
            log.error("emergency stop: %s", error)  # noqa: TRY400

    def _hold(self) -> None:
        assert self.motion is not None
        self.motion.hand_over(None)

    def _lose_port(self) -> None:
        self.arms.lose("follower", self._reason)
        self.motion = None

    def _release(self) -> ArmEvent:
        self._hold()
        failures = self.arms.release_follower()
        if failures:
            names = ", ".join(failures)
            self._reason = f"follower: {names} may be energised still; reset tries again"
            return ArmEvent.RELEASE_FAILED
        log.info("released")
        return ArmEvent.RELEASED

    def _let_go(self) -> None:
        for joint, error in self.arms.release_follower().items():
            log.error("%s may be energised still: %s", joint, error)

    def _announce_fault(self) -> None:
        log.error("fault: %s", self._reason)
        if self.last_run is not None:
            self.last_run.fault = self._reason
        self._on_event("fault", self._reason)

    def _announce_released(self) -> None:
        self._on_event("released", None)
        self._present_run().released()
