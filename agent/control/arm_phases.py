"""The arm controller's phase table: phase × event -> phase and effects. Pure: no arm, no clock.

Permission to use the robot at all is decided by `agent.operations.state_machine`; this table says
what the arm itself may go through, so that a command that comes late meets the same answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from agent.errors import Refused

ENDING = "the control process is ending"


class ArmPhase(StrEnum):
    """What the arm is doing. Torque is on in the energised ones, and in no other."""

    CLOSED = "closed"  # no usable follower; looked for every few seconds
    LOST = "lost"  # no usable follower since a fault or a stop; a reset looks for it
    RESETTING = "resetting"  # no usable follower; a reset is looking for it
    IDLE = "idle"  # connected, torque off
    HALTED = "halted"  # connected, torque off, after an emergency stop
    TELEOP = "teleop"  # the leader commands
    ROLLOUT = "rollout"  # a policy commands
    TAKEOVER = "takeover"  # the leader commands, within a rollout
    ABANDONED = "abandoned"  # energised, nobody commands: a rollout's operator is gone; parks soon
    PARKING = "parking"  # on the way to the rest pose, then released
    HOLDING = "holding"  # energised, nobody commands: after a fault
    STOPPED = "stopped"  # energised, nobody commands: after an emergency stop
    ENDING = "ending"  # parking for the last time
    ENDED = "ended"  # let go; the process may end

    @property
    def purpose(self) -> str | None:
        """What the arm is moved for; None when it is not moved."""
        return _PURPOSES.get(self)

    @property
    def moving(self) -> bool:
        """True while a source commands the arm, the way to the rest pose among them."""
        return self in _PURPOSES

    @property
    def energised(self) -> bool:
        """True while torque is on as far as we know."""
        return self.moving or self in (ArmPhase.ABANDONED, ArmPhase.HOLDING, ArmPhase.STOPPED)

    @property
    def released(self) -> bool:
        """True while a follower is connected and its torque is off."""
        return self in (ArmPhase.IDLE, ArmPhase.HALTED)

    @property
    def connected(self) -> bool:
        """True while there is a follower."""
        return self.energised or self.released


_PURPOSES = {
    ArmPhase.TELEOP: "teleop",
    ArmPhase.ROLLOUT: "rollout",
    ArmPhase.TAKEOVER: "takeover",
    ArmPhase.PARKING: "park",
    ArmPhase.ENDING: "park",
}


class ArmEvent(StrEnum):
    """What may happen: what somebody asks for, and what the hardware, clock or sources report."""

    TELEOP = "teleop"
    ROLLOUT = "rollout"
    TAKEOVER = "takeover"  # the leader is to have the arm of a rollout …
    HAND_BACK = "hand_back"  # … and the policy again
    PARK = "park"
    CALIBRATE = "calibrate"
    ESTOP = "estop"
    ESTOP_RELEASE = "estop_release"  # and take the torque away
    RESET = "reset"
    END = "end"
    END_UNPARKED = "end_unparked"  # END, where the arm could not be parked
    LOOK = "look"  # an arm is not there, and it is time to look again
    FOUND = "found"
    FOUND_ENERGISED = "found_energised"
    NOT_FOUND = "not_found"
    TAKEN = "taken"  # by a calibration
    FIRST_MOVE_REFUSED = "first_move_refused"
    LEASE_LOST = "lease_lost"  # the rollout's operator was not heard of in time
    OVERDUE = "overdue"  # the phase has had its time
    PARKED = "parked"  # settled in the rest pose, or never will
    RELEASED = "released"
    RELEASE_FAILED = "release_failed"  # a servo may keep its torque
    FAULT = "fault"
    PORT_LOST = "port_lost"
    CRASH = "crash"  # a thread of the process died


class Effect(StrEnum):
    """What the controller does at a transition, in the table's order."""

    CONNECT = "connect"  # answers FOUND, FOUND_ENERGISED or NOT_FOUND
    HOLD_FOUND = "hold_found"  # an arm that is energised already, where it stands
    ENGAGE = "engage"  # energise where it stands; refused, the phase stays as it was
    HAND_OVER = "hand_over"  # to the source that was asked for
    PARK = "park"  # hand over to the way to the rest pose
    HOLD_HERE = "hold_here"  # nobody commands; the goal is where the arm is
    HOLD = "hold"  # nobody commands; the last goal stays
    LOSE_PORT = "lose_port"  # close what is left of the follower
    RELEASE = "release"  # answers RELEASED or RELEASE_FAILED
    LET_GO = "let_go"  # release what can be reached; what cannot is logged
    ANNOUNCE_FAULT = "announce_fault"
    ANNOUNCE_RELEASED = "announce_released"


