"""Finished journals become episodes of a LeRobotDataset v3, while the robot is idle.

    python -m agent.dataset.ingest --config FILE

A journal is the truth until its episode stands in a verified dataset that is on the disk; then it
is moved to journal/ingested/. One that is damaged or does not fit is moved to journal/refused/ with
the reason in a text file beside it; moved back, it is tried again. None is ever deleted. The
process may be frozen or killed at any instant: a new dataset appears by one rename (see
``versions``), and its ledger says which journals are in it, so no episode is lost and none is taken
twice.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from agent.child.entry import run_as_child
from agent.child.link import ChildLink
from agent.config import AgentConfig
from agent.dataset.errors import IngestFailed
from agent.dataset.features import sketch_frames, vector_names
from agent.dataset.validation import DatasetShape, Journal, open_journal
from agent.dataset.versions import DatasetVersions
from agent.errors import BadJournal, BadLedger, LinkClosed, UnreadableJournal
from agent.recording.journal import FINISHED, move_aside
from agent.training.demonstrations import Demonstrations
from agent.training.exchange import TrainingExchange
from host.files import write_durable
from policy.batches import read_info
from policy.errors import NoEpisodes

log = logging.getLogger(__name__)

INGESTED_FOLDER = "ingested"
REFUSED_FOLDER = "refused"
BATCH_EPISODES = 16  # a kill loses at most the work on so many; closing a dataset costs 0.5 s
LOOK_EVERY_S = 0.5
SHOWN_REFUSALS = 20  # in the status; the folder has all
RETRY_AFTER_S = 10.0
_CACHE = ".cache"


class Ingest:
    """One robot's journals and dataset. One process at a time may use it."""

    def __init__(self, config: AgentConfig) -> None:
        self._journals = config.journal_dir
        self._demonstrations = Demonstrations.configured(config.training)
        self._versions = DatasetVersions(config.dataset_dir)
        self._exchange = TrainingExchange(config.training_dir)
        # Journal's file name -> why it cannot be taken; also those of earlier processes.
        self.refused = _reasons(self._journals / REFUSED_FOLDER)
        self._passed_over: set[str] = set()

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
            if path.name not in self._passed_over and path.name.removesuffix(FINISHED) not in known
        ]

    def take(self, paths: list[Path], alive: Callable[[], None] = lambda: None) -> list[str]:
        """Add journals to the dataset; returns the ids of the episodes that were added.

        A journal that cannot be taken is refused, at any stage, and the others are taken without
        it. Calls ``alive`` before each step of the work. Raises what goes wrong with the dataset.
        """
        journals = self._validated(paths, alive)
        while journals:
            # Imported here: it loads torch and the video libraries, which an idle ingest does
            # without.
            from agent.dataset.writer import append_episodes

            try:
                append_episodes(self._versions.stage(), journals, alive)
            except (BadJournal, UnreadableJournal) as error:
                self._refuse(error)
                journals = [journal for journal in journals if journal.path != error.path]
                continue
            added = [journal.entry() for journal in journals]
            self._versions.commit([*self._versions.ledger(), *added])
            self._put_away()
            self.publish_sketch()
            self._versions.sweep()
            return [entry.episode_id for entry in added]
        return []

    def pass_over(self, path: Path, reason: str) -> None:
        """Leave a journal where it is, untried until the next start: the fault may not be its."""
        log.warning("journal passed over until the next start: %s: %s", path.name, reason)
        self.refused[path.name] = reason
        self._passed_over.add(path.name)

    def _validated(self, paths: Sequence[Path], alive: Callable[[], None]) -> list[Journal]:
        """Those that are sound and fit the dataset, or the first of them when there is none yet."""
        root = self._versions.current
        shape = None if root is None else DatasetShape.of_info(read_info(root))
        journals = []
        for path in paths:
            alive()
            try:
                journal = open_journal(path, shape)
            except (BadJournal, UnreadableJournal) as error:
                self._refuse(error)
                continue
            self.refused.pop(path.name, None)  # it was mended and put back
            shape = shape or DatasetShape.of_episode(journal.meta)
            journals.append(journal)
        return journals

    def _refuse(self, error: BadJournal | UnreadableJournal) -> None:
        """Move a journal aside, the reason first; one that cannot be read may be whole: pass it."""
        if isinstance(error, UnreadableJournal):
            self.pass_over(error.path, str(error))
            return
        log.warning("journal refused, it is kept in %s: %s", REFUSED_FOLDER, error)
        aside = self._journals / REFUSED_FOLDER
        write_durable(_reason_file(aside / error.path.name), f"{error}\n".encode())
        move_aside([error.path], aside)
        self.refused[error.path.name] = str(error)

    def publish_sketch(self) -> None:
        """Statistics of the training episodes, for the fleet's normaliser; none without any."""
        root = self._versions.current
        if root is None:
            return
        names = vector_names(read_info(root)["features"])
        training, _ = self._demonstrations.split(root, self._versions.ledger(), tuple(names))
        if training.episodes:
            self._exchange.publish_sketch(sketch_frames(training, names))

    def totals(self) -> dict[str, int]:
        """Episodes and frames in the dataset, and how many of the episodes are held out."""
        ledger = self._versions.ledger()
        held_out = self._demonstrations.roles(ledger).held_out
        return {
            "episodes": len(ledger),
            "frames": sum(entry.frames for entry in ledger),
            "held_out_episodes": len(held_out),
        }

    def _put_away(self) -> None:
        """Move journals whose episodes stand in the dataset; only ever after it is on the disk."""
        paths = [self._journals / f"{e.episode_id}{FINISHED}" for e in self._versions.ledger()]
        move_aside([path for path in paths if path.exists()], self._journals / INGESTED_FOLDER)


