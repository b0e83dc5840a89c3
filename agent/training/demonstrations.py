"""The frames that a robot learns from, and those that it is only ever judged by.

Which episodes, the ledger says (`episode_roles`). Of a rollout that a person corrected, the frames
that are marked are the person's, the others the policy's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from agent.config import Source, TrainingConfig
from agent.recording.ledger import LedgerEntry
from agent.training.episode_roles import DEMONSTRATED, EpisodeRoles, episode_roles
from policy.batches import Frames, load_frames
from policy.weights import Array

# LeRobot's own name and form (its DAgger rollouts): a person commanded at this frame of a rollout.
INTERVENTION = "intervention"


@dataclass(frozen=True)
class Demonstrations:
    """Whose motion is learned from, and how many episodes are held out."""

    held_out_every: int
    sources: tuple[Source, ...] = DEMONSTRATED
    failed_too: bool = False

    @classmethod
    def configured(cls, config: TrainingConfig) -> Self:
        """As the configuration has it."""
        return cls(config.held_out_every, config.sources, config.failed_episodes)

    def roles(self, ledger: Sequence[LedgerEntry]) -> EpisodeRoles:
        """Which episodes are trained on and which are held out."""
        return episode_roles(ledger, self.held_out_every, self.sources, failed_too=self.failed_too)

    def split(
        self, root: Path, ledger: Sequence[LedgerEntry], features: Sequence[str]
    ) -> tuple[Frames, Frames]:
        """Training frames and held-out frames of a dataset. Raises NoEpisodes, BadDataset."""
        frames = load_frames(root, [*features, INTERVENTION])
        keep: Array = np.ones(len(frames.episode), bool)
        marks = frames.vectors.pop(INTERVENTION, None)
        if "rollout" not in self.sources:
            corrected = [i for i, entry in enumerate(ledger) if entry.source == "intervention"]
            of_person = np.zeros_like(keep) if marks is None else marks[:, 0] > 0
            keep = of_person | ~np.isin(frames.episode, np.array(corrected, dtype=np.int64))
        wanted, roles = frames.where(keep), self.roles(ledger)
        return wanted.select(roles.training), wanted.select(roles.held_out)
