"""The enrolment bundle: all that a robot needs to meet its coordinator.

A folder of `ca.pem`, `cert.pem` and `key.pem` (one P-384 key; certificate CN = robot id: MQTT and
HTTPS client), `supernode_key` and `supernode_key.pub` (the same key in OpenSSH form, for Flower's
SuperNode) and `bundle.json` (identity, fleet, addresses).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from host.complaints import first_complaint
from protocol.errors import BadBundle
from protocol.topics import IDENTITY_PATTERN

BUNDLE_NAME = "bundle.json"
BUNDLE_FILES = (
    "ca.pem", "cert.pem", "key.pem", "supernode_key", "supernode_key.pub", BUNDLE_NAME,
)  # fmt: skip


class Endpoint(BaseModel):
    """Where a service listens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: Annotated[str, Field(min_length=1)]
    port: Annotated[int, Field(ge=1, le=65535)]

    @property
    def address(self) -> str:
        """`host:port`, with brackets round an IPv6 host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class BundleInfo(BaseModel):
    """Content of bundle.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    agent_id: Annotated[str, Field(pattern=IDENTITY_PATTERN)]
    fleet: Annotated[str, Field(pattern=IDENTITY_PATTERN)]
    mqtt: Endpoint
    superlink: Endpoint
    https: Endpoint


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk. The key files stay files: no secret is held in memory here."""

    folder: Path
    info: BundleInfo

    @property
    def agent_id(self) -> str:
        return self.info.agent_id

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def certificate(self) -> Path:
        return self.folder / "cert.pem"

    @property
    def key(self) -> Path:
        return self.folder / "key.pem"

    @property
    def supernode_key(self) -> Path:
        return self.folder / "supernode_key"


def load_bundle(folder: Path) -> Bundle:
    """Read a bundle; raises BadBundle with what is missing and how to get it."""
    missing = [name for name in BUNDLE_FILES if not (folder / name).is_file()]
    if missing:
        raise BadBundle(
            f"bundle {folder} lacks {', '.join(missing)}; make it with "
            "`armada coordinator enrol ROBOT_ID --out FOLDER` and copy the whole folder"
        )
    path = folder / BUNDLE_NAME
    try:
        info = BundleInfo.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise BadBundle(
            f"{path}: {first_complaint(error, BUNDLE_NAME)}; enrol the robot again"
        ) from error
    return Bundle(folder, info)
