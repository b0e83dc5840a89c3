"""Between the campaign and the Flower driver: orders out, results back."""

from __future__ import annotations

from pathlib import Path

from coordinator.campaign.actions import INSTALL_S, RunRound
from coordinator.campaign.state import Base, CampaignState, RoundSummary, base_path
from coordinator.campaign.window import window_terms
from coordinator.config import CoordinatorConfig
from coordinator.federation.orders import Member, RoundOrder, RoundResult
from host.files import sync_folder
from protocol.episode_keys import NO_FLEET


def make_order(
    config: CoordinatorConfig,
    state: CampaignState,
    action: RunRound,
    members: list[Member],
    state_folder: Path,
) -> RoundOrder:
    """The driver's order for an action of the campaign."""
    rules = config.campaign
    base = state.base
    if action.kind == "statistics" or base is None:
        return RoundOrder(
            round=action.round, kind=action.kind, members=members, reply_timeout_s=action.seconds
        )
    # The proximal term is in each robot's loss; mu travels with the base.
    info = {
        "digest": base.digest,
        "round": base.round,
        "spec": state.spec,
        "normalizer": state.normalizer,
        "normalizer_digest": state.normalizer_digest,
        "proximal_mu": rules.strategy.proximal_mu,
        "fleet_secret": state.fleet_secret or NO_FLEET,
        "max_local_steps": rules.max_local_steps,
    }
    return RoundOrder(
        round=action.round,
        kind=action.kind,
        members=members,
        base_weights=(state_folder / base.weights).absolute(),
        base_info=info,
        terms=window_terms(rules, state, base.digest),
        merged_bases=state.merged_bases,
        reply_timeout_s=action.seconds,
        install_timeout_s=INSTALL_S,
        strategy=rules.strategy,
        window_id=action.window_id,
        steps=rules.steps if rules.local_work == "window" else None,
        min_replies=rules.replies_needed,
    )


def read_result(
    action: RunRound, result: RoundResult, state_folder: Path
) -> tuple[RoundSummary, Base | None]:
    """What the campaign keeps of a round; a new base's weights are moved to their place.

    Raises OSError when they cannot be moved.
    """
    summary = RoundSummary(
        round=action.round,
        kind=action.kind,
        window_id=action.window_id,
        members=list(action.members),
        replies=result.replies,
        installed=list(result.installed),
        not_installed=dict(result.not_installed),
        bytes_up=result.bytes_up,
        bytes_down=result.bytes_down,
        seconds=round(result.seconds, 3),
        error=result.failure,
    )
    if result.aggregate is None or result.aggregate_digest is None:
        return summary, None
    target = base_path(state_folder, action.round)
    target.parent.mkdir(parents=True, exist_ok=True)
    result.aggregate.replace(target)
    sync_folder(target.parent)
    digest = result.aggregate_digest
    weights = str(target.relative_to(state_folder))
    return summary, Base(round=action.round, digest=digest, weights=weights)
