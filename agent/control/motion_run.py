"""What others wait for in a motion: futures that the loop thread resolves."""

from __future__ import annotations

from concurrent.futures import Future

from agent.control.arm_phases import ArmPhase
from agent.control.errors import FirstMoveRefused
from agent.errors import Refused


class MotionRun:
    """One motion, from torque-on until the arm is released or held.

    Attributes:
        in_step: the source has the arm wholly; or FirstMoveRefused, or Refused with why it ended.
        parked: the arm is released; or Refused with why it is not.
        refusal: why the source was not let in.
        fault: what ended it.
    """

    def __init__(self) -> None:
        self.in_step: Future[None] = Future()
        self.parked: Future[None] = Future()
        self.refusal: str | None = None
        self.fault: str | None = None

    def refuse(self, error: FirstMoveRefused) -> None:
        """The source was not let in; the arm parks now."""
        self.refusal = str(error)
        _resolve(self.in_step, error)

    def settle(self, phase: ArmPhase, *, in_step: bool) -> None:
        """Resolve what the phase decides; call when whoever hears of events has been told."""
        if phase in (ArmPhase.TELEOP, ArmPhase.ROLLOUT, ArmPhase.TAKEOVER):
            if in_step:
                _resolve(self.in_step)
            return
        _resolve(self.in_step, Refused(self.fault or "the motion was ended"))
        if phase.released:
            self.released()
        elif not phase.moving and phase is not ArmPhase.ABANDONED:
            reason = self.fault or "it is held"
            _resolve(self.parked, Refused(f"the arm was not parked: {reason}"))

    def released(self) -> None:
        """The torque is off."""
        _resolve(self.parked)


def _resolve(future: Future[None], error: Exception | None = None) -> None:
    """Once; what comes later changes nothing."""
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
