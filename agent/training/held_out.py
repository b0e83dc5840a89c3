"""The episodes that this robot never trains on, one by one: key, and what a policy must beat.

Measured once for each version of the dataset; every base is then reported beside the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from policy.baselines import hold_still_mae, nearest_demonstration_mae
from policy.batches import Frames
from policy.spec import PolicySpec
from policy.statistics import Normalizer
from policy.train import ErrorSum
from policy.weights import Array
from protocol.contribution import MAX_LOSS
from protocol.episode_keys import episode_key
from protocol.messages import (
    MAX_ACTION_ERROR,
    MAX_EPISODE_FRAMES,
    MAX_HELD_OUT_FRAMES,
    MAX_REPORTED_EPISODES,
    MAX_REPORTED_JOINTS,
    EpisodeError,
    HeldOutReport,
)


@dataclass(frozen=True)
class HeldOutEpisodes:
    """Every held-out frame's episode and errors of the two baselines, in recording order."""

    digests: dict[int, str]  # episode index -> digest of its content
    episode: Array  # int64 [N]
    hold_still: Array  # float64 [N], raw joint units
    nearest: Array  # float64 [N], raw joint units

    @classmethod
    def measure(
        cls,
        held_out: Frames,
        training: Frames,
        spec: PolicySpec,
        normalizer: Normalizer,
        digests: Mapping[int, str],
    ) -> Self:
        """Score the baselines on the held-out frames; `digests` as the ledger has them."""
        return cls(
            digests={index: digests[index] for index in held_out.episodes},
            episode=held_out.episode,
            hold_still=hold_still_mae(held_out, spec),
            nearest=nearest_demonstration_mae(held_out, training, spec, normalizer),
        )

    def report(
        self, errors: Mapping[str, ErrorSum], base_round: int, fleet_secret: str
    ) -> HeldOutReport:
        """A base's errors, by the digest of the episode's content, as the coordinator is told."""
        newest = {}
        for index, digest in list(self.digests.items())[-MAX_REPORTED_EPISODES:]:
            rows, key = self.episode == index, episode_key(fleet_secret, digest)
            found = errors[digest]
            newest[key] = EpisodeError(
                key=key,
                frames=min(found.frames, MAX_EPISODE_FRAMES),
                error=_bounded(found.frame_mae / found.frames),
                hold_still=_bounded(self.hold_still[rows].mean()),
                nearest=_bounded(self.nearest[rows].mean()),
            )
        total = sum(errors.values(), ErrorSum())
        return HeldOutReport(
            round=base_round,
            action_mae=min(total.raw / total.numbers, MAX_ACTION_ERROR),
            loss=min(total.loss / total.numbers, MAX_LOSS),
            frames=min(total.frames, MAX_HELD_OUT_FRAMES),
            episodes=tuple(newest.values()),
            joints=tuple(map(_bounded, total.joint_mae[:MAX_REPORTED_JOINTS])),
        )


def _bounded(error: float) -> float:
    """To six digits, so that a status stays small."""
    return float(f"{min(float(error), MAX_ACTION_ERROR):.6g}")
