"""Which candidate becomes a release, from what the robots measured. Pure.

Each robot reports the error of a base on episodes it kept aside. A candidate is ready when all of
its members reported, or at its deadline. The newest ready candidate is judged; older ones are
superseded. It is refused when its mean error, weighted by frames, over the robots that judged both
is worse than its predecessor's.
"""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.campaign.state import Candidate, Evaluation
from protocol.messages import HeldOutReport

Reports = dict[str, HeldOutReport]


@dataclass(frozen=True)
class ReleaseVerdict:
    """The candidate judged, the older ones it supersedes, and why it is refused (None: release)."""

    candidate: Candidate
    superseded: tuple[Candidate, ...]
    evaluation: Evaluation | None
    refusal: str | None


def mean_action_mae(reports: Reports) -> float:
    """Mean weighted by frames; a robot without frames does not count. Raises ValueError if none."""
    frames = sum(report.frames for report in reports.values())
    if frames == 0:
        raise ValueError("no held-out frames")
    return sum(report.action_mae * report.frames for report in reports.values()) / frames


def compare(new: Reports, old: Reports, tolerance: float) -> str | None:
    """Why `new` is worse than `old`, or None. Over the robots that judged both, if there are any.

    Frames of `new` weigh both means: a robot whose held-out set grew must not shift the comparison.
    """
    common = sorted(new.keys() & old.keys())
    if not common:
        now, before, who = mean_action_mae(new), mean_action_mae(old), "different robots"
    else:
        now = mean_action_mae({agent: new[agent] for agent in common})
        before = mean_action_mae(
            {agent: old[agent].model_copy(update={"frames": new[agent].frames}) for agent in common}
        )
        who = f"{len(common)} robots"
    if now > before + tolerance:
        return (
            f"held-out action error {now:.4g} is worse than the last release's {before:.4g} ({who})"
        )
    return None


def judge(
    candidates: list[Candidate],
    held_out: dict[str, Reports],
    last_release: Evaluation | None,
    tolerance: float,
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
    reports = {
        agent: report for agent, report in held_out.get(ready.digest, {}).items() if report.frames
    }
    if not reports:
        return ReleaseVerdict(ready, older, None, "no robot reported a held-out error in time")
    evaluation = Evaluation(
        reports=reports,
        action_mae=mean_action_mae(reports),
        complete=set(ready.members) <= reports.keys(),
    )
    refusal = None if last_release is None else compare(reports, last_release.reports, tolerance)
    return ReleaseVerdict(ready, older, evaluation, refusal)
