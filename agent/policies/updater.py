"""A release on its way to this robot: download, check, qualify, install, hand over to its trial.

What becomes of a release is in the store's book, written before each step, so that a process that
was killed goes on where it was. A refusal for its content is for good. What came damaged is fetched
again, what met a busy host is tried again when the robot is idle, each after a pause that doubles.
The arm is not touched: the control process takes the policy at its next episode.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.config import TrialConfig
from agent.policies.download import Traffic, download, https_client
from agent.policies.errors import (
    DownloadDamaged,
    DownloadInterrupted,
    PolicyDamaged,
    PolicyRefused,
    ReleaseRefused,
    StoreDamaged,
)
from agent.policies.qualification import Qualification, qualify
from agent.policies.release_book import OfferAnswer
from agent.policies.release_states import ReleaseEvent, ReleaseState
from agent.policies.store import PolicyStore
from host.threads import spawn
from policy.errors import BadPolicyFolder
from policy.release.folder import read_policy_folder
from protocol.bundle import Bundle
from protocol.messages import ReleaseNotice

log = logging.getLogger(__name__)

KEPT_VERSIONS = 3
LOOK_S = 5.0  # at what holds a release up: a pin, a robot in use

IN_USE = "the robot is in use"


@dataclass
class Pause:
    """Seconds before the next attempt, doubled each time."""

    first_s: float
    last_s: float
    next_s: float = 0.0

    def take(self) -> float:
        """The pause for now."""
        taken = self.next_s or self.first_s
        self.next_s = min(taken * 2, self.last_s)
        return taken


def away() -> Pause:
    """For a server that does not answer."""
    return Pause(1.0, 60.0)


def damaged() -> Pause:
    """For bytes without their digest: whole files go over the wire again."""
    return Pause(5.0, 3600.0)


def busy() -> Pause:
    """For a host that was too busy to judge the policy."""
    return Pause(5.0, 3600.0)


class PolicyUpdater:
    """Takes notices, the newest wins, and brings each to its end on its own thread."""

    def __init__(
        self,
        bundle: Bundle,
        store: PolicyStore,
        folder: Path,
        rules: TrialConfig,
        config_path: Path | None,
        wake: Callable[[], None],
    ) -> None:
        self._bundle = bundle
        self._store = store
        self._folder = folder
        self._rules = rules
        self._config_path = config_path
        self._wake = wake
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._stopping = threading.Event()
        self._idle = True
        self._wanted: ReleaseNotice | None = None
        self._hashed: set[str] = set()  # installed releases whose every byte was looked at
        self._pauses = {"away": away(), "damaged": damaged(), "busy": busy()}
        self.state = "idle"
        self.version: int | None = None
        self.error: str | None = None
        self.traffic = Traffic()

    def start(self) -> None:
        """Begin waiting for notices."""
        self._folder.mkdir(parents=True, exist_ok=True)
        spawn("releases", self._run, self._died)

    def stop(self) -> None:
        """Stop after the present chunk; a trial that runs is given up."""
        self._stopping.set()
        self._changed.set()

    def offer(self, notice: ReleaseNotice) -> None:
        """Fetch this release; one that is on its way and is not this one is given up."""
        with self._lock:
            if self._wanted is None or self._wanted.manifest_digest != notice.manifest_digest:
                self.traffic = Traffic()
            self._wanted = notice
        self._pauses = {"away": away(), "damaged": damaged(), "busy": busy()}
        self._changed.set()

    def set_idle(self, idle: bool) -> None:
        """Whether nobody wants the robot: releases are tried out then alone."""
        if idle != self._idle:
            self._idle = idle
            self._changed.set()

    def _died(self, line: str) -> None:
        self.state, self.error = "died", line
        self._wake()

    def _run(self) -> None:
        started = False
        while not self._stopping.is_set():
            with self._lock:
                notice = self._wanted
            if started and notice is None:
                self._changed.wait()
                self._changed.clear()
                continue
            self._changed.clear()
            try:
                if not started:
                    with self._store.change() as book:
                        book.started(ReleaseEvent.FETCHER_STARTED, "the process was started again")
                    started = True
                    continue
                assert notice is not None
                wait_s = self._bring(notice)
            except (StoreDamaged, OSError) as error:
                wait_s = self._held(str(error), "away")
            self._wake()
            if wait_s is not None:
                self._changed.wait(wait_s)
                continue
            with self._lock:
                if self._wanted is notice:
                    self._wanted = None

    def _bring(self, notice: ReleaseNotice) -> float | None:
        """One attempt; how long to wait for the next one, None when there is none to be.

        Raises StoreDamaged, OSError.
        """
        self.version = notice.version
        with self._store.change() as book:
            answer, why = book.offer(notice.manifest_digest, notice.version)
        match answer:
            case OfferAnswer.LEAVE:
                log.info("release %d is left: %s", notice.version, why)
                self.state, self.error = "left", why
                return None
            case OfferAnswer.HOLD:
                self.state, self.error = "held", why
                return LOOK_S
            case OfferAnswer.HERE if self._installed(notice):
                self.state, self.error = "installed", None
                return None
        try:
            if answer is OfferAnswer.TAKE:
                return self._take(notice)
            self._mend(notice)
            return None
        except (DownloadDamaged, PolicyDamaged) as error:
            self._clear_downloads()
            self._advance(notice, ReleaseEvent.DAMAGED, f"{error}; it is fetched again")
            return self._held(str(error), "damaged")
        except (DownloadInterrupted, OSError) as error:
            self._advance(notice, ReleaseEvent.INTERRUPTED, str(error))
            return self._held(str(error), "away")
        except (ReleaseRefused, PolicyRefused) as error:
            log.warning("release %d refused: %s", notice.version, error)
            self._clear_downloads()
            self._advance(notice, ReleaseEvent.BAD_CONTENT, str(error))
            self.error = str(error)
            return None

    def _take(self, notice: ReleaseNotice) -> float | None:
        """Raises ReleaseRefused, PolicyRefused, DownloadInterrupted, StoreDamaged, OSError."""
        self._advance(notice, ReleaseEvent.FETCH)
        here = self._installed(notice)
        folder = self._store.folder / str(notice.version) if here else self._download(notice)
        self._advance(notice, ReleaseEvent.FETCHED)
        if not self._idle:
            self._advance(notice, ReleaseEvent.BUSY, IN_USE)
            self.error = IN_USE
            return LOOK_S
        self._advance(notice, ReleaseEvent.QUALIFY)
        verdict = qualify(folder, self._config_path)
        reason = "; ".join(verdict.reasons) or "it did not qualify"
        if not verdict.ok and verdict.cause == "load":
            again = f"{reason}; tried again when the robot is idle"
            self._advance(notice, ReleaseEvent.TOO_BUSY, again)
            return self._held(again, "busy")
        if not verdict.ok:
            raise PolicyDamaged(reason) if verdict.cause == "damage" else ReleaseRefused(reason)
        if not here:
            self._store.install(folder, notice.version)
        detail = (
            f"{_detail(verdict)}, {self.traffic.fetched} bytes fetched, "
            f"{self.traffic.found} found here"
        )
        with self._store.change() as book:
            book.promote(notice.manifest_digest, self._rules, detail)
            state = book.releases[notice.manifest_digest].state
        self._hashed.add(notice.manifest_digest)
        self._store.prune(KEPT_VERSIONS)
        self._clear_downloads()
        log.info("release %d: %s, %s", notice.version, state.value, detail)
        self.state, self.error = state.value, None
        return None

    def _mend(self, notice: ReleaseNotice) -> None:
        """An installed release whose files are damaged: fetch it again; its state stays."""
        log.warning("release %d is damaged on this disk; it is fetched again", notice.version)
        self._store.install(self._download(notice), notice.version)
        self._clear_downloads()
        self.state, self.error = "installed", None

    def _download(self, notice: ReleaseNotice) -> Path:
        self.state = ReleaseState.DOWNLOADING.value
        with https_client(self._bundle) as client:
            return download(
                client,
                notice,
                self._folder,
                self._stopping,
                self._store.installed(),
                self.traffic,
            )

    def _installed(self, notice: ReleaseNotice) -> bool:
        """Whether the store has this very release whole; once a process, every byte is read."""
        digest = notice.manifest_digest
        try:
            folder = read_policy_folder(
                self._store.folder / str(notice.version), hash_all=digest not in self._hashed
            )
        except BadPolicyFolder:
            return False
        if folder.manifest.digest() != digest:
            return False
        self._hashed.add(digest)
        return True

    def _advance(self, notice: ReleaseNotice, event: ReleaseEvent, reason: str = "") -> None:
        with self._store.change() as book:
            state = book.advance(notice.manifest_digest, event, reason)
        if state is not None:
            self.state = state.value
        self._wake()

    def _held(self, line: str, pause: str) -> float:
        if line != self.error:
            log.warning("release %s: %s", self.version, line)
        self.error = line
        return self._pauses[pause].take()

    def _clear_downloads(self) -> None:
        """Delete what is left of this and of earlier downloads."""
        for path in self._folder.iterdir():
            shutil.rmtree(path)


def _detail(verdict: Qualification) -> str:
    error, latency_ms = verdict.max_abs_error or 0.0, verdict.latency_p99_ms or 0.0
    return f"golden error {error:.3g}, chunk p99 {latency_ms:.1f} ms"
