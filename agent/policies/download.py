"""A release's files over HTTPS, each checked against the manifest that the notice names.

The notice gives the SHA-256 of the manifest, the manifest that of each file, so nothing is kept
that was not announced. A download is filled in `<version>-<digest>.part` and renamed when whole;
an interrupted one is resumed where it stopped. What does not fit its digest is deleted. A file
whose content lies here already, in an installed version or in another download, is linked and not
fetched; it is hashed like any other, so damage on this disk does not spread.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import ssl
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from agent.policies.errors import DownloadDamaged, DownloadInterrupted, ReleaseRefused
from host.files import stamp_of, sync_file, sync_folder, write_durable
from policy.errors import BadManifest, BadPolicyFolder, WrongManifest
from policy.release.folder import (
    VerifiedFile,
    hash_file,
    is_verified,
    read_manifest,
    read_record,
    write_record,
)
from policy.release.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    FileEntry,
    ReleaseManifest,
    parse_manifest,
)
from protocol.bundle import Bundle
from protocol.messages import ReleaseNotice

log = logging.getLogger(__name__)

TIMEOUT_S = 20.0
CHUNK_BYTES = 256 * 1024


@dataclass
class Traffic:
    """Bytes of one release, over all attempts: fetched from the server, and found on this disk."""

    fetched: int = 0
    found: int = 0


@dataclass(frozen=True)
class _Source:
    """Where the files of one release come from, and what ends or counts their coming."""

    client: httpx.Client
    version: int
    stopping: threading.Event
    traffic: Traffic


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
    client: httpx.Client,
    notice: ReleaseNotice,
    folder: Path,
    stopping: threading.Event,
    installed: Iterable[Path] = (),
    traffic: Traffic | None = None,
) -> Path:
    """Fetch manifest and files of `notice` under `folder`; returns the whole release's folder.

    `installed`: folders, on the same file system if may be, in which files of it may lie already.
    Raises DownloadDamaged (a digest is wrong; that file is deleted), ReleaseRefused (the manifest
    that was announced is no manifest, or of another version) and DownloadInterrupted (server away,
    connection cut, `stopping` set; what was fetched stays).
    """
    traffic = traffic or Traffic()
    source = _Source(client, notice.version, stopping, traffic)
    name = f"{notice.version}-{notice.manifest_digest[:16]}"
    final = folder / name
    if final.is_dir():
        return final
    part = folder / f"{name}.part"
    part.mkdir(parents=True, exist_ok=True)
    manifest, content = _manifest(source, notice.manifest_digest)
    others = [path for path in folder.iterdir() if path != part]
    here = _contents([*installed, *others])
    verified = read_record(part)
    for file_name, entry in manifest.files.items():
        path = part / file_name
        if is_verified(path, entry, verified.get(file_name)):
            continue
        verified[file_name] = _found(path, entry, here, traffic) or _file(source, path, entry)
        write_record(part, verified)
    write_durable(part / MANIFEST_NAME, content)
    sync_folder(part)
    part.rename(final)
    sync_folder(folder)
    return final


def _contents(folders: Iterable[Path]) -> dict[str, Path]:
    """SHA-256 -> a file that is said to have it, by the folder's manifest or by its record."""
    found: dict[str, Path] = {}
    for folder in folders:
        for name, verified in read_record(folder).items():
            found.setdefault(verified.sha256, folder / name)
        with contextlib.suppress(BadPolicyFolder):  # a part has no manifest yet
            for name, entry in read_manifest(folder)[0].files.items():
                found.setdefault(entry.sha256, folder / name)
    return found


def _found(
    path: Path, entry: FileEntry, here: Mapping[str, Path], traffic: Traffic
) -> VerifiedFile | None:
    """The file as a link to (or a copy of) the one that is here; None: it must be fetched."""
    source = here.get(entry.sha256)
    if source is None:
        return None
    try:
        if source.stat().st_size != entry.size:
            return None
        path.unlink(missing_ok=True)
        try:
            os.link(source, path)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, path)
            sync_file(path)
        found = hash_file(path)
    except OSError as error:
        log.warning("%s cannot be taken over (%s); it is fetched", source, error.strerror)
        return None
    if found.sha256 != entry.sha256:
        log.warning("%s is damaged; what it should be is fetched", source)
        path.unlink()
        return None
    traffic.found += entry.size
    return found


def _manifest(source: _Source, digest: str) -> tuple[ReleaseManifest, bytes]:
    version = source.version
    path = f"/v1/releases/{version}/{MANIFEST_NAME}"
    content = bytearray()
    with _stream(source.client, path, 0) as reply:
        for chunk in reply.iter_raw(CHUNK_BYTES):
            content += chunk
            source.traffic.fetched += len(chunk)
            if len(content) > MAX_MANIFEST_BYTES:
                raise ReleaseRefused(
                    f"release {version}: its manifest is over {MAX_MANIFEST_BYTES} bytes"
                )
    try:
        manifest = parse_manifest(bytes(content), digest)
    except WrongManifest as error:
        raise DownloadDamaged(f"release {version}: {error}") from error
    except BadManifest as error:
        raise ReleaseRefused(f"release {version}: {error}") from error
    if manifest.version != version:
        raise ReleaseRefused(f"release {version}: the manifest says version {manifest.version}")
    return manifest, bytes(content)


def _file(source: _Source, path: Path, entry: FileEntry) -> VerifiedFile:
    """Fetch one file to `path`, from where an earlier attempt stopped, and hash it once."""
    if path.exists() and (path.stat().st_size > entry.size or path.stat().st_nlink > 1):
        path.unlink()  # a link is another version's file too: never written to
    have = path.stat().st_size if path.exists() else 0
    if path.exists() and have == entry.size:
        found = hash_file(path)
    else:
        found = _fetch(source, path, entry, have)
    if found.sha256 != entry.sha256 and have:
        # The first half came from an earlier attempt: once more, all of it, from one source.
        found = _fetch(source, path, entry, 0)
    if found.sha256 != entry.sha256:
        path.unlink()
        raise DownloadDamaged(
            f"release {source.version}: {path.name} does not have the SHA-256 "
            f"{entry.sha256[:12]}… of its manifest; it was changed on the way or on the server"
        )
    return found


def _fetch(source: _Source, path: Path, entry: FileEntry, have: int) -> VerifiedFile:
    """Hashed as it comes; one that was resumed is hashed from the disk when it is whole."""
    address = f"/v1/releases/{source.version}/{path.name}"
    digest = hashlib.sha256()
    with _stream(source.client, address, have) as reply:
        resumed = have > 0 and reply.status_code == httpx.codes.PARTIAL_CONTENT
        size = have if resumed else 0
        with path.open("ab" if resumed else "wb") as stream:
            for chunk in reply.iter_raw(CHUNK_BYTES):  # raw: ranges count encoded bytes
                size += len(chunk)
                source.traffic.fetched += len(chunk)
                if size > entry.size:
                    break  # longer than its manifest says; the digest refuses it
                stream.write(chunk)
                if not resumed:
                    digest.update(chunk)
                if source.stopping.is_set():
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
