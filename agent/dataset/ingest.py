"""Finished journals become episodes of a LeRobotDataset v3, while the robot is idle.

    python -m agent.dataset.ingest --config FILE

A journal is the truth until its episode stands in a verified dataset that is on the disk; then it
is moved to journal/ingested/, never deleted. The process may be frozen or killed at any instant: a
new dataset appears by one rename (see ``versions``), and its ledger says which journals are in
it, so no episode is lost and none is taken twice.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from agent.child.link import ChildLink
from agent.config import AgentConfig, load_config
from agent.dataset.errors import EpisodeRefused, IngestFailed
from agent.dataset.features import sketch_frames, vector_names
from agent.dataset.versions import DatasetVersions
from agent.errors import BadJournal, ConfigError, LinkClosed
from agent.recording.journal import FINISHED
from agent.training.exchange import TrainingExchange
from host.files import sync_folder
from host.logs import set_up_logging
from policy.batches import load_frames, read_info, split_episodes
from policy.errors import NoEpisodes

log = logging.getLogger(__name__)

INGESTED_FOLDER = "ingested"
BATCH_EPISODES = 16  # a kill loses at most the work on so many; closing a dataset costs 0.5 s
LOOK_EVERY_S = 0.5
RETRY_AFTER_S = 10.0
_CACHE = ".cache"


class Ingest:
    """One robot's journals and dataset. One process at a time may use it."""

    def __init__(self, config: AgentConfig) -> None:
        self._journals = config.journal_dir
        self._held_out_every = config.training.held_out_every
        self._versions = DatasetVersions(config.dataset_dir)
        self._exchange = TrainingExchange(config.training_dir)
        self.refused: dict[str, str] = {}  # journal's file name -> why it cannot be taken

    def recover(self) -> None:
        """Finish what an earlier process was killed in: clear staging, move, sketch."""
        self._versions.sweep()
        self._put_away()
        self.publish_sketch()

    def waiting(self) -> list[Path]:
        """Finished journals that are not in the dataset, oldest first."""
        known = {entry.episode_id for entry in self._versions.ledger()}
        return [
            path
            for path in sorted(self._journals.glob(f"*{FINISHED}"))
            if path.name not in self.refused and path.name.removesuffix(FINISHED) not in known
        ]

    def take(self, paths: list[Path]) -> list[str]:
        """Add journals to the dataset; returns the ids of the episodes that were added.

        A journal that cannot be taken is noted in ``refused`` and left where it is. Raises
        IngestFailed or OSError when the dataset could not be written; nothing has changed then.
        """
        # Imported here: it loads torch and the video libraries, which an idle ingest does without.
        from agent.dataset.writer import append_episodes, open_journal

        journals = []
        for path in paths:
            try:
                journals.append(open_journal(path))
            except (BadJournal, EpisodeRefused) as error:
                self.refuse(path, str(error))
        while journals:
            staging = self._versions.stage()
            try:
                append_episodes(staging, journals)
            except (BadJournal, EpisodeRefused) as error:
                culprit = _named_in(str(error), [journal.path for journal in journals])
                self.refuse(culprit, str(error))
                journals = [journal for journal in journals if journal.path != culprit]
                continue
            added = [journal.entry() for journal in journals]
            self._versions.commit([*self._versions.ledger(), *added])
            self._put_away()
            self.publish_sketch()
            self._versions.sweep()
            return [entry.episode_id for entry in added]
        return []

    def refuse(self, path: Path, reason: str) -> None:
        """Pass a journal over until the next start; it stays where it is."""
        log.warning("episode refused, its journal is kept: %s", reason)
        self.refused[path.name] = reason

    def publish_sketch(self) -> None:
        """Statistics of the training episodes, for the fleet's normaliser; none without any."""
        root = self._versions.current
        if root is None:
            return
        frames = load_frames(root)
        training, _ = split_episodes(frames.episodes, self._held_out_every)
        names = vector_names(read_info(root)["features"])
        self._exchange.publish_sketch(sketch_frames(frames.select(training), names))

    def totals(self) -> dict[str, int]:
        """Episodes and frames in the dataset, and how many of the episodes are held out."""
        ledger = self._versions.ledger()
        _, held_out = split_episodes(range(len(ledger)), self._held_out_every)
        return {
            "episodes": len(ledger),
            "frames": sum(entry.frames for entry in ledger),
            "held_out_episodes": len(held_out),
        }

    def _put_away(self) -> None:
        """Move journals whose episodes stand in the dataset; only ever after it is on the disk."""
        aside = self._journals / INGESTED_FOLDER
        moved = False
        for entry in self._versions.ledger():
            path = self._journals / f"{entry.episode_id}{FINISHED}"
            if path.exists():
                aside.mkdir(exist_ok=True)
                path.rename(aside / path.name)
                moved = True
        if moved:
            sync_folder(aside)
            sync_folder(self._journals)


def run(
    ingest: Ingest, link: ChildLink, cache: Path, clock: Callable[[], float] = time.monotonic
) -> None:
    """Take journals as they appear, until the supervisor is gone (LinkClosed)."""
    ingest.recover()
    quiet_until_s = 0.0
    error_line = ""
    batch = BATCH_EPISODES
    while True:
        link.heartbeat()
        waiting = ingest.waiting()
        if waiting and clock() >= quiet_until_s:
            chosen, added = waiting[:batch], []
            try:
                added = ingest.take(chosen)
                batch, error_line = BATCH_EPISODES, ""
            except (IngestFailed, RuntimeError, ValueError) as error:
                # What LeRobot refuses together is tried one by one, to find the one that is bad.
                error_line = f"{type(error).__name__}: {error}"
                log.exception("ingest failed, the journals are kept")
                if len(chosen) == 1:
                    ingest.refuse(chosen[0], error_line)
                batch = 1
            except OSError as error:
                error_line = f"{type(error).__name__}: {error}"
                log.exception("ingest failed, the journals are kept")
                quiet_until_s = clock() + RETRY_AFTER_S
            shutil.rmtree(cache, ignore_errors=True)
            if added:
                link.send("event", name="ingested", episodes=added)
        link.send(
            "status",
            **ingest.totals(),
            waiting=len(waiting),
            refused=dict(ingest.refused),
            error=error_line or None,
        )
        if not waiting or clock() < quiet_until_s:
            _drain(link)


def _drain(link: ChildLink) -> None:
    """Wait a moment, reading what the supervisor says so that its line never fills up."""
    message = link.receive(LOOK_EVERY_S)
    while message is not None:
        message = link.receive(0.0)


def _named_in(line: str, paths: list[Path]) -> Path:
    """The journal that an error speaks of; the first one if it names none."""
    return next((path for path in paths if path.name in line), paths[0])


def main(argv: list[str]) -> int:
    """Entry of the process; returns its exit status."""
    parser = argparse.ArgumentParser(prog="agent.dataset.ingest")
    parser.add_argument("--config", required=True, type=Path)
    options = parser.parse_args(argv)
    set_up_logging()
    try:
        config = load_config(options.config)
        ingest = Ingest(config)
    except (ConfigError, IngestFailed) as error:
        log.error("%s", error)  # noqa: TRY400 - one line, the traceback says nothing to the reader
        return 2
    # LeRobot looks for a hub and keeps a cache in the home folder unless it is told otherwise.
    cache = config.dataset_dir.parent / f"{config.dataset_dir.name}s" / _CACHE
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_DATASETS_CACHE=str(cache))
    try:
        run(ingest, ChildLink.from_environment(), cache)
    except (LinkClosed, NoEpisodes) as error:
        log.info("ending: %s", error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
