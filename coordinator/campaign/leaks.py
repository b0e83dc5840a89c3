"""No robot is believed on an episode that any robot ever trained on. Pure.

Each robot says by keys (protocol.episode_keys) what it trained on, with each base that it installs.
A report that has such an episode in it is refused whole, and both robots are named: one that leaked
throws doubt on its neighbours, which were recorded or imported together. A robot that claims keys
at random hits nobody's: it would have to know the episode.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from coordinator.campaign.state import CampaignState, Leak
from protocol.messages import HeldOutReport

MAX_KNOWN_EPISODES = 1_000_000


def note_trained(state: CampaignState, trained: Mapping[str, Iterable[str]]) -> None:
    """Remember what each robot said that it trained on; who said it first stays named."""
    for agent_id, keys in trained.items():
        for key in keys:
            if len(state.trained) >= MAX_KNOWN_EPISODES:
                return
            state.trained.setdefault(key, agent_id)


def find_leak(state: CampaignState, report: HeldOutReport) -> Leak | None:
    """The first episode of a report that was trained on; None when the report is sound."""
    for episode in report.episodes:
        trained_by = state.trained.get(episode.key)
        if trained_by is not None:
            return Leak(key=episode.key, trained_by=trained_by)
    return None


def take_out_leaks(state: CampaignState, bases: Iterable[str] | None = None) -> dict[str, Leak]:
    """Drop every report that a leak is in; robot -> leak, of those not known before.

    Of the reports on these bases alone, on all without.
    """
    found: dict[str, Leak] = {}
    for digest in state.held_out if bases is None else bases:
        reports = state.held_out.get(digest, {})
        for agent_id in list(reports):
            leak = find_leak(state, reports[agent_id])
            if leak is not None:
                del reports[agent_id]
                found[agent_id] = leak
    new = {agent: leak for agent, leak in found.items() if state.leaks.get(agent) != leak}
    state.leaks |= new
    return new


def explain_leak(agent_id: str, leak: Leak) -> str:
    """One line."""
    whose = "itself" if leak.trained_by == agent_id else leak.trained_by
    return (
        f"the evaluation by {agent_id} is refused: "
        f"its held-out episode {leak.key} was trained on by {whose}"
    )
