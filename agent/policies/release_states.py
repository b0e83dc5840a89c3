"""What may become of a release on one robot: state × event -> state. Pure: no disk, no clock.

    offered -> downloading -> verified -> qualifying -> shadow -> canary <-> driving -> active
                                 |  ^        |
                                 v  |        v
                           waiting_for_idle  refused

`driving` is the trial marker: it is on the disk before a version that has not passed its trial has
the arm, so an agent that comes up and finds it knows that the version may be what brought it down.
A rolled back or refused release never returns by itself: no event but the operator's leaves them.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class ReleaseState(StrEnum):
    """Where a release is on this robot."""

    OFFERED = "offered"  # the coordinator named it; nothing of it is here, or a part
    DOWNLOADING = "downloading"
    VERIFIED = "verified"  # all files are here and have their digests
    WAITING_FOR_IDLE = "waiting_for_idle"  # the robot is in use, or a trial met a busy host
    QUALIFYING = "qualifying"  # runs in a child process
    SHADOW = "shadow"  # predicts beside whoever commands, never commands
    CANARY = "canary"  # drives the next episode, with reduced limits
    DRIVING = "driving"  # a canary has the arm: the trial marker
    ACTIVE = "active"  # drives every episode
    RETIRED = "retired"  # was active; installed still
    SET_ASIDE = "set_aside"  # another took its place before its trial was over
    ROLLED_BACK = "rolled_back"  # a fault or a person took it away
    REFUSED = "refused"  # its content is wrong for this robot: for good

    @property
    def arriving(self) -> bool:
        """Not in the store yet."""
        return self in _ARRIVING

    @property
    def on_trial(self) -> bool:
        """Installed, and not trusted yet."""
        return self in _ON_TRIAL

    @property
    def trusted(self) -> bool:
        """Passed its trial, or was chosen by the operator."""
        return self in (ReleaseState.ACTIVE, ReleaseState.RETIRED)

    @property
    def barred(self) -> bool:
        """Never returns by itself."""
        return self in (ReleaseState.ROLLED_BACK, ReleaseState.REFUSED)


class ReleaseEvent(StrEnum):
    """What may happen: to the files, in a trial, or by a person's word."""

    FETCH = "fetch"
    INTERRUPTED = "interrupted"  # the server is away, the connection was cut
    DAMAGED = "damaged"  # bytes without their digest: fetched again
    FETCHED = "fetched"
    BUSY = "busy"  # the robot is in use
    QUALIFY = "qualify"
    TOO_BUSY = "too_busy"  # refused for load: tried again when idle
    BAD_CONTENT = "bad_content"  # refused for content: for good
    TO_SHADOW = "to_shadow"
    TO_CANARY = "to_canary"
    TRUST = "trust"  # its trial is passed, or none is asked for
    DRIVE = "drive"  # it gets the arm now
    EPISODE_PASSED = "episode_passed"
    NOT_COUNTED = "not_counted"  # the episode says nothing about the policy
    FAULT = "fault"
    OVERTAKEN = "overtaken"  # by a newer release
    REPLACED = "replaced"  # another version is active now
    OFFER_AGAIN = "offer_again"
    FETCHER_STARTED = "fetcher_started"  # the process that downloads and qualifies comes up
    AGENT_STARTED = "agent_started"  # the daemon comes up
    USE = "use"  # the operator's choice
    ROLL_BACK = "roll_back"  # the operator's or the coordinator's
    RETURN = "return"  # to the version before


_S, _E = ReleaseState, ReleaseEvent

_ARRIVING = frozenset({_S.OFFERED, _S.DOWNLOADING, _S.VERIFIED, _S.WAITING_FOR_IDLE, _S.QUALIFYING})
_ON_TRIAL = frozenset({_S.SHADOW, _S.CANARY, _S.DRIVING})

TRANSITIONS: dict[tuple[ReleaseState, ReleaseEvent], ReleaseState] = {}


def _when(
    states: ReleaseState | Iterable[ReleaseState], event: ReleaseEvent, state: ReleaseState
) -> None:
    """One line of the table for each of `states`."""
    for before in [states] if isinstance(states, ReleaseState) else states:
        TRANSITIONS[before, event] = state


# On the way here.
_when(_S.OFFERED, _E.FETCH, _S.DOWNLOADING)
_when(_S.DOWNLOADING, _E.INTERRUPTED, _S.OFFERED)
_when((_S.DOWNLOADING, _S.QUALIFYING), _E.DAMAGED, _S.OFFERED)
_when((_S.DOWNLOADING, _S.QUALIFYING), _E.BAD_CONTENT, _S.REFUSED)
_when(_S.DOWNLOADING, _E.FETCHED, _S.VERIFIED)
_when((_S.VERIFIED, _S.QUALIFYING), _E.BUSY, _S.WAITING_FOR_IDLE)
_when((_S.VERIFIED, _S.WAITING_FOR_IDLE), _E.QUALIFY, _S.QUALIFYING)
_when(_S.QUALIFYING, _E.TOO_BUSY, _S.WAITING_FOR_IDLE)
_when(_ARRIVING, _E.OVERTAKEN, _S.SET_ASIDE)
_when(_ARRIVING, _E.FETCHER_STARTED, _S.OFFERED)  # what lies on the disk is not fetched again
_when(_S.SET_ASIDE, _E.OFFER_AGAIN, _S.OFFERED)

# The trial.
_when(_S.QUALIFYING, _E.TO_SHADOW, _S.SHADOW)
_when((_S.QUALIFYING, _S.SHADOW), _E.TO_CANARY, _S.CANARY)
_when((_S.QUALIFYING, _S.SHADOW, _S.DRIVING), _E.TRUST, _S.ACTIVE)
_when(_S.CANARY, _E.DRIVE, _S.DRIVING)
_when(_S.DRIVING, _E.EPISODE_PASSED, _S.CANARY)
_when(_S.DRIVING, _E.NOT_COUNTED, _S.CANARY)
_when((_S.SHADOW, _S.DRIVING), _E.FAULT, _S.ROLLED_BACK)
_when(_S.DRIVING, _E.AGENT_STARTED, _S.ROLLED_BACK)
_when(_ON_TRIAL, _E.OVERTAKEN, _S.SET_ASIDE)
_when(_ON_TRIAL, _E.REPLACED, _S.SET_ASIDE)
_when(_ON_TRIAL, _E.ROLL_BACK, _S.ROLLED_BACK)

# In use, and by a person's word.
_when(_S.ACTIVE, _E.REPLACED, _S.RETIRED)
_when(_S.ACTIVE, _E.ROLL_BACK, _S.ROLLED_BACK)
_when(_S.RETIRED, _E.RETURN, _S.ACTIVE)
_when((*_ON_TRIAL, _S.RETIRED, _S.SET_ASIDE, _S.ROLLED_BACK), _E.USE, _S.ACTIVE)


def next_state(state: ReleaseState, event: ReleaseEvent) -> ReleaseState:
    """What follows; a pair that is not in the table changes nothing."""
    return TRANSITIONS.get((state, event), state)
