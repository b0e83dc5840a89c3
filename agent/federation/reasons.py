"""For what this robot's part in its fleet waits. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.waiting import Reason, Waiting, waiting

UNDER_WAY = ("downloading", "qualifying", "waiting")


@dataclass(frozen=True)
class Membership:
    """What the federation process knows; errors are one line each, None where all is well."""

    connected: bool
    broker_error: str | None
    supernode: str
    supernode_error: str | None
    paused: bool
    window_round: int | None  # of the window that is open
    declined: str | None  # why this robot sits it out
    release: int | None
    release_state: str


def fleet_waits(now: Membership) -> list[Waiting]:
    """At least one reason: between windows, that none is open."""
    found = []
    if not now.connected:
        found.append(waiting(Reason.NO_BROKER, why=now.broker_error or "connecting"))
    elif now.paused:
        found.append(waiting(Reason.PAUSED))
    if now.supernode != "connected":
        found.append(waiting(Reason.NO_SUPERNODE, why=now.supernode_error or now.supernode))
    if now.connected and not now.paused:
        if now.window_round is None:
            found.append(waiting(Reason.NO_WINDOW))
        elif now.declined is not None:
            found.append(waiting(Reason.DECLINED, why=now.declined))
        else:
            found.append(waiting(Reason.JOINED, round=now.window_round))
    if now.release is not None and now.release_state in UNDER_WAY:
        release, state = now.release, now.release_state
        found.append(waiting(Reason.RELEASE_UNDERWAY, version=release, state=state))
    return found
