"""The HTTPS server: who is let in by which certificate, and to what."""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from coordinator.config import CoordinatorConfig, Ports
from coordinator.errors import CoordinatorError
from coordinator.identity.enrolment import Authority, create_identities, enrol
from coordinator.identity.layout import Layout
from coordinator.releases import ReleaseRepository
from coordinator.server.https import HttpsServer, make_app
from policy.release.manifest import FileEntry, GoldenFiles, ReleaseManifest

ONNX = b"policy" * 1000


class Site:
    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.layout = Layout(folder)
        folder.mkdir()
        config = CoordinatorConfig(ports=Ports(https=self.port))
        authority = Authority.create("armada", lambda: datetime.now(UTC))
        create_identities(self.layout, config, authority)
        enrol(self.layout, config, "arm-1", folder / "arm-1", authority, time.time())
        self.repository = ReleaseRepository(self.layout.releases)
        self.commands: list[tuple[str, str]] = []
        app = make_app(self.repository, lambda: b'{"round": 3}', self.command)
        self.server = HttpsServer(self.layout, "127.0.0.1", self.port, app, pytest.fail)

    def command(self, agent_id: str, word: str) -> str | None:
        self.commands.append((agent_id, word))
        return None if agent_id == "arm-1" else f"no robot {agent_id!r} is enrolled"

    def publish(self, version: int) -> None:
        part = self.repository.begin(version)
        (part / "policy.onnx").write_bytes(ONNX)
        (part / "secret.txt").write_bytes(b"not in the manifest")
        manifest = ReleaseManifest(
            version=version, round=1, base_digest="ab" * 32, spec={}, normalizer={},
            files={"policy.onnx": FileEntry(sha256=sha256(ONNX).hexdigest(), size=len(ONNX))},
            golden=GoldenFiles(observations="seen", actions="done"), tolerance=0.1,
            evaluation={}, contributors=(), created_unix_s=1.0,
        )  # fmt: skip
        (part / "manifest.json").write_bytes(manifest.canonical_bytes())
        self.repository.publish(part, version)

    def client(self, who: str | None) -> httpx.Client:
        context = ssl.create_default_context(cafile=str(self.layout.ca_certificate))
        folder = {"coordinator": self.layout.root / "identity"}.get(
            str(who), self.layout.root / str(who)
        )
        if who is not None:
            context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        return httpx.Client(
            base_url=f"https://127.0.0.1:{self.port}", verify=context, trust_env=False
        )


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "c")
    made.publish(1)
    made.server.start()
    yield made
    made.server.stop()


def test_a_robot_reads_releases_and_nobodys_status(site: Site) -> None:
    with site.client("arm-1") as client:
        assert client.get("/v1/releases/1/policy.onnx").content == ONNX
        assert client.get("/v1/releases/1/manifest.json").json()["version"] == 1
        refused = client.get("/v1/status")
        assert refused.status_code == 403 and "coordinator's own" in refused.json()["error"]
        assert client.post("/v1/agents/arm-1/command", json={"command": "pause"}).status_code == 403
    assert not site.commands


def test_the_coordinators_own_certificate_reads_the_status_and_commands(site: Site) -> None:
    with site.client("coordinator") as client:
        assert client.get("/v1/status").json() == {"round": 3}
        taken = client.post("/v1/agents/arm-1/command", json={"command": "pause"})
        assert taken.json() == {"ok": True}
        wrong = client.post("/v1/agents/arm-1/command", json={"command": "move"})
        assert wrong.status_code == 400 and "command" in wrong.json()["error"]
        refused = client.post("/v1/agents/arm-9/command", json={"command": "pause"})
        assert refused.status_code == 409 and "arm-9" in refused.json()["error"]
        assert client.post("/v1/agents/arm-1/command", content="x" * 5000).status_code == 413


def test_without_a_certificate_there_is_no_connection(site: Site) -> None:
    with site.client(None) as client, pytest.raises(httpx.HTTPError):
        client.get("/v1/releases/1/manifest.json")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/releases/1/secret.txt",
        "/v1/releases/2/policy.onnx",
        "/v1/releases/1/..%2f..%2fca%2fca.key",
        "/v1/releases/1/%2e%2e",
        "/v1/releases/x/policy.onnx",
        "/v1/releases/.part-2/policy.onnx",
    ],
)
def test_nothing_but_what_a_manifest_names_is_served(site: Site, path: str) -> None:
    (site.repository.begin(2) / "policy.onnx").write_bytes(b"half")
    with site.client("arm-1") as client:
        assert client.get(path).status_code == 404


def test_a_range_is_served(site: Site) -> None:
    with site.client("arm-1") as client:
        reply = client.get("/v1/releases/1/policy.onnx", headers={"Range": "bytes=100-"})
    assert reply.status_code == 206 and reply.content == ONNX[100:]


def test_a_port_that_is_taken_is_one_clear_line(site: Site) -> None:
    app = make_app(site.repository, lambda: b"{}", site.command)
    with pytest.raises(CoordinatorError, match=r"HTTPS port 127\.0\.0\.1.*change ports\.https"):
        HttpsServer(site.layout, "127.0.0.1", site.port, app, pytest.fail).start()


def test_what_a_killed_coordinator_left_half_done_is_swept_and_what_was_announced_stays(
    tmp_path: Path,
) -> None:
    repository = ReleaseRepository(tmp_path / "releases")
    for version in (1, 2):
        part = repository.begin(version)
        (part / "manifest.json").write_text(json.dumps({}))
        repository.publish(part, version)
    repository.begin(3)
    repository.sweep(frozenset({1}))
    assert [path.name for path in repository.folder.iterdir()] == ["1"]