@dataclass(frozen=True)
class Transition:
    """The phase that follows, and what to do on the way."""

    phase: ArmPhase
    effects: tuple[Effect, ...] = ()


_P, _E, _F = ArmPhase, ArmEvent, Effect

COMMANDS = frozenset({_E.TELEOP, _E.ROLLOUT, _E.TAKEOVER, _E.HAND_BACK, _E.PARK, _E.CALIBRATE})

TRANSITIONS: dict[tuple[ArmPhase, ArmEvent], Transition] = {}


def _when(
    phases: ArmPhase | Iterable[ArmPhase],
    event: ArmEvent,
    phase: ArmPhase | None,
    *effects: Effect,
) -> None:
    """One line of the table for each of `phases`; a `phase` of None stays."""
    for before in [phases] if isinstance(phases, ArmPhase) else phases:
        TRANSITIONS[before, event] = Transition(phase or before, effects)


_LEASED = (_P.ROLLOUT, _P.TAKEOVER)
_COMMANDED = (_P.TELEOP, *_LEASED)
_MOVED = (*_COMMANDED, _P.PARKING)
_ON_A_WAY = (*_MOVED, _P.ABANDONED)
_HELD = (_P.HOLDING, _P.STOPPED)

# What an operator asks for.
_when(_P.IDLE, _E.TELEOP, _P.TELEOP, _F.ENGAGE, _F.HAND_OVER)
_when(_P.IDLE, _E.ROLLOUT, _P.ROLLOUT, _F.ENGAGE, _F.HAND_OVER)
_when(_P.ROLLOUT, _E.TAKEOVER, _P.TAKEOVER, _F.HAND_OVER)
_when(_P.TAKEOVER, _E.HAND_BACK, _P.ROLLOUT, _F.HAND_OVER)
_when((_P.IDLE, _P.HOLDING), _E.PARK, _P.PARKING, _F.ENGAGE, _F.PARK)
_when((*_COMMANDED, _P.ABANDONED), _E.PARK, _P.PARKING, _F.PARK)
_when((_P.PARKING, _P.ENDING), _E.PARK, None)
_when((_P.CLOSED, _P.IDLE), _E.CALIBRATE, None)
_when((*_ON_A_WAY, *_HELD), _E.ESTOP, _P.STOPPED, _F.HOLD_HERE)
_when((*_ON_A_WAY, *_HELD), _E.ESTOP_RELEASE, _P.STOPPED, _F.HOLD_HERE, _F.RELEASE)
for _stop in (_E.ESTOP, _E.ESTOP_RELEASE):
    _when(_P.ENDING, _stop, _P.ENDED, _F.HOLD_HERE, _F.LET_GO)
    _when((_P.IDLE, _P.HALTED), _stop, _P.HALTED)
    _when((_P.CLOSED, _P.LOST, _P.RESETTING), _stop, _P.LOST)
_when((_P.CLOSED, _P.LOST), _E.RESET, _P.RESETTING, _F.CONNECT)
_when((_P.IDLE, _P.HALTED), _E.RESET, _P.IDLE, _F.CONNECT)
_when((*_COMMANDED, _P.ABANDONED), _E.RESET, _P.PARKING, _F.CONNECT, _F.PARK)
_when(_P.PARKING, _E.RESET, None, _F.CONNECT)
_when(_HELD, _E.RESET, _P.HOLDING, _F.CONNECT)  # a PARK follows

# The end.
_when((_P.CLOSED, _P.LOST, _P.RESETTING), _E.END, _P.ENDED, _F.LET_GO)
_when((_P.IDLE, _P.HALTED, _P.STOPPED), _E.END, _P.ENDED, _F.LET_GO)
_when((*_COMMANDED, _P.ABANDONED), _E.END, _P.ENDING, _F.PARK)
_when(_P.PARKING, _E.END, _P.ENDING)
_when(_P.HOLDING, _E.END, _P.ENDING, _F.ENGAGE, _F.PARK)
_when(_P.HOLDING, _E.END_UNPARKED, _P.ENDED, _F.LET_GO)

