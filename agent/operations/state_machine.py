"""The agent's one state machine: pure, small, and the only place where permission is decided.

Training, ingest and federation are permissions, not states: see `permissions`. Who commands the
arm within a state (ramp, leader, policy, park) is the control process's own business.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from agent.errors import Refused


class State(StrEnum):
    """What the robot is for at this moment."""

    IDLE = "idle"  # parked, torque off; the machine belongs to training
    TELEOP = "teleop"  # a person commands the arm, or it parks on a person's word
    ROLLOUT = "rollout"  # armed for a policy, running or between two episodes
    FAULT = "fault"  # something broke; the pose is held while the bus works
    ESTOP = "estop"  # a person stopped it; the pose is held


class Event(StrEnum):
    """What may happen: what an operator asks for, and what the control process reports."""

    TELEOP_START = "teleop_start"
    TELEOP_STOP = "teleop_stop"
    PARK = "park"
    ROLLOUT_ARM = "rollout_arm"
    ROLLOUT_DISARM = "rollout_disarm"
    CALIBRATE = "calibrate"
    RESET = "reset"
    ESTOP = "estop"
    RELEASED = "released"  # the arm is parked and its torque is off
    NOT_STARTED = "not_started"  # what was asked for could not begin; the arm never moved
    FAULT = "fault"
    CONTROL_DIED = "control_died"
    ABANDONED = "abandoned"  # a rollout's operator is gone; the arm is parked, its torque off


_S, _E = State, Event

# Every pair that is not here is refused (operator) or changes nothing (report).
TRANSITIONS: dict[tuple[State, Event], State] = {
    (_S.IDLE, _E.TELEOP_START): _S.TELEOP,
    (_S.IDLE, _E.PARK): _S.TELEOP,
    (_S.IDLE, _E.ROLLOUT_ARM): _S.ROLLOUT,
    (_S.IDLE, _E.CALIBRATE): _S.IDLE,
    (_S.IDLE, _E.RESET): _S.IDLE,
    (_S.IDLE, _E.ESTOP): _S.ESTOP,
    (_S.IDLE, _E.FAULT): _S.FAULT,
    # Torque is off when idle: a control process that dies then leaves nothing energised.
    (_S.IDLE, _E.CONTROL_DIED): _S.IDLE,
    (_S.TELEOP, _E.TELEOP_STOP): _S.TELEOP,  # until RELEASED
    (_S.TELEOP, _E.PARK): _S.TELEOP,
    (_S.TELEOP, _E.RELEASED): _S.IDLE,
    (_S.TELEOP, _E.NOT_STARTED): _S.IDLE,
    (_S.TELEOP, _E.ESTOP): _S.ESTOP,
    (_S.TELEOP, _E.FAULT): _S.FAULT,
    (_S.TELEOP, _E.CONTROL_DIED): _S.FAULT,
    (_S.ROLLOUT, _E.ROLLOUT_ARM): _S.ROLLOUT,  # another policy, between episodes
    (_S.ROLLOUT, _E.ROLLOUT_DISARM): _S.IDLE,
    (_S.ROLLOUT, _E.NOT_STARTED): _S.IDLE,
    (_S.ROLLOUT, _E.ABANDONED): _S.IDLE,
    (_S.ROLLOUT, _E.PARK): _S.ROLLOUT,
    (_S.ROLLOUT, _E.ESTOP): _S.ESTOP,
    (_S.ROLLOUT, _E.FAULT): _S.FAULT,
    (_S.ROLLOUT, _E.CONTROL_DIED): _S.FAULT,
    (_S.FAULT, _E.RESET): _S.IDLE,
    (_S.FAULT, _E.ESTOP): _S.ESTOP,
    (_S.ESTOP, _E.RESET): _S.IDLE,
    (_S.ESTOP, _E.ESTOP): _S.ESTOP,
}

REPORTS = frozenset({_E.RELEASED, _E.NOT_STARTED, _E.FAULT, _E.CONTROL_DIED, _E.ABANDONED})

MEND: dict[State, str] = {
    _S.IDLE: "the arm is idle",
    _S.TELEOP: "teleoperation is on; stop it first (armada park)",
    _S.ROLLOUT: "a rollout is armed; disarm it first (armada park)",
    _S.FAULT: "the agent is in fault; see `armada status`, mend it, then `armada reset`",
    _S.ESTOP: "the emergency stop is on; `armada reset` lifts it and parks the arm",
}


def next_state(state: State, event: Event) -> State:
    """The state after `event`. A report that does not fit changes nothing.

    Raises Refused, with what to do about it, for an operator's command that does not fit.
    """
    following = TRANSITIONS.get((state, event))
    if following is not None:
        return following
    if event in REPORTS:
        return state
    raise Refused(f"{event.value.replace('_', ' ')} is not possible: {MEND[state]}")


@dataclass(frozen=True)
class Permissions:
    """What may use the machine now. Each field is named by the process table."""

    always: bool
    idle: bool
    rollout_armed: bool
    shadow: bool = False


def permissions(state: State, *, shadow: bool = False) -> Permissions:
    """Training and ingest are for idle alone; inference for an armed rollout.

    A policy in its shadow (`shadow`: there is one) predicts whenever somebody commands the arm.
    """
    return Permissions(
        always=True,
        idle=state is State.IDLE,
        rollout_armed=state is State.ROLLOUT,
        shadow=shadow and state in (State.TELEOP, State.ROLLOUT),
    )


class Machine:
    """Holds the present state."""

    def __init__(self) -> None:
        self.state = State.IDLE
        self.shadow = False  # a policy is on trial as a shadow

    @property
    def permissions(self) -> Permissions:
        """What the present state permits."""
        return permissions(self.state, shadow=self.shadow)

    def handle(self, event: Event) -> bool:
        """Apply `event`; True if the state changed. Raises Refused."""
        before = self.state
        self.state = next_state(before, event)
        return self.state is not before
