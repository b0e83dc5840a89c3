"""Releases over a real HTTPS server with client certificates, on loopback."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.policies.download import Traffic, download, https_client
from agent.policies.store import PolicyStore
from host.files import write_durable
from policy.kinds.act import ActSpec
from policy.release.layout import entry_of
from policy.release.manifest import GoldenFiles, ReleaseManifest
from protocol.bundle import Bundle, load_bundle
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

    def publish(self, version: int, **tensors: bytes) -> ReleaseNotice:
        """The next notice is of a release of `ONNX`, with two goldens that are none.

        `tensors` lie in files that are named by their content.
        """
        files = {"policy.onnx": ONNX, "golden-seen": b"seen", "golden-done": b"done"}
        files |= {f"{entry_of(each).sha256}.bin": each for each in tensors.values()}
        manifest = ReleaseManifest(
            version=version, round=version, base_digest="ab" * 32, spec=SPEC.to_json(),
            normalizer={},
            files={name: entry_of(content) for name, content in files.items()},
            golden=GoldenFiles(observations="golden-seen", actions="golden-done"),
            tolerance=0.1, evaluation={}, contributors=(), created_unix_s=1.0,
        )  # fmt: skip
        self.server.files = files | {"manifest.json": manifest.canonical_bytes()}
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
            self.traffic = Traffic()
            return download(
                client,
                self.notice,
                self.downloads,
                threading.Event(),
                self.store.installed(),
                self.traffic,
            )

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