def _reason_file(journal: Path) -> Path:
    return journal.with_suffix(".txt")


def _reasons(folder: Path) -> dict[str, str]:
    """Why each journal in the folder of refused ones is there."""
    reasons = {}
    for path in sorted(folder.glob(f"*{FINISHED}")):
        beside = _reason_file(path)
        reasons[path.name] = beside.read_text().strip() if beside.exists() else "no reason noted"
    return reasons


def run(
    ingest: Ingest, link: ChildLink, cache: Path, clock: Callable[[], float] = time.monotonic
) -> None:
    """Take journals as they appear, until the supervisor is gone (LinkClosed)."""
    ingest.recover()
    quiet_until_s = 0.0
    error_line = ""
    failures: Counter[str] = Counter()  # by journal: attempts that ended for no known reason
    while True:
        link.heartbeat()
        waiting = sorted(ingest.waiting(), key=lambda path: failures[path.name])
        if waiting and clock() >= quiet_until_s:
            # What failed together is tried one by one, after all others, to find the bad one.
            fresh = [path for path in waiting if not failures[path.name]]
            chosen, added = fresh[:BATCH_EPISODES] or waiting[:1], []
            try:
                added = ingest.take(chosen, link.heartbeat)
                error_line = ""
            except LinkClosed:
                raise
            except Exception as error:
                error_line = f"{type(error).__name__}: {error}"
                log.exception("ingest failed, the journals are kept")
                failures.update(path.name for path in chosen)
                if isinstance(error, OSError) and not isinstance(error, (IngestFailed, BadLedger)):
                    quiet_until_s = clock() + RETRY_AFTER_S  # the disk's fault, not a journal's
                elif len(chosen) == 1:
                    ingest.pass_over(chosen[0], error_line)
            shutil.rmtree(cache, ignore_errors=True)
            if added:
                link.send("event", name="ingested", episodes=added)
        refused = list(ingest.refused.items())
        link.send(
            "status",
            **ingest.totals(),
            waiting=len(waiting),
            refused=dict(refused[-SHOWN_REFUSALS:]),
            refused_episodes=len(refused),
            error=error_line or None,
        )
        if not waiting or clock() < quiet_until_s:
            _drain(link)


def _drain(link: ChildLink) -> None:
    """Wait a moment, reading what the supervisor says so that its line never fills up."""
    message = link.receive(LOOK_EVERY_S)
    while message is not None:
        message = link.receive(0.0)


def serve(config: AgentConfig, _path: Path, link: ChildLink) -> None:
    """Raises IngestFailed for a dataset folder that is not ours, LinkClosed."""
    ingest = Ingest(config)
    # LeRobot looks for a hub and keeps a cache in the home folder unless it is told otherwise.
    cache = config.dataset_dir.parent / f"{config.dataset_dir.name}s" / _CACHE
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_DATASETS_CACHE=str(cache))
    try:
        run(ingest, link, cache)
    except NoEpisodes as error:
        log.info("ending: %s", error)


if __name__ == "__main__":
    run_as_child(serve)
