"""Where everything lies under the coordinator's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

REGISTRY_NAME = "agents.json"


@dataclass(frozen=True)
class Layout:
    """Paths below `root`."""

    root: Path

    @property
    def ca_certificate(self) -> Path:
        return self.root / "ca" / "ca.pem"

    @property
    def ca_key(self) -> Path:
        return self.root / "ca" / "ca.key"

    @property
    def server_certificate(self) -> Path:
        return self.root / "server" / "cert.pem"

    @property
    def server_key(self) -> Path:
        return self.root / "server" / "key.pem"

    @property
    def identity_certificate(self) -> Path:
        return self.root / "identity" / "cert.pem"

    @property
    def identity_key(self) -> Path:
        return self.root / "identity" / "key.pem"

    @property
    def registry(self) -> Path:
        return self.root / REGISTRY_NAME

    @property
    def mosquitto(self) -> Path:
        return self.root / "mosquitto"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def releases(self) -> Path:
        return self.root / "releases"
