"""Releases over a real HTTPS server with client certificates, on loopback.

The server's files are damaged, cut off and moved away as a bad network or a bad server would.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from counted_hashes import count_hashes
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tiny_policy import tiny_spec, write_config, write_policy

from agent.config import load_config
from agent.inference.process import PolicyServer
from agent.inference.wire import InferenceMessage
from agent.policies import updater
from agent.policies.compatibility import RobotSignature
from agent.policies.folder import read_record
from agent.policies.qualification import Qualification, examine
from agent.policies.store import PolicyStore
from agent.policies.updater import (
    DownloadInterrupted,
    PolicyUpdater,
    ReleaseRefused,
    download,
    https_client,
)
from host.files import write_durable
from policy.kinds.act import ActSpec
from policy.session import blank_observation
from protocol.bundle import Bundle, load_bundle
from protocol.manifest import FileEntry, Golden, ReleaseManifest
from protocol.messages import Envelope, ReleaseNotice

ONNX = bytes(range(256)) * 4096  # one megabyte: several chunks
LOOPBACK = ipaddress.ip_address("127.0.0.1")
SPEC = ActSpec(state_names=("a",), environment_names=("b",), action_names=("a",), fps=30)


class Server(ThreadingHTTPServer):
    """Serves `files`; `cut` is how many bytes of a file go out before the connection is cut."""

    daemon_threads = True

    def __init__(self, context: ssl.SSLContext) -> None:
        self.files: dict[str, bytes] = {}
        self.cut: dict[str, int] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.ranges = True
        self.context = context
        super().__init__(("127.0.0.1", 0), Handler)

    def get_request(self) -> tuple[Any, Any]:
        connection, address = super().get_request()
        # The handshake is done where the request is read, not in the accepting thread.
        tls = self.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return tls, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Refused handshakes and cut connections are what these tests are about."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1]
        wanted = self.headers.get("Range")
        self.server.requests.append((name, wanted))
        content = self.server.files.get(name)
        if content is None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        if wanted and self.server.ranges:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        cut = self.server.cut.pop(name, None)
        self.wfile.write(content[start : None if cut is None else start + cut])
        if cut is not None:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


class Site:
    """A server with a release, and a robot's bundle for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_bundle(folder)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.pem", folder / "server.key")
        context.load_verify_locations(folder / "ca.pem")
        context.verify_mode = ssl.CERT_REQUIRED
        self.server = Server(context)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        info = json.loads((folder / "bundle.json").read_text())
        info["https"]["port"] = self.server.server_address[1]
        (folder / "bundle.json").write_text(json.dumps(info))
        self.bundle: Bundle = load_bundle(folder)
        self.store = PolicyStore(folder / "policies")
        self.downloads = folder / "downloads"
        self.downloads.mkdir()
        self.publish(1)

    def publish(self, version: int) -> ReleaseNotice:
        manifest = ReleaseManifest(
            version=version, round=version, base_digest="ab" * 32, spec=SPEC.to_json(),
            normalizer={},
            files={
                "policy.onnx": FileEntry(sha256=hashlib.sha256(ONNX).hexdigest(), size=len(ONNX))
            },
            golden=(Golden(observation={"observation.state": [0.0]}, action=[[0.0]]),),
            tolerance=0.1, evaluation={}, contributors=(), created_unix_s=1.0,
        )  # fmt: skip
        self.server.files = {"policy.onnx": ONNX, "manifest.json": manifest.canonical_bytes()}
        self.notice = notice(version, manifest.digest())
        return self.notice

    def serve(self, folder: Path) -> ReleaseNotice:
        """A policy's folder as it is."""
        self.server.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        digest = hashlib.sha256(self.server.files["manifest.json"]).hexdigest()
        self.notice = notice(1, digest)
        return self.notice

    def fetch(self) -> Path:
        with https_client(self.bundle) as client:
            return download(client, self.notice, self.downloads, threading.Event())

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)


def notice(version: int, digest: str) -> ReleaseNotice:
    return ReleaseNotice(
        envelope=Envelope(session="0" * 32, sequence=1, issued_unix_s=1.0, expires_unix_s=None),
        version=version,
        round=1,
        manifest_digest=digest,
    )


def make_bundle(folder: Path) -> None:
    """An authority, a server's certificate and a robot's bundle, without the coordinator's code."""
    now = datetime.datetime.now(datetime.UTC)
    ca_key = ec.generate_private_key(ec.SECP384R1())

    def certificate(name: str, key: ec.EllipticCurvePrivateKey, *, ca: bool = False) -> bytes:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), False
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(
                x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(LOOPBACK)]),
                critical=False,
            )
        )
        if ca:
            usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
            builder = builder.add_extension(usage, critical=True)
        return builder.sign(ca_key, hashes.SHA384()).public_bytes(serialization.Encoding.PEM)

    def private(key: ec.EllipticCurvePrivateKey) -> bytes:
        return key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    server, robot = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    files = {
        "ca.pem": certificate("test authority", ca_key, ca=True),
        "server.pem": certificate("server", server),
        "server.key": private(server),
        "cert.pem": certificate("arm-1", robot),
        "key.pem": private(robot),
        "supernode_key": b"-",
        "supernode_key.pub": b"-",
    }
    here = {"host": "127.0.0.1", "port": 9}
    info = {"agent_id": "arm-1", "fleet": "f", "mqtt": here, "superlink": here, "https": here}
    files["bundle.json"] = json.dumps(info).encode()
    for name, content in files.items():
        write_durable(folder / name, content)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


