"""One tick of motion: observe, ask the source, limit, send, tell the subscribers.

The loop knows neither who the source is nor what a subscriber does. It is not thread-safe: the
control process's loop thread alone calls it. A subscriber that dies ends the motion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NoReturn

import numpy as np

from agent.config import ControlConfig
from agent.control.cameras import View
from agent.control.errors import FirstMoveRefused, MotionFault
from agent.control.observation import ActionSource, Observation, Vector
from host.threads import guarded
from robot_io.arm import ArmReading, Follower
from robot_io.calibration import GRIPPER, JOINTS
from robot_io.errors import BusError, Unplugged
from robot_io.health import HealthVerdict, Level, judge
from robot_io.limits import Clip, FirstMoveGuard, Limits, Ramp, SafetyFilter

# A reading must be bad for so many ticks in a row: one corrupt byte is no overheated motor.
UNHEALTHY_TICKS = 3
MAX_DT_PERIODS = 3.0  # after a stall the arm may not make up for the lost time in one tick
SMOOTHSTEP_PEAK = 1.5  # the ramp's steepest slope, relative to a straight line
GRIPPER_FIRST_MOVE = 200.0  # the gripper swings no mass: any opening may be handed over


@dataclass(frozen=True, slots=True)
class Tick:
    """All that happened at one tick. Vectors are float32 [6] in joint units."""

    observation: Observation
    reading: ArmReading
    requested: Vector
    sent: Vector
    t_sent_s: float
    missing: tuple[str, ...]  # cameras without a fresh picture, one line each
    clamped: bool = False  # the velocity's or the step's limit met the goal


Subscriber = Callable[[Tick], None]


class FirstMove(Enum):
    """What becomes of a source whose first goal is too far from the arm."""

    REFUSE = "refuse"
    AWAIT = "await"  # the pose is held until the source comes near: a person brings the leader
    FREE = "free"  # it plans from where the arm is


class MotionLoop:
    """Moves an energised follower by whatever source is in command."""

    def __init__(
        self,
        follower: Follower,
        look: Callable[[], View],
        settings: ControlConfig,
        clock: Callable[[], float],
        subscribers: Mapping[str, Subscriber],
    ) -> None:
        self.follower = follower
        self._look = look
        self._settings = settings
        self._clock = clock
        self._subscribers = [
            guarded(f"subscriber {name}", subscriber, _end_motion)
            for name, subscriber in subscribers.items()
        ]
        self._limits = Limits.within(
            follower.calibration, settings.max_step, settings.max_velocity_per_s
        )
        self._filter = SafetyFilter(self._limits)
        reach = np.full(len(JOINTS), settings.first_move_max, np.float32)
        reach[GRIPPER] = GRIPPER_FIRST_MOVE
        self._guard = FirstMoveGuard(reach)
        self._ramp: Ramp | None = None
        self._source: ActionSource | None = None
        self._begun = False
        self._first_move = FirstMove.REFUSE
        self._tick = 0
        self._sent: Vector | None = None
        self._last_s: float | None = None
        self._missed_in_a_row = 0
        self._unhealthy_ticks = 0
        self.missed_reads = 0
        self.in_step = False  # the source has the arm wholly: a goal of its own was sent
        self.awaited: str | None = None  # why a source that is waited for has not got the arm
        self.reading: ArmReading | None = None
        self.warnings: tuple[str, ...] = ()

    @property
    def source(self) -> ActionSource | None:
        """Who is in command; None: the pose is held."""
        return self._source

    def engage(self) -> None:
        """Energise the arm where it stands, if it is not; hold there.

        Raises TorqueRefused or BusError: the arm is then as it was, or released.
        """
        with self.follower.bus.patient():
            if all(self.follower.torque_states()):
                # Held by an earlier command: torque stays on while the goal comes to the arm.
                self._sent = self.follower.write_goal(self.follower.read().position)
            else:
                self._sent = self.follower.torque_on()
        self._filter.reset()
        self._missed_in_a_row = 0
        self._unhealthy_ticks = 0
        self._last_s = None

    def hand_over(
        self,
        source: ActionSource | None,
        first_move: FirstMove = FirstMove.REFUSE,
        *,
        limits: float = 1.0,
    ) -> None:
        """Give command to `source`, with a share of the limits, from the next tick; None holds."""
        if self._source is not None and self._begun:
            self._source.end()
        self._source = source
        self._filter.limits = self._limits.scaled(limits)
        self._begun = False
        self._first_move = first_move
        self.awaited = None
        self._ramp = None
        self.in_step = False
        self._guard.reset()

    def stop_here(self) -> None:
        """Hold, with the present position as goal. Raises BusError."""
        self.hand_over(None)
        self._sent = self.follower.write_goal(self.follower.read().position)
        self._filter.reset()

    def tick(self) -> Tick | None:
        """One tick; None when the read failed and the pose is held.

        Raises MotionFault when the motion must end, FirstMoveRefused when it must not begin.
        """
        self._tick += 1
        reading = self._read()
        if reading is None:
            return None
        view = self._look()
        observation = Observation(
            self._tick, reading.t_read_s, reading.position, view.environment, view.frames
        )
        now_s = self._clock()
        requested = self._requested(observation, now_s)
        sent, clips = self._filter.apply(
            self._ramped(requested, now_s), reading.position, self._dt_s()
        )
        try:
            self._sent = self.follower.write_goal(sent)
        except BusError as error:
            raise MotionFault(_lost(error)) from error
        self.in_step = self._ramp is not None and not self._ramp.active(now_s)
        clamped = any(clip & (Clip.VELOCITY | Clip.STEP) for clip in clips)
        t_sent_s = self._clock()
        tick = Tick(observation, reading, requested, self._sent, t_sent_s, view.missing, clamped)
        if self._source is not None:  # the ticks of an arm that is held are nobody's
            for subscriber in self._subscribers:
                subscriber(tick)
        return tick

    def note_health(self, reading: ArmReading) -> HealthVerdict:
        """Judge a reading and keep it for the status."""
        verdict = judge(reading)
        self.reading = reading
        self.warnings = tuple(f"follower {reason}" for reason in verdict.reasons)
        return verdict

    def _read(self) -> ArmReading | None:
        try:
            reading = self.follower.read()
        except Unplugged as error:
            raise MotionFault(_lost(error)) from error
        except BusError as error:
            self._missed_in_a_row += 1
            self.missed_reads += 1
            if self._missed_in_a_row > self._settings.max_missed_reads:
                raise MotionFault(
                    f"follower lost after {self._missed_in_a_row} missed reads: {error}"
                ) from error
            return None
        self._missed_in_a_row = 0
        verdict = self.note_health(reading)
        self._unhealthy_ticks = self._unhealthy_ticks + 1 if verdict.level is Level.FAULT else 0
        if self._unhealthy_ticks >= UNHEALTHY_TICKS and self._source is not None:
            raise MotionFault(f"follower {verdict.reasons[0]}")
        return reading

    def _requested(self, observation: Observation, now_s: float) -> Vector:
        """The source's goal; the last one sent where it has none."""
        held = self._sent if self._sent is not None else observation.state
        if self._source is None:
            return held
        if not self._begun:
            self._source.begin(observation, now_s)
            self._begun = True
        wanted = self._source.action(observation, now_s)
        if wanted.fault is not None:
            raise MotionFault(wanted.fault)
        if wanted.goal is None:
            return held
        if self._first_move is not FirstMove.FREE:
            self.awaited = self._guard.refusal(wanted.goal, observation.state)
            if self.awaited is not None and self._first_move is FirstMove.AWAIT:
                return held
            if self.awaited is not None:
                raise FirstMoveRefused(self.awaited)
        if self._ramp is None:
            distance = float(np.max(np.abs(wanted.goal - held)))
            needed_s = SMOOTHSTEP_PEAK * distance / self._settings.first_move_speed_per_s
            self._ramp = Ramp(max(self._settings.ramp_s, needed_s))
            self._ramp.start(held, now_s)
        return wanted.goal

    def _ramped(self, goal: Vector, now_s: float) -> Vector:
        return goal if self._ramp is None else self._ramp.apply(goal, now_s)

    def _dt_s(self) -> float:
        """Time since the last goal, bounded."""
        now_s = self._clock()
        period_s = 1.0 / self._settings.fps
        passed_s = period_s if self._last_s is None else now_s - self._last_s
        self._last_s = now_s
        return min(passed_s, MAX_DT_PERIODS * period_s)


def _end_motion(line: str) -> NoReturn:
    raise MotionFault(line)


def _lost(error: BusError) -> str:
    if isinstance(error, Unplugged):
        return f"follower unplugged: {error}"
    return f"follower lost: {error}"
