"""A release's files over HTTPS, each checked against the manifest that the notice names.

The notice gives the SHA-256 of the manifest, the manifest that of each file, so nothing is kept
that was not announced. A download is filled in `<version>-<digest>.part` and renamed when whole;
an interrupted one is resumed where it stopped. What does not fit its digest is deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx

from agent.policies.errors import DownloadInterrupted, ReleaseRefused
from host.files import stamp_of, sync_folder, write_durable
from policy.errors import BadManifest
from policy.release.folder import (
    VerifiedFile,
    hash_file,
    is_verified,
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

TIMEOUT_S = 20.0
CHUNK_BYTES = 256 * 1024


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
