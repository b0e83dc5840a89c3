"""What the trainer works from: the newest dataset, as batches for one policy and normaliser."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agent.errors import BadLedger
from agent.recording.ledger import read_ledger
from agent.training.episode_roles import episode_roles
from agent.training.held_out import HeldOutEpisodes
from policy.batches import Batches, load_frames, open_batches
from policy.build import Tensors
from policy.errors import BadDataset, NoEpisodes
from policy.spec import PolicySpec
from policy.statistics import Normalizer

EVALUATION_BATCH = 256


@dataclass(frozen=True)
class TrainingData:
    """Batches of one version of the dataset."""

    version: Path
    trained: tuple[str, ...]  # content digests of the episodes of `training`
    training: Batches
    held_out: Batches | None  # None until there is a second episode
    episodes: HeldOutEpisodes | None  # of `held_out`, one by one

    def evaluation(self) -> list[Tensors]:
        """Held-out batches in order; empty when no episode is held out."""
        return [] if self.held_out is None else list(self.held_out.ordered(EVALUATION_BATCH))


class DatasetSource:
    """Looks for a newer dataset and opens it; says why there is nothing to train from."""

    def __init__(self, dataset: Path, held_out_every: int, min_episodes: int) -> None:
        self._link = dataset
        self._every = held_out_every
        self._min_episodes = min_episodes
        self._opened: TrainingData | None = None
        self._key: tuple[str, str, Path] | None = None
        self.reason = ""

    def newest(self, spec: PolicySpec, normalizer: Normalizer) -> TrainingData | None:
        """Batches of the newest dataset, None with ``reason`` set when there are none to be had."""
        version = self._link.resolve()
        key = (spec.digest(), normalizer.digest(), version)
        if key != self._key:
            self._key, self._opened = key, None
            try:
                self._opened = self._open(version, spec, normalizer)
                self.reason = ""
            except (NoEpisodes, BadDataset, BadLedger) as error:
                self.reason = str(error)
        return self._opened

    def _open(self, root: Path, spec: PolicySpec, normalizer: Normalizer) -> TrainingData:
        frames = load_frames(root, list(spec.vectors))
        episodes = frames.episodes
        if len(episodes) < self._min_episodes:
            raise NoEpisodes(f"{len(episodes)} episodes recorded, {self._min_episodes} wanted")
        ledger = read_ledger(root)
        roles = episode_roles(ledger, self._every)
        training, held_out = roles.training, roles.held_out
        trained = tuple(ledger[index].content_digest for index in training)
        batches = open_batches(root, spec, normalizer, training)
        if not held_out:
            return TrainingData(root, trained, batches, None, None)
        return TrainingData(
            version=root,
            trained=trained,
            training=batches,
            held_out=open_batches(root, spec, normalizer, held_out),
            episodes=HeldOutEpisodes.measure(
                frames.select(held_out),
                frames.select(training),
                spec,
                normalizer,
                {index: ledger[index].content_digest for index in held_out},
            ),
        )
