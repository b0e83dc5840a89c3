"""manifest.json of a policy's folder: what the policy is, and which bytes belong to it.

The release notice carries SHA-256 of the manifest's file, so a robot checks the bytes before it
parses them. Whatever is big lies beside it: the graph, its large tensors, the golden observations.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from host.complaints import first_complaint
from host.files import write_durable
from policy.artefacts import SHA256_PATTERN
from policy.errors import BadManifest, WrongManifest

MANIFEST_NAME = "manifest.json"
POLICY_NAME = "policy.onnx"
MAX_MANIFEST_BYTES = 100_000
MAX_FILES = 512  # a name, a digest and a size are 165 bytes of JSON: all of them fit
MAX_FILE_BYTES = 8 * 1024**3
MAX_RELEASE_BYTES = 16 * 1024**3
CALIBRATION_CONVENTION: Literal["lerobot-degrees-0.6"] = "lerobot-degrees-0.6"

Digest = Annotated[str, Field(pattern=SHA256_PATTERN)]
# No path: a file name of a manifest can only name a file beside the manifest.
FileName = Annotated[
    str, Field(max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*$")
]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Model):
    """One file of the release; `size` in bytes."""

    sha256: Digest
    size: Annotated[int, Field(ge=0, le=MAX_FILE_BYTES)]


class GoldenFiles(_Model):
    """Observations, and the action chunks that the policy must give for them; see goldens.py.

    Two files, for the observations are the same from release to release and need not travel again.
    """

    observations: FileName
    actions: FileName


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
    files: Annotated[dict[FileName, FileEntry], Field(max_length=MAX_FILES)]
    golden: GoldenFiles
    tolerance: Annotated[float, Field(gt=0)]
    evaluation: dict[str, Any]
    contributors: tuple[str, ...]
    created_unix_s: float
    calibration_convention: Literal["lerobot-degrees-0.6"] = CALIBRATION_CONVENTION

    @model_validator(mode="after")
    def _fits_a_disk(self) -> Self:
        total = sum(entry.size for entry in self.files.values())
        if total > MAX_RELEASE_BYTES:
            raise ValueError(f"files have {total} bytes in all, over {MAX_RELEASE_BYTES}")
        return self

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
            raise WrongManifest(
                f"manifest has SHA-256 {found[:12]}…, the release notice says "
                f"{expected_digest[:12]}…; it was changed on the way or on the server"
            )
    try:
        return ReleaseManifest.model_validate_json(content)
    except ValidationError as error:
        raise BadManifest(f"manifest: {first_complaint(error, 'manifest')}") from error


def _too_long(size: int) -> str:
    return f"manifest of {size} bytes is over {MAX_MANIFEST_BYTES}"
