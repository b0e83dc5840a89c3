"""What GET /v1/status says: one JSON document, made from the campaign and the shell's own facts."""

from __future__ import annotations

import json
from typing import Any

from coordinator.campaign.campaign import Campaign
from coordinator.campaign.evaluation import evaluate_rounds
from coordinator.campaign.leaks import explain_leak
from coordinator.campaign.state import WITHOUT_DETAILS
from coordinator.config import CoordinatorConfig

EVALUATED_ROUNDS = 50


def make_snapshot(
    config: CoordinatorConfig, campaign: Campaign, now_unix_s: float, shell: dict[str, Any]
) -> bytes:
    """UTF-8 JSON. Keys:

    unix_s, fleet; campaign {phase, round, rounds, base_digest, next_window_s, waiting, window};
    agents {id: {connected, heard_s_ago, waiting, status}}; windows, rounds (oldest first);
    held_out {round: {agent: {round, action_mae, loss, frames}}}; evaluation, the rows of
    coordinator.campaign.evaluation; candidates, export, releases, refused, leaks;
    bytes {up, down}; broker, flower, events.
    """
    state = campaign.state
    base = state.base
    by_round = {entry.digest: entry.round for entry in state.bases}
    held_out = {
        str(by_round[digest]): {
            agent: report.model_dump(mode="json", exclude={"episodes", "joints"})
            for agent, report in sorted(reports.items())
        }
        for digest, reports in state.held_out.items()
        if digest in by_round
    }
    document = {
        "unix_s": now_unix_s,
        "fleet": config.fleet,
        "campaign": {
            "phase": state.phase.value,
            "round": state.round,
            "rounds": config.campaign.rounds,
            "base_digest": None if base is None else base.digest,
            "normalizer_digest": state.normalizer_digest,
            "next_window_s": round(state.next_window_unix_s - now_unix_s, 1),
            "waiting": [reason.shown() for reason in campaign.waiting(now_unix_s)],
            "window": None if state.window is None else state.window.model_dump(mode="json"),
        },
        "agents": campaign.roster.snapshot(now_unix_s),
        "windows": [record.model_dump(mode="json") for record in state.windows],
        "rounds": [summary.model_dump(mode="json") for summary in state.rounds],
        "held_out": held_out,
        "evaluation": [
            row.model_dump(mode="json") for row in evaluate_rounds(state, EVALUATED_ROUNDS)
        ],
        "candidates": [candidate.model_dump(mode="json") for candidate in state.candidates],
        "export": None
        if state.export is None
        else state.export.model_dump(mode="json", exclude={"evaluation": WITHOUT_DETAILS}),
        "releases": [
            release.model_dump(mode="json", exclude={"evaluation": WITHOUT_DETAILS})
            for release in state.releases
        ],
        "refused": [refused.model_dump(mode="json") for refused in state.refused],
        "leaks": [explain_leak(agent, leak) for agent, leak in sorted(state.leaks.items())],
        "bytes": {
            "up": sum(summary.bytes_up for summary in state.rounds),
            "down": sum(summary.bytes_down for summary in state.rounds),
        },
        **shell,
    }
    return json.dumps(document, allow_nan=False).encode()
