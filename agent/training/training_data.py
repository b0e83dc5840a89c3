"""What the trainer works from: the newest dataset, as batches for one policy and normaliser."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from agent.errors import BadLedger
from agent.recording.ledger import read_ledger
from agent.training.demonstrations import Demonstrations
from agent.training.errors import TooFewEpisodes
from agent.training.held_out import HeldOutEpisodes
from policy.batches import Batches, Frames, batches_of, hold_pictures
from policy.errors import BadDataset, NoEpisodes
from policy.frame_cache import FrameCache
from policy.spec import PolicySpec
from policy.statistics import Normalizer
from protocol.waiting import Reason, waiting


@dataclass(frozen=True)
class TrainingData:
    """Batches of one version of the dataset."""

    version: Path
    trained: tuple[str, ...]  # content digests of the episodes of `training`
    drawn_from: str  # digest of the frames that are trained on: equal ones are drawn equally
    training: Batches
    held_out: Batches | None  # None until there is a second episode
    episodes: HeldOutEpisodes | None  # of `held_out`, one by one
    pictures: FrameCache


class DatasetSource:
    """Looks for a newer dataset and opens it; says what is missing to train from."""

    def __init__(
        self,
        dataset: Path,
        demonstrations: Demonstrations,
        min_episodes: int,
        pictures: FrameCache,
        device: str = "cpu",
    ) -> None:
        self._link = dataset
        self._demonstrations = demonstrations
        self._min_episodes = min_episodes
        self._pictures = pictures
        self._device = device
        self._opened: TrainingData | None = None
        self._key: tuple[str, str, Path] | None = None
        self.waiting = waiting(Reason.NO_EPISODES)

    def newest(self, spec: PolicySpec, normalizer: Normalizer) -> TrainingData | None:
        """Batches of the newest dataset, None with ``waiting`` set when there are none."""
        version = self._link.resolve()
        key = (spec.digest(), normalizer.digest(), version)
        if key != self._key:
            self._key, self._opened = key, None
            try:
                self._opened = self._open(version, spec, normalizer)
            except TooFewEpisodes as few:
                self.waiting = waiting(Reason.FEW_EPISODES, have=few.have, need=few.need)
            except NoEpisodes:
                self.waiting = waiting(Reason.NO_EPISODES)
            except (BadDataset, BadLedger) as error:
                self.waiting = waiting(Reason.UNFIT_DATASET, why=str(error))
        return self._opened

    def _open(self, root: Path, spec: PolicySpec, normalizer: Normalizer) -> TrainingData:
        ledger = read_ledger(root)
        training, held_out = self._demonstrations.split(root, ledger, tuple(spec.vectors))
        known = len(training.episodes) + len(held_out.episodes)
        if known < self._min_episodes:
            raise TooFewEpisodes(known, self._min_episodes)
        if not training.episodes:  # all that there are are held out
            raise TooFewEpisodes(known, known + 1)
        wanted = sorted({*training.episodes, *held_out.episodes})
        pictures = hold_pictures(self._pictures, root, spec, wanted)
        digests = {index: ledger[index].content_digest for index in wanted}
        judged = batches = batches_of(training, spec, normalizer, pictures, device=self._device)
        episodes = None
        if held_out.episodes:
            judged = batches_of(held_out, spec, normalizer, pictures, device=self._device)
            episodes = HeldOutEpisodes.measure(held_out, training, spec, normalizer, digests)
        return TrainingData(
            version=root,
            trained=tuple(digests[index] for index in training.episodes),
            drawn_from=_digest(training),
            training=batches,
            held_out=None if episodes is None else judged,
            episodes=episodes,
            pictures=pictures,
        )


def _digest(frames: Frames) -> str:
    text = json.dumps([frames.episode.tolist(), frames.numbers.tolist()])
    return hashlib.sha256(text.encode()).hexdigest()
