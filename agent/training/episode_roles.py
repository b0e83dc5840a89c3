"""Which episodes a robot learns from, and which it is only ever judged by. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from agent.config import Source
from agent.recording.ledger import LedgerEntry
from policy.batches import split_episodes

DEMONSTRATED: tuple[Source, ...] = ("teleoperation", "intervention")


@dataclass(frozen=True)
class EpisodeRoles:
    """Episode indices of a dataset, ascending; no episode is in both."""

    training: list[int]
    held_out: list[int]


def episode_roles(
    ledger: Sequence[LedgerEntry],
    held_out_every: int,
    sources: Collection[str] = DEMONSTRATED,
    *,
    failed_too: bool = False,
) -> EpisodeRoles:
    """Split by what the ledger says of each episode.

    Taken are those of `sources` that nobody called a failure (`failed_too`: those as well). One in
    `held_out_every` of them is held out, by its index alone, and so are all that were imported for
    evaluation.
    """
    taken = [
        index
        for index, entry in enumerate(ledger)
        if entry.source in sources and (failed_too or entry.success is not False)
    ]
    evaluation = {index for index in taken if ledger[index].evaluation}
    training, held_out = split_episodes(
        [index for index in taken if index not in evaluation], held_out_every
    )
    return EpisodeRoles(training, sorted([*held_out, *evaluation]))
