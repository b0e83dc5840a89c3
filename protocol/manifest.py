"""The manifest of a release: what the policy is, which files it has, and how to check them.

`manifest.json` is served as the canonical bytes of the model, so the digest in the release notice
is the SHA-256 of the file itself: an agent checks the bytes before it parses them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from host.complaints import first_complaint
from host.files import write_durable
from protocol.errors import BadManifest
from protocol.fields import Digest

MANIFEST_NAME = "manifest.json"
POLICY_NAME = "policy.onnx"
MAX_MANIFEST_BYTES = 16 * 1024 * 1024
CALIBRATION_CONVENTION: Literal["lerobot-degrees-0.6"] = "lerobot-degrees-0.6"

# No path: a file name of a manifest can only name a file beside the manifest.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Model):
    """One file of the release; `size` in bytes."""

    sha256: Digest
    size: Annotated[int, Field(ge=0, le=8 * 1024**3)]


class Golden(_Model):
    """One observation with the action chunk it must give.

    `observation` maps input names to nested lists without a batch axis (state [S], image
    [H][W][3]); `action` is [C][A] in raw joint units.
    """

    observation: dict[str, list[Any]]
    action: list[list[float]]


class ReleaseManifest(_Model):
    """See the module. `version` 0 is a robot's own, never federated policy.

    `tolerance` is the largest absolute difference, in raw joint units, that a host's golden
    actions may show.
    """

    version: Annotated[int, Field(ge=0)]
    round: Annotated[int, Field(ge=0)]
    base_digest: Digest
    spec: dict[str, Any]
    normalizer: dict[str, Any]
    files: Annotated[dict[FileName, FileEntry], Field(max_length=4096)]
    golden: tuple[Golden, ...]
    tolerance: Annotated[float, Field(gt=0)]
    evaluation: dict[str, Any]
    contributors: tuple[str, ...]
    created_unix_s: float
    calibration_convention: Literal["lerobot-degrees-0.6"] = CALIBRATION_CONVENTION

    def canonical_bytes(self) -> bytes:
        """UTF-8 JSON with sorted keys and no spaces: the content of manifest.json.

        Raises BadManifest when a number is not finite.
        """
        try:
            text = json.dumps(
                self.model_dump(),
                sort_keys=True,
                separators=(",", ":"),
                ensure_ascii=False,
                allow_nan=False,
            )
        except ValueError as error:
            raise BadManifest(f"manifest of version {self.version}: {error}") from error
        return text.encode()

    def digest(self) -> str:
        """SHA-256 hex of the canonical bytes."""
        return sha256(self.canonical_bytes()).hexdigest()


def write_manifest(
    folder: Path,
    described: Mapping[str, Any],
    *,
    evaluation: Mapping[str, Any],
    contributors: tuple[str, ...],
    created_unix_s: float,
) -> ReleaseManifest:
    """Write the folder's manifest.json durably: what the exporter described, and who and when.

    Raises BadManifest when a field is not usable or nobody could read the file, OSError.
    """
    about = {
        "evaluation": evaluation,
        "contributors": contributors,
        "created_unix_s": created_unix_s,
    }
    try:
        manifest = ReleaseManifest.model_validate({**described, **about})
    except ValidationError as error:
        raise BadManifest(f"manifest: {first_complaint(error, 'manifest')}") from error
    content = manifest.canonical_bytes()
    if len(content) > MAX_MANIFEST_BYTES:
        raise BadManifest(_too_long(len(content)))
    write_durable(folder / MANIFEST_NAME, content)
    return manifest


def parse_manifest(content: bytes, expected_digest: str | None = None) -> ReleaseManifest:
    """Check `content` against the digest (when given), then parse it; raises BadManifest."""
    if len(content) > MAX_MANIFEST_BYTES:
        raise BadManifest(_too_long(len(content)))
    if expected_digest is not None:
        found = sha256(content).hexdigest()
        if found != expected_digest:
            raise BadManifest(
                f"manifest has SHA-256 {found[:12]}…, the release notice says "
                f"{expected_digest[:12]}…; it was changed on the way or on the server"
            )
    try:
        return ReleaseManifest.model_validate_json(content)
    except ValidationError as error:
        raise BadManifest(f"manifest: {first_complaint(error, 'manifest')}") from error


def _too_long(size: int) -> str:
    return f"manifest of {size} bytes is over {MAX_MANIFEST_BYTES}"
