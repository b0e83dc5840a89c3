"""What one member answered in a round, and what became of it.

The one record of it: the gate fills it in, the strategy reads it, and the round's result, the
campaign's state and the audit log hold it.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from protocol.contribution import Contribution


class Reply(BaseModel):
    """Any member's answer, a missing one too. `reason`: the one line why it was not accepted."""

    # A campaign.json of before ContributionReply is read too; what is left out is in the audit log.
    model_config = ConfigDict(extra="ignore", frozen=True)

    agent_id: str
    accepted: bool
    reason: str | None = None
    bytes_up: int = 0
    seconds: float | None = None


class ContributionReply(Reply, Contribution):
    """A contribution that could be decoded. Its delta travels beside it.

    staleness: bases that came after its own; None for a base that is not known. weight: its share
    before dividing by the sum. update_norm: length of the delta before it was clipped.
    """

    staleness: int | None = None
    weight: float = 0.0
    update_norm: float | None = None
    clipped: bool = False


# Pydantic takes the one of which more fields are there.
AnyReply = ContributionReply | Reply


def merged_bases(replies: Iterable[Reply]) -> dict[str, str]:
    """Agent -> digest of the base that its accepted contribution was made on."""
    return {
        reply.agent_id: reply.base_digest
        for reply in replies
        if isinstance(reply, ContributionReply) and reply.accepted
    }
