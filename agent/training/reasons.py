"""For what this robot's training waits, as every status of this robot says it. Pure."""

from __future__ import annotations

from protocol.waiting import Reason, Waiting, waiting


def training_wait(
    *, enabled: bool, allowed: bool, state: str, process: str | None, said: Waiting | None
) -> Waiting | None:
    """None only while steps are made that have no end.

    `state`: the robot's; `process`: that of the trainer's row, None where it is not known; `said`:
    the trainer's own word, which is old when it does not run.
    """
    if not enabled:
        return waiting(Reason.TRAINING_OFF)
    if not allowed:
        return waiting(Reason.IN_USE, state=state)
    if process not in (None, "running"):
        return waiting(Reason.TRAINER_DOWN, state=process or "")
    return said
