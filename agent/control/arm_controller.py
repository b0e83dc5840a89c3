"""What the control process is doing: one thread that owns the arms, from port to torque.

    CLOSED   no usable follower; it is looked for again every few seconds
    IDLE     connected, torque off; telemetry a few times a second
    MOVING   energised, a source in command, one tick a period
    HOLDING  energised, nobody in command: after a fault or an emergency stop

Other threads ask by `call`, which runs a function between two ticks. Nothing here waits for
anybody but the servos.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable
from concurrent.futures import Future
from enum import StrEnum
from typing import Any

from agent.config import AgentConfig
from agent.control.arms import Arms
from agent.control.calibration_session import CalibrationSession
from agent.control.cameras import Cameras, View
from agent.control.errors import FirstMoveRefused, MotionFault
from agent.control.idle_watch import IdleWatch
from agent.control.loop import MotionLoop, Subscriber
from agent.control.observation import ActionSource
from agent.control.pacer import Pacer, RateMeter
from agent.control.parking import Parking
from agent.errors import AgentError, Refused
from robot_io.errors import RobotIOError

log = logging.getLogger(__name__)

IDLE_PERIOD_S = 0.2
RANGE_PERIOD_S = 0.03  # while a joint's range is recorded: a person's hand turns at its ends
RECONNECT_S = 3.0
SHUTDOWN_PARK_S = 10.0
RELEASE_RETRIES = 4  # a servo that is asked to let go is asked again before it counts as mute
RELEASE_BUDGET_S = 0.3


class ArmPhase(StrEnum):
    """See the module."""

    CLOSED = "closed"
    IDLE = "idle"
    MOVING = "moving"
    HOLDING = "holding"


class ArmController:
    """See the module. `on_event(name, reason)` is called on the loop thread."""

    def __init__(
        self,
        config: AgentConfig,
        arms: Arms,
        cameras: Cameras,
        subscribers: tuple[Subscriber, ...],
        on_event: Callable[[str, str | None], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.arms = arms
        self.cameras = cameras
        self.calibration = CalibrationSession(config, arms)
        self.phase = ArmPhase.CLOSED
        self.purpose: str | None = None
        self.view = View()
        self.beats = 0
        self.pacer = Pacer(1.0 / config.control.fps, clock)
        self.rate = RateMeter()
        self.motion: MotionLoop | None = None
        self.refusal: str | None = None  # why the last source was not let in
        self.last_fault: str | None = None
        self._subscribers = subscribers
        self._on_event = on_event
        self._clock = clock
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._park: Parking | None = None
        self._motion_until_s: float | None = None
        self._reconnect_s = 0.0
        self._watch = IdleWatch(arms)
        self._ending = False
        self._end_by_s: float | None = None
        self._estopped = False
        self._retry = True  # False in fault: the operator's reset is awaited
        self._announce = True  # that the arm was found energised

    # For other threads.

    def call[T](self, function: Callable[[], T], timeout_s: float = 20.0) -> T:
        """Run `function` on the loop thread between two ticks; its result or exception."""
        future: Future[T] = Future()
        self._calls.put((function, future))
        return future.result(timeout_s)

    def end(self) -> None:
        """Park if energised, release, then let `run` return. May be called in a signal handler."""
        self._ending = True
        self._calls.put((lambda: None, Future()))

    @property
    def ready(self) -> bool:
        """True when the follower may be moved or is moving."""
        return self.phase is not ArmPhase.CLOSED and "follower" not in self.arms.problems

    @property
    def energised(self) -> bool:
        """True while torque is on as far as we know."""
        return self.phase in (ArmPhase.MOVING, ArmPhase.HOLDING)

    def problems(self) -> list[str]:
        """One line for each thing that is not as it should be."""
        lines = [*self.arms.problems.values(), *self.view.missing]
        if self.motion is not None and self.energised:
            lines += self.motion.warnings
        return lines

    # The loop thread.

    def run(self) -> None:
        """Until `end` was called and the arm is parked and released.

        When anything unforeseen is raised the torque is left on: the arm holds, and the next
        control process finds it so.
        """
        self._connect()
        while not self._ended():
            self.step()
            if self.energised:
                self.pacer.wait()
            else:
                self._run_calls(RANGE_PERIOD_S if self.calibration.recording else IDLE_PERIOD_S)
        self._let_go()

    def step(self) -> None:
        """One pass of the loop: what was asked for, then one tick. Waits for the servos alone."""
        self.beats += 1
        self._run_calls(None)
        if self.energised:
            self._motion_tick()
        else:
            self._idle_tick()

    def start_motion(
        self,
        source: ActionSource,
        purpose: str,
        *,
        guarded: bool = True,
        seconds: float | None = None,
    ) -> None:
        """Energise the arm and give command to `source`; park after `seconds`.

        Raises Refused with one line.
        """
        self.require_ready()
        if self.calibration.busy is not None:
            raise Refused(
                f"the {self.calibration.busy} is being calibrated: finish it (range_finish) first"
            )
        if self.phase is ArmPhase.MOVING:
            raise Refused(f"the arm is moving already ({self.purpose})")
        motion = self._make_motion()
        try:
            motion.engage()
        except RobotIOError as error:
            raise Refused(f"the arm could not be energised: {error}") from error
        self.refusal = self.last_fault = None
        self._park = None
        motion.hand_over(source, guarded=guarded)
        if not self.energised:
            self.rate.restart()
            self.pacer.restart()
        self.phase = ArmPhase.MOVING
        self.purpose = purpose
        self._motion_until_s = None if seconds is None else self._clock() + seconds
        log.info("energised for %s", purpose)

    def require_ready(self) -> None:
        """Raises Refused with the follower's problem when it cannot be moved."""
        if not self.ready:
            reason = self.arms.problems.get("follower", "the follower is not connected")
            raise Refused(f"not ready: {reason}")

    def start_park(self) -> None:
        """Move to the rest pose, then release; from any phase. Raises Refused."""
        if self._park is not None and self.phase is ArmPhase.MOVING:
            return
        self.require_ready()
        assert self.arms.follower is not None
        park = Parking(self.config, self.arms.follower.calibration, self._clock())
        if self.phase is ArmPhase.MOVING and self.motion is not None:
            self.motion.hand_over(park.source, guarded=False)
            self.purpose = "park"
            self._motion_until_s = None
        else:
            self.start_motion(park.source, "park", guarded=False)
        self._park = park

    def stop_here(self, *, release: bool) -> None:
        """The emergency stop: hold at once, or release. Refuses nothing."""
        self._estopped = True
        if not self.energised:
            return
        assert self.motion is not None
        try:
            self.motion.stop_here()
        except RobotIOError as error:
            log.error("emergency stop: %s", error)  # noqa: TRY400
        self.phase = ArmPhase.HOLDING
        self._park = None
        if release:
            self.release()

    def release(self) -> bool:
        """Take the torque off every servo and go idle; False, with a fault, if one keeps it."""
        assert self.arms.follower is not None
        if self.motion is not None:
            self.motion.hand_over(None)
        with self.arms.follower.bus.patient(RELEASE_RETRIES, RELEASE_BUDGET_S):
            failures = self.arms.follower.release()
        self._park = None
        self.purpose = None
        if failures:
            self.phase = ArmPhase.HOLDING
            self.fault(f"follower: {', '.join(failures)} may be energised still; reset tries again")
            return False
        self.phase = ArmPhase.IDLE
        log.info("released")
        return True

    def reset(self) -> bool:
        """Look at the hardware again; True if the arm is on its way to the park pose.

        Raises Refused with the follower's problem.
        """
        self._estopped = False
        self._retry = True
        if self.calibration.busy is not None:
            self.calibration.abandon()
        self._announce = False
        self._connect()
        self._announce = True
        self.require_ready()
        if not self.energised:
            return False
        self.start_park()
        return True

    def fault(self, reason: str) -> None:
        """Nobody commands any more; the pose is held while the bus works."""
        log.error("fault: %s", reason)
        self.last_fault = reason
        self._retry = False
        self._park = None
        self.purpose = None
        if self.motion is not None:
            self.motion.hand_over(None)
        if self.phase is ArmPhase.MOVING:
            self.phase = ArmPhase.HOLDING
        self._lose_unplugged(reason)
        self._on_event("fault", reason)

    # Ticks.

    def _motion_tick(self) -> None:
        assert self.motion is not None
        now_s = self._clock()
        self.rate.tick(now_s)
        try:
            self.motion.tick()
        except FirstMoveRefused as error:
            self.refusal = str(error)
            log.warning("refused: %s", error)
            self.start_park()
        except MotionFault as error:
            if self.phase is ArmPhase.MOVING:
                self.fault(str(error))
            else:
                self._lose_unplugged(str(error))  # else the servos hold by themselves
        overdue = self._motion_until_s is not None and now_s >= self._motion_until_s
        if self.phase is ArmPhase.MOVING and (self._ending or overdue):
            self.start_park()
        self._watch_park()

    def _lose_unplugged(self, reason: str) -> None:
        """Let go of an arm whose port is gone; the next `reset` or look opens it again."""
        if self.arms.leader is not None and not self.arms.leader.bus.is_open:
            self.arms.lose("leader", reason)
        if self.arms.follower is not None and not self.arms.follower.bus.is_open:
            self.arms.lose("follower", reason)
            self.motion = None
            self.phase = ArmPhase.CLOSED

    def _watch_park(self) -> None:
        if self._park is None or self.phase is not ArmPhase.MOVING:
            return
        if self._park.over(self._clock()) and self.release():
            self._on_event("released", None)

    def _idle_tick(self) -> None:
        now_s = self._clock()
        self.view = self.cameras.look()
        self.calibration.observe()
        look_again = self._retry and bool(self.arms.problems) and self.calibration.busy is None
        if look_again and now_s >= self._reconnect_s:
            self._connect()
        self._adopt()
        if self.phase is ArmPhase.IDLE:
            self._make_motion()
        reason = self._watch.look(self.motion, now_s)
        if reason is not None:
            self._adopt()
            self.fault(reason)

    def _connect(self) -> None:
        self.arms.connect(skip=self.calibration.busy)
        self._reconnect_s = self._clock() + RECONNECT_S
        self._adopt()

    def _adopt(self) -> None:
        """Bring the phase in line with whether there is a follower."""
        if self.arms.follower is None:
            self.phase = ArmPhase.CLOSED
        elif self.phase is ArmPhase.CLOSED:
            self._watch.restart()
            self.phase = ArmPhase.IDLE
            if self.arms.found_energised:
                self._found_energised()

    def _found_energised(self) -> None:
        """Torque is on from before us: hold it where it is, and let the operator decide."""
        try:
            self._make_motion().engage()
        except RobotIOError as error:
            log.error("the energised arm cannot be held: %s", error)  # noqa: TRY400
            return
        self.phase = ArmPhase.HOLDING
        self.pacer.restart()
        if self._announce:
            self.fault("the arm was found energised; `armada reset` parks it")

    def _make_motion(self) -> MotionLoop:
        """The loop of the follower that is connected now."""
        follower = self.arms.follower
        assert follower is not None
        if self.motion is None or self.motion.follower is not follower:
            self.motion = MotionLoop(
                follower, self.look, self.config.control, self._clock, self._subscribers
            )
        return self.motion

    def look(self) -> View:
        self.view = self.cameras.look()
        return self.view

    def _run_calls(self, timeout_s: float | None) -> None:
        """Run what other threads asked for; wait up to `timeout_s` for the first."""
        wait_s = timeout_s
        while True:
            try:
                if wait_s is None:
                    function, future = self._calls.get_nowait()
                else:
                    function, future = self._calls.get(timeout=wait_s)
            except queue.Empty:
                return
            wait_s = None
            try:
                future.set_result(function())
            except (AgentError, RobotIOError) as error:
                future.set_exception(error)

    # The end.

    def _ended(self) -> bool:
        if not self._ending:
            return False
        now_s = self._clock()
        if self._end_by_s is None:
            self._end_by_s = now_s + SHUTDOWN_PARK_S
            if self.phase is ArmPhase.HOLDING and not self._estopped:
                try:
                    self.start_park()
                except Refused as error:
                    log.error("cannot park: %s", error)  # noqa: TRY400
        parking = self.phase is ArmPhase.MOVING
        return not parking or now_s >= self._end_by_s

    def _let_go(self) -> None:
        """Best-effort torque-off for every servo, then close."""
        if self.arms.follower is not None:
            with self.arms.follower.bus.patient(RELEASE_RETRIES, RELEASE_BUDGET_S):
                failures = self.arms.follower.release()
            for joint, error in failures.items():
                log.error("%s may be energised still: %s", joint, error)
        self.calibration.abandon()
        self.arms.close()
        self.cameras.close()