# What is found.
_when((_P.CLOSED, _P.IDLE), _E.LOOK, None, _F.CONNECT)
_when((_P.CLOSED, _P.RESETTING), _E.FOUND, _P.IDLE)
_when(_P.CLOSED, _E.FOUND_ENERGISED, _P.HOLDING, _F.HOLD_FOUND, _F.ANNOUNCE_FAULT)
_when(_P.RESETTING, _E.FOUND_ENERGISED, _P.HOLDING, _F.HOLD_FOUND)
_when(_P.RESETTING, _E.NOT_FOUND, _P.CLOSED)
_when(_P.IDLE, _E.TAKEN, _P.CLOSED)

# How a motion ends.
_when(_COMMANDED, _E.FIRST_MOVE_REFUSED, _P.PARKING, _F.PARK)
# A person who corrects is not cut short: what is left of the time is the policy's.
_when((_P.TELEOP, _P.ROLLOUT, _P.ABANDONED), _E.OVERDUE, _P.PARKING, _F.PARK)
_when(_LEASED, _E.LEASE_LOST, _P.ABANDONED, _F.HOLD_HERE)  # an OVERDUE follows
_when(_P.ENDING, _E.OVERDUE, _P.ENDED, _F.LET_GO)
_when((_P.PARKING, _P.ENDING), _E.PARKED, None, _F.RELEASE)
_when(_P.PARKING, _E.RELEASED, _P.IDLE, _F.ANNOUNCE_RELEASED)
_when(_P.STOPPED, _E.RELEASED, _P.HALTED)
_when(_P.ENDING, _E.RELEASED, _P.ENDED, _F.ANNOUNCE_RELEASED, _F.LET_GO)
_when(_P.PARKING, _E.RELEASE_FAILED, _P.HOLDING, _F.ANNOUNCE_FAULT)
_when(_P.STOPPED, _E.RELEASE_FAILED, None, _F.ANNOUNCE_FAULT)
_when(_P.ENDING, _E.RELEASE_FAILED, _P.ENDED, _F.ANNOUNCE_FAULT, _F.LET_GO)
_when(_ON_A_WAY, _E.FAULT, _P.HOLDING, _F.HOLD, _F.ANNOUNCE_FAULT)
_when(_ON_A_WAY, _E.CRASH, _P.HOLDING, _F.HOLD, _F.ANNOUNCE_FAULT)  # ENDING goes on to rest
_when(_P.ENDING, _E.FAULT, _P.ENDED, _F.HOLD, _F.ANNOUNCE_FAULT, _F.LET_GO)
_when(_ON_A_WAY, _E.PORT_LOST, _P.LOST, _F.HOLD, _F.LOSE_PORT, _F.ANNOUNCE_FAULT)
_when(_P.ENDING, _E.PORT_LOST, _P.ENDED, _F.HOLD, _F.LOSE_PORT, _F.ANNOUNCE_FAULT)
_when(_HELD, _E.PORT_LOST, _P.LOST, _F.LOSE_PORT)  # the fault, or the stop, is known
_when((_P.IDLE, _P.HALTED), _E.PORT_LOST, _P.LOST, _F.LOSE_PORT, _F.ANNOUNCE_FAULT)


def next_phase(phase: ArmPhase, event: ArmEvent) -> Transition:
    """What follows. A pair that is not in the table changes nothing, but a command is refused.

    Raises Refused, with what to do about it.
    """
    following = TRANSITIONS.get((phase, event))
    if following is not None:
        return following
    if event in COMMANDS:
        raise Refused(_why_not(phase, event))
    return Transition(phase)


def _why_not(phase: ArmPhase, event: ArmEvent) -> str:
    if phase in (_P.ENDING, _P.ENDED):
        return ENDING
    if event is _E.CALIBRATE and phase.energised:
        return "the arm is energised; park it first"
    if event in (_E.TAKEOVER, _E.HAND_BACK):
        return f"the arm is {phase.value}: the leader takes over where a policy drives, and back"
    if phase is _P.ABANDONED:
        return "the arm is held: the rollout's operator is gone; it parks in a moment"
    if phase.moving:
        return f"the arm is moving already ({phase.purpose})"
    if phase is _P.HOLDING:
        return "the arm is held after a fault; `armada reset` parks it"
    if phase in (_P.STOPPED, _P.HALTED):
        return "the emergency stop is on; `armada reset` lifts it and parks the arm"
    return "not ready: the follower is not connected; `armada reset` looks for it"
