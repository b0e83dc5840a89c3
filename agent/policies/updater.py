"""A release on its way to this robot: download, check, qualify, activate.

The notice gives the SHA-256 of the manifest, the manifest that of each file, so nothing is used
that was not announced. A download is filled in `<version>-<digest>.part` and renamed when whole;
an interrupted one is resumed where it stopped. What does not fit its digest is deleted and refused
for good: only a new notice brings a new attempt. The arm is not touched: the control process takes
the active policy at its next episode.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx

from agent.errors import AgentError
from agent.policies.errors import DownloadInterrupted, ReleaseRefused
from agent.policies.folder import (
    VerifiedFile,
    hash_file,
    is_verified,
    read_record,
    write_record,
)
from agent.policies.qualification import qualify
from agent.policies.store import PolicyStore
from host.files import stamp_of, sync_folder, write_durable
from host.threads import spawn
from protocol.bundle import Bundle
from protocol.errors import BadManifest
from protocol.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    FileEntry,
    ReleaseManifest,
    parse_manifest,
)
from protocol.messages import ReleaseNotice

log = logging.getLogger(__name__)

TIMEOUT_S = 20.0
CHUNK_BYTES = 256 * 1024
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


def https_client(bundle: Bundle) -> httpx.Client:
    """An HTTPS client with the robot's certificate. Raises DownloadInterrupted, OSError."""
    context = ssl.create_default_context(cafile=str(bundle.ca))
    context.load_cert_chain(bundle.certificate, bundle.key)
    return httpx.Client(
        base_url=f"https://{bundle.info.https.address}",
        verify=context,
        timeout=TIMEOUT_S,
        trust_env=False,
    )


def download(
    client: httpx.Client, notice: ReleaseNotice, folder: Path, stopping: threading.Event
) -> Path:
    """Fetch manifest and files of `notice` under `folder`; returns the whole release's folder.

    Raises ReleaseRefused (digest, version or manifest wrong; what was fetched is deleted) and
    DownloadInterrupted (server away, connection cut, `stopping` set; what was fetched stays).
    """
    name = f"{notice.version}-{notice.manifest_digest[:16]}"
    final = folder / name
    if final.is_dir():
        return final
    part = folder / f"{name}.part"
    part.mkdir(parents=True, exist_ok=True)
    manifest, content = _manifest(client, notice)
    verified = read_record(part)
    for file_name, entry in manifest.files.items():
        if not is_verified(part / file_name, entry, verified.get(file_name)):
            verified[file_name] = _file(client, notice.version, part / file_name, entry, stopping)
            write_record(part, verified)
    write_durable(part / MANIFEST_NAME, content)
    sync_folder(part)
    part.rename(final)
    sync_folder(folder)
    return final


def _manifest(client: httpx.Client, notice: ReleaseNotice) -> tuple[ReleaseManifest, bytes]:
    path = f"/v1/releases/{notice.version}/{MANIFEST_NAME}"
    content = bytearray()
    with _stream(client, path, 0) as reply:
        for chunk in reply.iter_raw(CHUNK_BYTES):
            content += chunk
            if len(content) > MAX_MANIFEST_BYTES:
                raise ReleaseRefused(
                    f"release {notice.version}: its manifest is over {MAX_MANIFEST_BYTES} bytes"
                )
    try:
        manifest = parse_manifest(bytes(content), notice.manifest_digest)
    except BadManifest as error:
        raise ReleaseRefused(f"release {notice.version}: {error}") from error
    if manifest.version != notice.version:
        raise ReleaseRefused(
            f"release {notice.version}: the manifest says version {manifest.version}"
        )
    return manifest, bytes(content)


def _file(
    client: httpx.Client, version: int, path: Path, entry: FileEntry, stopping: threading.Event
) -> VerifiedFile:
    """Fetch one file to `path`, from where an earlier attempt stopped, and hash it once."""
    have = path.stat().st_size if path.exists() else 0
    if have > entry.size:
        path.unlink()
        have = 0
    if path.exists() and have == entry.size:
        found = hash_file(path)
    else:
        found = _fetch(client, version, path, entry, have, stopping)
    if found.sha256 != entry.sha256 and have:
        # The first half came from an earlier attempt: once more, all of it, from one source.
        found = _fetch(client, version, path, entry, 0, stopping)
    if found.sha256 != entry.sha256:
        path.unlink()
        raise ReleaseRefused(
            f"release {version}: {path.name} does not have the SHA-256 {entry.sha256[:12]}… of its "
            "manifest; it was changed on the way or on the server"
        )
    return found


def _fetch(
    client: httpx.Client,
    version: int,
    path: Path,
    entry: FileEntry,
    have: int,
    stopping: threading.Event,
) -> VerifiedFile:
    """Hashed as it comes; one that was resumed is hashed from the disk when it is whole."""
    address = f"/v1/releases/{version}/{path.name}"
    digest = hashlib.sha256()
    with _stream(client, address, have) as reply:
        resumed = have > 0 and reply.status_code == httpx.codes.PARTIAL_CONTENT
        size = have if resumed else 0
        with path.open("ab" if resumed else "wb") as stream:
            for chunk in reply.iter_raw(CHUNK_BYTES):  # raw: ranges count encoded bytes
                size += len(chunk)
                if size > entry.size:
                    break  # longer than its manifest says; the digest refuses it
                stream.write(chunk)
                if not resumed:
                    digest.update(chunk)
                if stopping.is_set():
                    raise DownloadInterrupted("the agent is being stopped")
            stream.flush()
            os.fsync(stream.fileno())
            stamp = stamp_of(os.fstat(stream.fileno()))
    if size < entry.size:
        raise DownloadInterrupted(f"{address} ended after {size} of {entry.size} bytes")
    return hash_file(path) if resumed else VerifiedFile(stamp, digest.hexdigest())


@contextlib.contextmanager
def _stream(client: httpx.Client, path: str, start: int) -> Iterator[httpx.Response]:
    headers = {"Range": f"bytes={start}-"} if start else {}
    try:
        with client.stream("GET", path, headers=headers) as reply:
            if reply.status_code not in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
                raise DownloadInterrupted(
                    f"{client.base_url.copy_with(path=path)} answers {reply.status_code}"
                )
            yield reply
    except httpx.HTTPError as error:
        raise DownloadInterrupted(_explain(client, error)) from error


def _explain(client: httpx.Client, error: httpx.HTTPError) -> str:
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return (
            f"{client.base_url} shows a certificate that the bundle's ca.pem does not vouch for; "
            "enrol this robot with that coordinator"
        )
    return f"{client.base_url} cannot be read: {text or type(error).__name__}; trying again"


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
                folder = download(client, notice, self._folder, self._stopping)
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
        detail = f"golden error {error_units or 0.0:.3g}, chunk p99 {latency_ms or 0.0:.1f} ms"
        log.info("release %d is active: %s", notice.version, detail)
        return ReleaseOutcome(notice, True, detail)

    def _clear_downloads(self) -> None:
        """Delete what is left of this and of earlier downloads."""
        for path in self._folder.iterdir():
            shutil.rmtree(path)
