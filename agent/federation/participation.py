"""Join a window, or decline with a reason? Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agent.training.exchange import BaseInfo
from protocol.contribution import Contribution
from protocol.eligibility import explain, judge_join
from protocol.fields import LocalWork
from protocol.messages import Window


@dataclass(frozen=True)
class Decision:
    """What an `Answer` says, less its envelope."""

    decision: Literal["join", "decline"]
    reason: str | None = None
    base_digest: str | None = None
    steps: int = 0


@dataclass(frozen=True)
class Readiness:
    """What the decision rests on. `in_use`: the operator or a rollout has the machine.

    merged_base: digest of the base from which this robot's work was last merged.
    """

    base: BaseInfo | None
    contribution: Contribution | None
    merged_base: str | None
    local_work: LocalWork
    paused: bool
    in_use: bool
    data_plane: bool


def decide(window: Window, ready: Readiness, now_unix_s: float) -> Decision | None:
    """The answer to `window`; None when there is nothing to answer (closed, or too late).

    `now_unix_s` is the coordinator's clock as this robot knows it. A contribution counts with the
    base that it was made on, which may be older than the window's.
    """
    if window.closed or now_unix_s > window.join_by_unix_s:
        return None
    if ready.paused:
        return Decision("decline", "paused by the coordinator")
    if ready.base is None:
        return Decision("decline", "no base yet")
    base_digest, steps = ready.base.digest, 0
    if not ready.data_plane:
        return Decision("decline", "the SuperNode is not connected", base_digest)
    if window.terms.local_work == "window":
        if ready.local_work != "window":
            reason = "this robot works anytime, not inside windows"
            return Decision("decline", reason, base_digest)
        if ready.in_use:
            return Decision("decline", "the robot is in use", base_digest)
    elif ready.contribution is not None:
        base_digest, steps = ready.contribution.base_digest, ready.contribution.steps
    refusal = judge_join(base_digest, steps, ready.merged_base, window.terms)
    if refusal is not None:
        reason = explain(refusal, base_digest, steps, window.terms)
        return Decision("decline", reason, base_digest, steps)
    return Decision("join", None, base_digest, steps)