def test_a_release_arrives_whole(site: Site) -> None:
    folder = site.fetch()
    assert (folder / "policy.onnx").read_bytes() == ONNX
    assert hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest() == (
        site.notice.manifest_digest
    )


def test_a_manifest_with_another_digest_is_refused_before_anything_else_is_fetched(
    site: Site,
) -> None:
    site.server.files["manifest.json"] += b" "
    with pytest.raises(ReleaseRefused, match="changed on the way or on the server"):
        site.fetch()
    assert [name for name, _ in site.server.requests] == ["manifest.json"]


def test_a_file_with_another_digest_is_refused_and_deleted(site: Site) -> None:
    site.server.files["policy.onnx"] = b"\xff" + ONNX[1:]
    with pytest.raises(ReleaseRefused, match=r"policy\.onnx does not have the SHA-256"):
        site.fetch()
    assert not list(site.downloads.glob("**/policy.onnx"))
    assert not [path for path in site.downloads.iterdir() if path.suffix != ".part"]


def test_a_file_longer_than_its_manifest_says_does_not_fill_the_disk(site: Site) -> None:
    site.server.files["policy.onnx"] = b"\1" * (20 * len(ONNX))
    sizes: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: sizes.append(os.fstat(file).st_size))
        with pytest.raises(ReleaseRefused):
            site.fetch()
    assert len(ONNX) - updater.CHUNK_BYTES <= max(sizes) <= len(ONNX)


def test_an_interrupted_download_is_resumed_where_it_stopped(site: Site) -> None:
    site.server.cut["policy.onnx"] = 300_000
    with pytest.raises(DownloadInterrupted):
        site.fetch()
    (part,) = site.downloads.iterdir()
    assert part.suffix == ".part"
    have = (part / "policy.onnx").stat().st_size
    assert 0 < have <= 300_000
    assert (site.fetch() / "policy.onnx").read_bytes() == ONNX
    assert site.server.requests[-1] == ("policy.onnx", f"bytes={have}-")


