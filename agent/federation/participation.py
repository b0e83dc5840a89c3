"""Join a window, or decline with a reason? Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agent.training.exchange import BaseInfo, Contribution
from protocol.messages import Window


@dataclass(frozen=True)
class Decision:
    """What an `Answer` says, less its envelope."""

    decision: Literal["join", "decline"]
    reason: str | None = None
    base_digest: str | None = None
    steps: int = 0
    examples: int = 0


@dataclass(frozen=True)
class Readiness:
    """What the decision rests on. `in_use`: the operator or a rollout has the machine."""

    base: BaseInfo | None
    contribution: Contribution | None
    local_work: Literal["anytime", "window"]
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
    if not ready.data_plane:
        return Decision("decline", "the SuperNode is not connected", ready.base.digest)
    if window.local_work == "window":
        return _decide_window(window, ready, ready.base)
    work = ready.contribution
    if work is None or work.steps == 0:
        return Decision("decline", "nothing gained yet", ready.base.digest)
    if window.base_round - work.base_round > window.max_staleness:
        return Decision("decline", "wrong base: what was gained is too old", work.base_digest)
    return Decision("join", None, work.base_digest, work.steps, work.examples)


def _decide_window(window: Window, ready: Readiness, base: BaseInfo) -> Decision:
    if ready.local_work != "window":
        return Decision("decline", "this robot works anytime, not inside windows", base.digest)
    if base.digest != window.base_digest:
        return Decision("decline", "wrong base", base.digest)
    if ready.in_use:
        return Decision("decline", "the robot is in use", base.digest)
    return Decision("join", None, base.digest)
