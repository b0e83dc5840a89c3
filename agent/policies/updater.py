"""A release on its way to this robot: download, check, qualify, activate.

What does not fit its digest is refused for good: only a new notice brings a new attempt. The arm
is not touched: the control process takes the active policy at its next episode.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agent.errors import AgentError
from agent.policies.download import Traffic, download, https_client
from agent.policies.errors import DownloadInterrupted, ReleaseRefused
from agent.policies.qualification import qualify
from agent.policies.store import PolicyStore
from host.threads import spawn
from protocol.bundle import Bundle
from protocol.messages import ReleaseNotice

log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 1.0
LAST_BACKOFF_S = 60.0
KEPT_VERSIONS = 3

State = Literal["idle", "downloading", "qualifying", "active", "refused", "waiting"]


@dataclass(frozen=True)
class ReleaseOutcome:
    """How a notice ended."""

    notice: ReleaseNotice
    ok: bool
    detail: str


class PolicyUpdater:
    """Takes notices, the newest wins, and brings each to its end on its own thread."""

    def __init__(
        self,
        bundle: Bundle,
        store: PolicyStore,
        folder: Path,
        config_path: Path | None,
        wake: Callable[[], None],
    ) -> None:
        self._bundle = bundle
        self._store = store
        self._folder = folder
        self._config_path = config_path
        self._wake = wake
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._stopping = threading.Event()
        self._wanted: ReleaseNotice | None = None
        self._outcomes: list[ReleaseOutcome] = []
        self.state: State = "idle"
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
        self._changed.set()

    def take_outcomes(self) -> list[ReleaseOutcome]:
        """What ended since the last call."""
        with self._lock:
            outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def _died(self, line: str) -> None:
        self.state, self.error = "refused", line
        self._wake()

    def _run(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        while not self._stopping.is_set():
            with self._lock:
                notice = self._wanted
            if notice is None:
                self._changed.wait()
                self._changed.clear()
                continue
            try:
                outcome = self._bring(notice)
            except (DownloadInterrupted, OSError) as error:
                if str(error) != self.error:
                    log.warning("release %d: %s", notice.version, error)
                self.state, self.error = "waiting", str(error)
                self._wake()
                if self._changed.wait(backoff_s):
                    self._changed.clear()
                backoff_s = min(backoff_s * 2, LAST_BACKOFF_S)
                continue
            backoff_s = FIRST_BACKOFF_S
            with self._lock:
                self._outcomes.append(outcome)
                if self._wanted is notice:
                    self._wanted = None
            self.state = "active" if outcome.ok else "refused"
            self.error = None if outcome.ok else outcome.detail
            self._wake()

    def _bring(self, notice: ReleaseNotice) -> ReleaseOutcome:
        """Raises DownloadInterrupted and OSError; everything else is an outcome."""
        self.state, self.version = "downloading", notice.version
        try:
            with https_client(self._bundle) as client:
                folder = download(
                    client,
                    notice,
                    self._folder,
                    self._stopping,
                    self._store.installed(),
                    self.traffic,
                )
            self.state = "qualifying"
            verdict = qualify(folder, self._config_path)
            if not verdict.ok:
                raise ReleaseRefused("; ".join(verdict.reasons) or "it did not qualify")
            self._store.install(folder, notice.version)
            self._store.activate(notice.version)
            self._store.prune(KEPT_VERSIONS)
        except AgentError as error:
            if isinstance(error, DownloadInterrupted):
                raise
            log.warning("release %d refused: %s", notice.version, error)
            self._clear_downloads()
            return ReleaseOutcome(notice, False, str(error))
        self._clear_downloads()
        error_units, latency_ms = verdict.max_abs_error, verdict.latency_p99_ms
        detail = (
            f"golden error {error_units or 0.0:.3g}, chunk p99 {latency_ms or 0.0:.1f} ms, "
            f"{self.traffic.fetched} bytes fetched, {self.traffic.found} found here"
        )
        log.info("release %d is active: %s", notice.version, detail)
        return ReleaseOutcome(notice, True, detail)

    def _clear_downloads(self) -> None:
        """Delete what is left of this and of earlier downloads."""
        for path in self._folder.iterdir():
            shutil.rmtree(path)
