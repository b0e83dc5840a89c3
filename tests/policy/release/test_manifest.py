"""A manifest is checked by its digest before it is parsed, and never written unreadable."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from policy.errors import BadManifest
from policy.release.manifest import (
    MANIFEST_NAME,
    MAX_FILE_BYTES,
    MAX_FILES,
    MAX_MANIFEST_BYTES,
    FileEntry,
    GoldenFiles,
    ReleaseManifest,
    parse_manifest,
    write_manifest,
)


def manifest(**changes: object) -> ReleaseManifest:
    fields = {
        "version": 1,
        "round": 2,
        "base_digest": "ab" * 32,
        "spec": {"kind": "act"},
        "normalizer": {},
        "files": {"policy.onnx": FileEntry(sha256="cd" * 32, size=5)},
        "golden": GoldenFiles(observations="seen.safetensors", actions="done.safetensors"),
        "tolerance": 0.05,
        "evaluation": {},
        "contributors": ("arm-1", "ärm"),
        "created_unix_s": 1.5,
    }
    return ReleaseManifest.model_validate({**fields, **changes})


def test_the_digest_is_that_of_the_file_itself() -> None:
    content = manifest().canonical_bytes()
    assert manifest().digest() == sha256(content).hexdigest()
    assert parse_manifest(content, manifest().digest()) == manifest()
    assert parse_manifest(content).canonical_bytes() == content


def test_a_changed_manifest_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(BadManifest, match="changed on the way"):
        parse_manifest(b"not even JSON", manifest().digest())


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "..", ".hidden", "a..", "", "a\\b"])
def test_a_file_name_cannot_leave_its_folder(name: str) -> None:
    content = json.loads(manifest().canonical_bytes())
    content["files"] = {name: {"sha256": "cd" * 32, "size": 5}}
    with pytest.raises(BadManifest):
        parse_manifest(json.dumps(content).encode())


def test_a_manifest_with_a_number_that_is_not_finite_has_no_bytes() -> None:
    with pytest.raises(BadManifest):
        manifest(evaluation={"x": float("nan")}).canonical_bytes()


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    who_and_when = {"evaluation", "contributors", "created_unix_s"}
    described = manifest().model_dump(mode="json", exclude=who_and_when)
    written = write_manifest(
        tmp_path, described, evaluation={}, contributors=("arm-1", "ärm"), created_unix_s=1.5
    )
    assert written == manifest()
    assert parse_manifest((tmp_path / MANIFEST_NAME).read_bytes(), written.digest()) == written


@pytest.mark.parametrize(
    "change",
    [{"version": -1}, {"tolerance": 0.0}, {"odd": 1}, {"spec": {"note": "x" * MAX_MANIFEST_BYTES}}],
)
def test_a_manifest_that_no_robot_would_read_is_never_written(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    who_and_when = {"evaluation", "contributors", "created_unix_s"}
    described = manifest().model_dump(mode="json", exclude=who_and_when) | change
    with pytest.raises(BadManifest):
        write_manifest(tmp_path, described, evaluation={}, contributors=(), created_unix_s=1.5)
    assert not list(tmp_path.iterdir())


def test_as_many_files_as_are_allowed_fit_the_manifest() -> None:
    entry = {"sha256": "ab" * 32, "size": 2**24}
    files = {f"{index:064x}.bin": entry for index in range(MAX_FILES)}
    assert len(manifest(files=files).canonical_bytes()) < MAX_MANIFEST_BYTES - 10_000
    with pytest.raises(ValueError, match="at most 512"):
        manifest(files=files | {"one-more": entry})


def test_a_release_that_would_fill_a_disk_is_refused() -> None:
    entry = {"sha256": "ab" * 32, "size": MAX_FILE_BYTES}
    manifest(files={"one": entry, "two": entry})
    with pytest.raises(ValueError, match="bytes in all"):
        manifest(files={"one": entry, "two": entry, "three": entry | {"size": 1}})
    with pytest.raises(ValueError, match="size"):
        FileEntry(sha256="ab" * 32, size=MAX_FILE_BYTES + 1)
