"""A policy's folder on disk: its manifest, and the proof that its files are those of the manifest.

Hashing a file is dear, so it is done once, while it is downloaded or when it is installed, and
`.verified.json` keeps what was found. A file that still has its inode, time and size is taken for
the same; any other is hashed again. The record only saves
work: the manifest says which digest a file must have, a record that is missing or damaged means
hashing, and `armada doctor` hashes without it (a time can be forged). The coordinator reads each
release by this very code before it announces it.
"""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError

from host.complaints import first_complaint
from host.files import FileStamp, file_stamp, stamp_of, write_durable
from policy.errors import BadManifest, BadPolicyFolder, BadSpec, DamagedPolicyFolder
from policy.release.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    POLICY_NAME,
    FileEntry,
    ReleaseManifest,
    parse_manifest,
)
from policy.spec import PolicySpec

log = logging.getLogger(__name__)

# A manifest's file names begin with a letter or a digit: no release can bring its own record.
RECORD_NAME = ".verified.json"
_MAX_RECORD_BYTES = 1024 * 1024  # 512 files, as many as a manifest may name


@dataclass(frozen=True)
class VerifiedFile:
    """What a file was (inode, mtime_ns, size) when it had this SHA-256."""

    stamp: FileStamp
    sha256: str


VerifiedFiles = dict[str, VerifiedFile]
_RECORD = TypeAdapter(VerifiedFiles, config=ConfigDict(strict=True))


@dataclass(frozen=True)
class PolicyFolder:
    """A checked folder: its manifest, the spec in it, and what each file was when it was hashed."""

    path: Path
    manifest: ReleaseManifest
    spec: PolicySpec
    verified: VerifiedFiles

    @property
    def name(self) -> str:
        """Return the folder's name: a version, or `local`."""
        return self.path.name

    @property
    def onnx_path(self) -> Path:
        """Return the ONNX graph's file."""
        return self.path / POLICY_NAME

    @property
    def golden_paths(self) -> tuple[Path, Path]:
        """Return the files of the golden observations and of their actions."""
        golden = self.manifest.golden
        return self.path / golden.observations, self.path / golden.actions

    @property
    def onnx_digest(self) -> str:
        """Return SHA-256 hex of policy.onnx, as the manifest has it and the file was found."""
        return self.manifest.files[POLICY_NAME].sha256


def read_policy_folder(path: Path, *, hash_all: bool = False) -> PolicyFolder:
    """Read the manifest and check every file's size and SHA-256 against it.

    A file that the record knows is not hashed, unless `hash_all`. Nothing is written. Raises
    BadPolicyFolder with one line that names the file.
    """
    manifest, spec = read_manifest(path)
    record = {} if hash_all else read_record(path)
    verified = {
        name: _check_file(path / name, entry, record.get(name))
        for name, entry in manifest.files.items()
    }
    return PolicyFolder(path, manifest, spec, verified)


def read_manifest(path: Path) -> tuple[ReleaseManifest, PolicySpec]:
    """Read the folder's manifest alone. Raises BadPolicyFolder."""
    try:
        with (path / MANIFEST_NAME).open("rb") as stream:
            content = stream.read(MAX_MANIFEST_BYTES + 1)
        manifest = parse_manifest(content)
        spec = PolicySpec.from_json(manifest.spec)
    except OSError as error:
        raise DamagedPolicyFolder(f"{path}: {MANIFEST_NAME}: {error.strerror}") from error
    except (BadManifest, BadSpec) as error:
        raise BadPolicyFolder(f"{path}: {error}") from error
    for name in (POLICY_NAME, manifest.golden.observations, manifest.golden.actions):
        if name not in manifest.files:
            raise BadPolicyFolder(f"{path}: {MANIFEST_NAME} has no {name} among its files")
    return manifest, spec


def verify_policy_folder(path: Path) -> PolicyFolder:
    """As `read_policy_folder`, and keep what had to be hashed, for later readers.

    Raises BadPolicyFolder, OSError.
    """
    folder = read_policy_folder(path)
    if folder.verified != read_record(path):
        write_record(path, folder.verified)
    return folder


def is_verified(path: Path, entry: FileEntry, known: VerifiedFile | None) -> bool:
    """Whether the file is still the one that was found to have the entry's SHA-256."""
    return known is not None and (known.stamp, known.sha256) == (file_stamp(path), entry.sha256)


def hash_file(path: Path) -> VerifiedFile:
    """Hash the whole file. Raises OSError."""
    with path.open("rb") as stream:
        stamp = stamp_of(os.fstat(stream.fileno()))  # before: who writes meanwhile changes it
        return VerifiedFile(stamp, hashlib.file_digest(stream, "sha256").hexdigest())


def read_record(folder: Path) -> VerifiedFiles:
    """What was verified in this folder; nothing when the record is missing or damaged."""
    path = folder / RECORD_NAME
    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_RECORD_BYTES + 1)
        if len(content) > _MAX_RECORD_BYTES:
            log.warning("%s is over %d bytes; hashing again", path, _MAX_RECORD_BYTES)
            return {}
        return _RECORD.validate_json(content)
    except FileNotFoundError:
        return {}
    except OSError as error:
        log.warning("%s cannot be read (%s); hashing again", path, error.strerror)
    except ValidationError as error:
        log.warning("%s is damaged (%s); hashing again", path, first_complaint(error, "record"))
    return {}


def write_record(folder: Path, verified: VerifiedFiles) -> None:
    """Keep durably what was verified in this folder. Raises OSError."""
    write_durable(folder / RECORD_NAME, _RECORD.dump_json(verified))


def _check_file(path: Path, entry: FileEntry, known: VerifiedFile | None) -> VerifiedFile:
    try:
        found_size = path.stat().st_size
        if found_size != entry.size:
            raise DamagedPolicyFolder(
                f"{path} has {found_size} bytes, its manifest says {entry.size}"
            )
        if known is not None and is_verified(path, entry, known):
            return known
        found = hash_file(path)
    except OSError as error:
        raise DamagedPolicyFolder(f"{path}: {error.strerror}") from error
    if found.sha256 != entry.sha256:
        raise DamagedPolicyFolder(
            f"{path} has SHA-256 {found.sha256[:12]}…, its manifest says {entry.sha256[:12]}…; "
            "download it again"
        )
    return found
