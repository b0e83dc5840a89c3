"""Which candidate becomes a release, from what the robots measured. Pure.

Each robot reports the error of a base on episodes it kept aside, one by one. A candidate is ready
when all of its members reported, or at its deadline. The newest ready candidate is judged; older
ones are superseded. It must be no worse than the last release by more than the margin, on the
episodes that both were scored on. A first one must be better than holding still, and as good as
replaying the nearest demonstration by a factor; so must one that less than a quorum can compare
with the last. A robot on which it is far worse refuses alone. Too few robots refuse it too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from coordinator.campaign.paired_comparison import (
    MIN_EPISODES,
    Comparison,
    RobotPairs,
    capped_weights,
    compare,
    log_ratio,
)
from coordinator.campaign.state import Candidate, Evaluation
from coordinator.config import ReleaseGateConfig
from protocol.messages import EpisodeError, HeldOutReport

Reports = Mapping[str, HeldOutReport]

LAST_RELEASE = "the last release's"
HOLDING_STILL = "that of holding still"
NEAREST_DEMONSTRATION = "that of the nearest demonstration"


@dataclass(frozen=True)
class ReleaseVerdict:
    """The candidate judged, the older ones it supersedes, and why it is refused (None: release)."""

    candidate: Candidate
    superseded: tuple[Candidate, ...]
    evaluation: Evaluation | None
    refusal: str | None


class _Refused(Exception):
    """The one line why."""


def mean_action_mae(reports: Reports) -> float:
    """Mean over robots, weighted by frames up to a cap. Raises ValueError if nobody has frames."""
    frames = {agent: each.frames for agent, each in reports.items() if each.frames}
    if not frames:
        raise ValueError("no held-out frames")
    weights = capped_weights(frames)
    total = sum(reports[agent].action_mae * weight for agent, weight in weights.items())
    return total / sum(weights.values())


def judge(
    candidates: list[Candidate],
    held_out: Mapping[str, Reports],
    last_release: Reports | None,
    rules: ReleaseGateConfig,
    min_robots: int,
    now_unix_s: float,
) -> ReleaseVerdict | None:
    """The verdict on the newest ready candidate; None while none is ready."""
    ready = None
    for candidate in candidates:
        reports = held_out.get(candidate.digest, {})
        if set(candidate.members) <= reports.keys() or now_unix_s >= candidate.deadline_unix_s:
            ready = candidate
    if ready is None:
        return None
    older = tuple(candidate for candidate in candidates if candidate.round < ready.round)
    reports = held_out.get(ready.digest, {})
    try:
        grounds = _grounds(ready, reports, last_release or {}, rules, min_robots)
    except _Refused as refusal:
        return ReleaseVerdict(ready, older, None, str(refusal))
    evaluation = Evaluation(
        reports=dict(reports),
        action_mae=mean_action_mae(reports),
        complete=set(ready.members) <= reports.keys(),
        grounds=grounds,
    )
    return ReleaseVerdict(ready, older, evaluation, None)


def _grounds(
    candidate: Candidate,
    reports: Reports,
    last: Reports,
    rules: ReleaseGateConfig,
    min_robots: int,
) -> list[str]:
    """What lets the candidate pass, one line each. Raises _Refused."""
    needed = max(min_robots, math.ceil(rules.quorum * len(candidate.members)))
    usable = {a: each for a, each in reports.items() if len(each.episodes) >= MIN_EPISODES}
    if len(usable) < needed:
        raise _Refused(
            f"{len(usable)} robots of {len(candidate.members)} reported {MIN_EPISODES} or more "
            f"held-out episodes in time, {needed} are needed"
        )
    to_last = _pairs_with(usable, last)
    margin = 1.0 + rules.margin
    _veto(to_last, LAST_RELEASE, margin * rules.veto)
    grounds = []
    if len(to_last) >= min_robots:
        grounds.append(_within(to_last, LAST_RELEASE, margin, rules, surely=True))
    if len(to_last) >= needed:
        return grounds
    # Replaying errs by twice as much in one episode as in the next, so a bound on it would want
    # dozens of them; the mean alone tells a trained policy from an untrained one.
    for what, other, limit, surely in (
        (HOLDING_STILL, _hold_still, rules.hold_still, True),
        (NEAREST_DEMONSTRATION, _nearest, rules.nearest, False),
    ):
        pairs = _pairs_within(usable, other)
        _veto(pairs, what, limit * rules.veto)
        grounds.append(_within(pairs, what, limit, rules, surely))
    return grounds


def _within(
    pairs: Mapping[str, RobotPairs],
    what: str,
    limit: float,
    rules: ReleaseGateConfig,
    surely: bool,
) -> str:
    """The line that says so. `surely`: the bound and not only the ratio. Raises _Refused."""
    comparison: Comparison = compare(pairs, rules.confidence)
    line = comparison.line(what)
    judged = comparison.at_most if surely else comparison.ratio
    if not judged <= limit:  # a NaN is refused
        raise _Refused(f"{line}, above the limit of {limit:.3f}")
    return line


def _veto(pairs: Mapping[str, RobotPairs], what: str, limit: float) -> None:
    for agent in sorted(pairs):
        ratio = pairs[agent].ratio
        if not ratio <= limit:
            raise _Refused(
                f"{agent} alone refuses: its held-out error is {ratio:.3f} times {what} "
                f"({len(pairs[agent].log_ratios)} episodes), above the limit of {limit:.3f}"
            )


def _pairs_with(reports: Reports, last: Reports) -> dict[str, RobotPairs]:
    """Robots that scored both on enough of the same episodes."""
    found = {}
    for agent in reports.keys() & last.keys():
        before = {episode.key: episode.error for episode in last[agent].episodes}
        common = [
            (episode, before[episode.key])
            for episode in reports[agent].episodes
            if episode.key in before
        ]
        if len(common) >= MIN_EPISODES:
            found[agent] = _pairs(common)
    return found


def _pairs_within(
    reports: Reports, other: Callable[[EpisodeError], float]
) -> dict[str, RobotPairs]:
    return {
        agent: _pairs([(episode, other(episode)) for episode in report.episodes])
        for agent, report in reports.items()
    }


def _pairs(episodes: list[tuple[EpisodeError, float]]) -> RobotPairs:
    """Each episode with the error to compare its own with; in an order that nobody chooses."""
    in_order = sorted(episodes, key=lambda pair: pair[0].key)
    return RobotPairs(
        log_ratios=np.array([log_ratio(episode.error, other) for episode, other in in_order]),
        frames=sum(episode.frames for episode, _ in in_order),
    )


def _hold_still(episode: EpisodeError) -> float:
    return episode.hold_still


def _nearest(episode: EpisodeError) -> float:
    return episode.nearest