def test_a_resumed_file_is_hashed_once_over_the_whole(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.server.cut["policy.onnx"] = 300_000
    with pytest.raises(DownloadInterrupted):
        site.fetch()
    sizes = count_hashes(monkeypatch)
    folder = site.fetch()
    assert sizes == [len(ONNX)]
    assert list(read_record(folder)) == ["policy.onnx"]


def test_a_file_that_came_whole_is_neither_fetched_nor_hashed_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.serve(write_policy(site.folder / "made", notes=b"two files"))
    late = site.server.files.pop("policy.onnx")
    with pytest.raises(DownloadInterrupted):
        site.fetch()
    site.server.files["policy.onnx"] = late
    sizes = count_hashes(monkeypatch)
    site.server.requests.clear()
    folder = site.fetch()
    assert [name for name, _ in site.server.requests] == ["manifest.json", "policy.onnx"]
    assert sizes == [len(late)]
    assert list(read_record(folder)) == ["notes.txt", "policy.onnx"]


def test_a_server_without_ranges_makes_it_begin_again(site: Site) -> None:
    site.server.cut["policy.onnx"] = 300_000
    with pytest.raises(DownloadInterrupted):
        site.fetch()
    site.server.ranges = False
    assert (site.fetch() / "policy.onnx").read_bytes() == ONNX


def test_a_beginning_that_was_damaged_on_the_disk_is_fetched_again(site: Site) -> None:
    site.server.cut["policy.onnx"] = 300_000
    with pytest.raises(DownloadInterrupted):
        site.fetch()
    (path,) = site.downloads.glob("*.part/policy.onnx")
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert (site.fetch() / "policy.onnx").read_bytes() == ONNX


def test_a_missing_file_is_an_interruption_with_its_address(site: Site) -> None:
    del site.server.files["policy.onnx"]
    with pytest.raises(DownloadInterrupted, match=r"/v1/releases/1/policy\.onnx answers 404"):
        site.fetch()


def test_a_server_of_another_authority_is_one_clear_line(site: Site, tmp_path: Path) -> None:
    other = tmp_path / "other"
    make_bundle(other)
    (site.folder / "ca.pem").write_bytes((other / "ca.pem").read_bytes())
    with pytest.raises(DownloadInterrupted, match="does not vouch for; enrol this robot"):
        site.fetch()


def test_a_client_of_another_authority_gets_nothing(site: Site, tmp_path: Path) -> None:
    other = tmp_path / "other"
    make_bundle(other)
    for name in ("cert.pem", "key.pem"):
        (site.folder / name).write_bytes((other / name).read_bytes())
    with pytest.raises(DownloadInterrupted):
        site.fetch()
    assert not site.server.requests


def verdict(ok: bool) -> Callable[[Path, Path | None], Qualification]:
    reasons = () if ok else ("golden actions differ",)
    return lambda folder, config: Qualification(ok, 1, 0.0, 1.0, reasons)


class Watched:
    """A worker, and what it came to."""

    def __init__(self, site: Site) -> None:
        self.worker = PolicyUpdater(site.bundle, site.store, site.downloads, None, lambda: None)
        self.worker.start()

    def end(self, timeout_s: float = 20.0):
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            outcomes = self.worker.take_outcomes()
            if outcomes:
                return outcomes[0]
            time.sleep(0.02)
        raise AssertionError(f"no outcome: {self.worker.state} {self.worker.error}")


@pytest.fixture
def watched(site: Site) -> Iterator[Watched]:
    made = Watched(site)
    yield made
    made.worker.stop()


def test_a_release_that_qualifies_becomes_the_active_policy(
    site: Site, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updater, "qualify", verdict(True))
    watched.worker.offer(site.notice)
    assert watched.end().ok
    assert site.store.active() == "1"
    assert not list(site.downloads.iterdir())


def test_from_download_to_first_inference_each_file_is_hashed_once(
    site: Site, watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = write_policy(tmp_path / "made", notes=b"a second file of the release")
    site.serve(made)
    robot = RobotSignature.of(load_config(write_config(tmp_path)))
    # The trial runs here, not in its child, so that its hashes are counted.
    monkeypatch.setattr(updater, "qualify", lambda folder, config: examine(folder, robot))
    sizes = count_hashes(monkeypatch)
    watched.worker.offer(site.notice)
    assert watched.end().ok
    server = PolicyServer(robot, 1)
    load = InferenceMessage(
        {"kind": "load", "command": 1, "dir": str(site.store.resolve("active"))}
    )
    ((loaded, _),) = server.answer([load])
    asked = {"kind": "infer", "id": 1, "digest": loaded["digest"]}
    ((reply, arrays),) = server.answer([InferenceMessage(asked, blank_observation(tiny_spec()))])
    assert reply["kind"] == "chunk" and arrays["action"].shape == (20, 6)
    assert sizes == [(made / name).stat().st_size for name in ("notes.txt", "policy.onnx")]


def test_a_release_with_a_wrong_digest_never_becomes_active(
    site: Site, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updater, "qualify", verdict(True))
    watched.worker.offer(site.notice)
    assert watched.end().ok
    site.publish(2)
    site.server.files["policy.onnx"] = ONNX[:-1] + b"\0"
    watched.worker.offer(site.notice)
    outcome = watched.end()
    assert not outcome.ok and "SHA-256" in outcome.detail
    assert site.store.active() == "1" and site.store.versions() == [1]
    assert watched.worker.state == "refused"


def test_a_release_that_fails_its_trial_never_becomes_active(
    site: Site, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updater, "qualify", verdict(False))
    watched.worker.offer(site.notice)
    outcome = watched.end()
    assert not outcome.ok and outcome.detail == "golden actions differ"
    assert site.store.active() is None and site.store.versions() == []


def test_a_real_trial_refuses_what_is_no_policy(site: Site, watched: Watched) -> None:
    watched.worker.offer(site.notice)
    outcome = watched.end(60.0)
    assert not outcome.ok
    assert site.store.active() is None


def test_a_server_that_is_away_is_waited_for(
    site: Site, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updater, "qualify", verdict(True))
    monkeypatch.setattr(updater, "FIRST_BACKOFF_S", 0.05)
    files, site.server.files = site.server.files, {}
    watched.worker.offer(site.notice)
    deadline = time.monotonic() + 10
    while watched.worker.state != "waiting" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "404" in (watched.worker.error or "")
    site.server.files = files
    assert watched.end().ok
    assert watched.worker.error is None


def test_a_newer_notice_replaces_one_that_cannot_be_had(
    site: Site, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updater, "qualify", verdict(True))
    watched.worker.offer(notice(7, "ee" * 32))
    assert "SHA-256" in watched.end().detail
    watched.worker.offer(site.publish(8))
    assert watched.end().ok
    assert site.store.active() == "8"


def test_nobody_listens_is_an_interruption(site: Site) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    info = json.loads((site.folder / "bundle.json").read_text())
    info["https"]["port"] = port
    (site.folder / "bundle.json").write_text(json.dumps(info))
    site.bundle = load_bundle(site.folder)
    with pytest.raises(DownloadInterrupted, match="cannot be read"):
        site.fetch()


def test_a_worker_that_dies_says_so_in_its_error(
    site: Site, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr(updater, "qualify", bug)
    watched.worker.offer(site.notice)
    deadline = time.monotonic() + 10.0
    while watched.worker.state != "refused":
        assert time.monotonic() < deadline, watched.worker.state
        time.sleep(0.02)
    assert watched.worker.error == "thread releases died: TypeError: a bug"
