"""For what the campaign waits: the phase, its deadlines and each robot's part in it. Pure.

Every phase but `finished` has at least one reason.
"""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.campaign.membership import Roster
from coordinator.campaign.state import CampaignPhase, CampaignState
from coordinator.campaign.window import WindowState
from coordinator.config import CampaignConfig
from protocol.waiting import Reason, Waiting, waiting


@dataclass(frozen=True)
class CampaignClock:
    """What the campaign knows beside its durable state. Unix seconds; None where not set."""

    data_plane: bool
    enough_since: float | None
    retry_at: float
    retry_why: str
    window: WindowState | None


def campaign_waits(
    state: CampaignState, rules: CampaignConfig, roster: Roster, clock: CampaignClock, now: float
) -> list[Waiting]:
    """What must happen before the campaign goes on, the nearest first."""
    if not clock.data_plane and state.phase is not CampaignPhase.FINISHED:
        return [waiting(Reason.NO_SUPERLINK)]
    match state.phase:
        case CampaignPhase.GATHERING:
            found = _gathering(rules, roster, clock, now)
        case CampaignPhase.STATISTICS:
            found = [waiting(Reason.STATISTICS)]
        case CampaignPhase.BUILDING:
            found = [waiting(Reason.BUILDING)]
        case CampaignPhase.INSTALLING:
            found = [waiting(Reason.INSTALLING)]
            if now < clock.retry_at:
                found = [_retry(clock)]
            if not _fitting(state, roster, now):
                found = [waiting(Reason.NO_ROBOT), *_robots(state, roster, now)]
        case CampaignPhase.WAITING:
            found = [*_between_windows(state, rules, roster, now), *_robots(state, roster, now)]
        case CampaignPhase.JOINING:
            found = _joining(clock.window)
        case CampaignPhase.TRAINING:
            joined = 0 if state.window is None else len(state.window.joined)
            found = [waiting(Reason.ROUND, round=state.round + 1, count=joined)]
        case CampaignPhase.FINISHING:
            found = [] if state.candidates or state.export else [waiting(Reason.LAST_BASE)]
        case CampaignPhase.FINISHED:
            found = []
    return [*found, *_releases(state)]


def _gathering(
    rules: CampaignConfig, roster: Roster, clock: CampaignClock, now: float
) -> list[Waiting]:
    features = roster.majority_features(now)
    lacking = {agent: roster.lacks(agent, now, features) for agent in sorted(roster.enrolled)}
    robots = [reason for reason in lacking.values() if reason is not None]
    missing = rules.min_agents - (len(lacking) - len(robots))
    if missing > 0:
        return [waiting(Reason.MORE_ROBOTS, count=missing), *robots]
    if now < clock.retry_at:
        return [_retry(clock), *robots]
    since = now if clock.enough_since is None else clock.enough_since
    return [waiting(Reason.FOR_OTHERS, at=since + rules.gather_s), *robots]


def _retry(clock: CampaignClock) -> Waiting:
    return waiting(Reason.RETRY, at=clock.retry_at, why=clock.retry_why)


def _fitting(state: CampaignState, roster: Roster, now: float) -> bool:
    return state.features is not None and bool(roster.fitting(state.features, now))


def _robots(state: CampaignState, roster: Roster, now: float) -> list[Waiting]:
    lacking = (roster.lacks(agent, now, state.features) for agent in sorted(roster.enrolled))
    return [reason for reason in lacking if reason is not None]


def _between_windows(
    state: CampaignState, rules: CampaignConfig, roster: Roster, now: float
) -> list[Waiting]:
    at = state.next_window_unix_s
    if rules.open_when != "ready" or state.features is None:
        return [waiting(Reason.NEXT_WINDOW, at=at)]
    need = max(1, rules.min_local_steps)
    gaining = [
        waiting(Reason.ROBOT_GAINING, robot=agent, have=have, need=need)
        for agent, status in roster.fitting(state.features, now).items()
        if (have := status.training.steps_since_base) < need
    ]
    return [waiting(Reason.UNTIL_READY, steps=need, at=at), *gaining]


def _joining(window: WindowState | None) -> list[Waiting]:
    if window is None:  # lost with the process: it ends at the next tick
        return [waiting(Reason.NEXT_WINDOW, at=0.0)]
    answered = len(window.joined) + len(window.declined)
    need = max(len(window.expected), answered)
    return [waiting(Reason.ANSWERS, at=window.join_by_unix_s, have=answered, need=need)]


def _releases(state: CampaignState) -> list[Waiting]:
    """What goes on beside the windows."""
    found = []
    for candidate in state.candidates[-1:]:
        reports = state.held_out.get(candidate.digest, {}).keys()
        have, need = len(reports & set(candidate.members)), len(candidate.members)
        found.append(waiting(Reason.EVALUATION, round=candidate.round, have=have, need=need))
    if state.export is not None:
        found.append(waiting(Reason.RELEASING, version=state.export.version))
    return found
