"""A file is hashed once, then recognised; what is not recognised for sure is hashed again."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from counted_hashes import count_hashes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_policy import change_manifest, install_policy, write_config, write_policy

from agent.config import load_config
from agent.doctor import examine
from agent.inference.process import PolicyServer
from agent.inference.wire import InferenceMessage
from agent.policies.compatibility import RobotSignature
from agent.policies.errors import PolicyRefused
from agent.policies.store import PolicyStore
from policy.errors import BadManifest, BadPolicyFolder
from policy.release.folder import RECORD_NAME, read_policy_folder, read_record
from policy.release.manifest import parse_manifest

ONNX = "policy.onnx"


@pytest.fixture
def store(tmp_path: Path) -> PolicyStore:
    return PolicyStore(tmp_path / "state" / "policies")


@pytest.fixture
def installed(store: PolicyStore) -> Path:
    return install_policy(store)


def file_sizes(folder: Path) -> list[int]:
    """Of what its manifest names, in its order."""
    files = json.loads((folder / "manifest.json").read_bytes())["files"]
    return [entry["size"] for entry in files.values()]


def flip_a_byte(path: Path) -> None:
    """In place and of the same size: the inode stays."""
    time.sleep(0.01)  # the clock of file times ticks every 4 ms
    with path.open("r+b") as stream:
        stream.seek(100)
        byte = stream.read(1)
        stream.seek(100)
        stream.write(bytes([byte[0] ^ 1]))


def forge(path: Path) -> None:
    """Also the time is as it was."""
    facts = path.stat()
    flip_a_byte(path)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def test_an_installed_policy_is_read_without_hashing(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = count_hashes(monkeypatch)
    folder = read_policy_folder(installed)
    assert sizes == []
    assert folder.onnx_digest == folder.verified[ONNX].sha256


def test_activating_and_rolling_back_hash_nothing_again(
    store: PolicyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_policy(store, 1)
    install_policy(store, 2)
    sizes = count_hashes(monkeypatch)
    store.use(1)
    store.use(2)
    store.roll_back()
    assert sizes == []


def test_a_flipped_byte_is_found_though_the_size_is_the_same(
    store: PolicyStore, installed: Path, tmp_path: Path
) -> None:
    flip_a_byte(installed / ONNX)
    with pytest.raises(BadPolicyFolder, match=r"policy\.onnx has SHA-256"):
        read_policy_folder(installed)
    with pytest.raises(PolicyRefused, match=r"policy\.onnx has SHA-256"):
        store.use(1)
    server = PolicyServer(RobotSignature.of(load_config(write_config(tmp_path))), 1)
    load = InferenceMessage({"kind": "load", "command": 1, "dir": str(installed)})
    (reply, _), *_ = server.answer([load])
    assert reply["kind"] == "refused" and "SHA-256" in reply["error"]


def test_a_file_put_in_its_place_is_found_though_size_and_time_are_the_same(
    installed: Path,
) -> None:
    facts = (installed / ONNX).stat()
    other = installed / "other"
    shutil.copy2(installed / ONNX, other)
    flip_a_byte(other)
    os.utime(other, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    other.replace(installed / ONNX)
    with pytest.raises(BadPolicyFolder, match=r"policy\.onnx has SHA-256"):
        read_policy_folder(installed)


def test_a_forged_time_hides_it_from_a_load_and_the_doctor_finds_it(
    store: PolicyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.doctor.CAMERA_TIMEOUT_S", 0.1)
    config_path = write_config(tmp_path)
    for version in (1, 2):
        install_policy(store, version)
    write_policy(store.folder / "local", version=0)
    store.use(2)
    forge(store.folder / "1" / ONNX)
    read_policy_folder(store.folder / "1")  # so it is: only a hash could tell
    record = (store.folder / "1" / RECORD_NAME).read_bytes()
    found = {
        line.what: line
        for line in examine(config_path)
        if line.what.startswith("policy ") and not line.what.endswith("computes as")
    }
    assert [(what, line.well) for what, line in found.items()] == [
        ("policy 1", False),
        ("policy 2", True),
        ("policy local", True),
    ]
    assert "has SHA-256" in found["policy 1"].line
    assert found["policy 2"].line.startswith("active, as its manifest says")
    assert (store.folder / "1" / RECORD_NAME).read_bytes() == record, "the doctor moves nothing"


def test_the_same_release_again_mends_a_damaged_one_whatever_its_time_says(
    store: PolicyStore, installed: Path
) -> None:
    store.use(1)
    forge(installed / ONNX)
    assert install_policy(store) == installed
    read_policy_folder(installed, hash_all=True)
    assert store.resolve("active") == installed
    assert sorted(path.name for path in store.folder.iterdir()) == ["1", "active.json"]


def test_the_doctor_names_a_damaged_choice_and_still_looks_at_the_policies(
    store: PolicyStore, installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.doctor.CAMERA_TIMEOUT_S", 0.1)
    (store.folder / "active.json").write_text("{")
    found = {line.what: line.well for line in examine(write_config(tmp_path))}
    assert (found["policies"], found["policy 1"]) == (False, True)


def test_a_renamed_folder_is_recognised(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = count_hashes(monkeypatch)
    read_policy_folder(installed.rename(tmp_path / "elsewhere"))
    assert sizes == []


def test_a_restored_copy_is_hashed_again_and_recognised_once_it_was_activated(
    store: PolicyStore, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = file_sizes(installed)
    backup = installed.parent / "backup"
    shutil.copytree(installed, backup)  # with its times; while both are there no inode is reused
    shutil.rmtree(installed)
    backup.rename(installed)
    sizes = count_hashes(monkeypatch)
    read_policy_folder(installed)
    assert sizes == whole
    store.use(1)
    assert sizes == whole + whole
    read_policy_folder(installed)
    assert sizes == whole + whole


DAMAGED = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b'{"policy.onnx": 3}',
    b'{"policy.onnx": {"stamp": [1, 2], "sha256": "ab"}}',
    b'{"policy.onnx": {"stamp": ["1", 2, 3], "sha256": "ab"}}',
    b'{"policy.onnx": {"stamp": null, "sha256": null}}',
    b'{"policy.onnx": {"stamp": [%s, 2, 3], "sha256": "ab"}}' % (b"9" * 5000),
    b"[" * 100_000,
    b'{"policy.onnx": "' + b"x" * (3 << 20) + b'"}',
]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_record_is_a_hash_more_and_no_fault(
    store: PolicyStore, installed: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    (installed / RECORD_NAME).write_bytes(content)
    sizes = count_hashes(monkeypatch)
    read_policy_folder(installed)
    assert sizes == file_sizes(installed)
    store.use(1)
    assert read_record(installed) == read_policy_folder(installed).verified


def test_a_missing_or_unreadable_record_is_a_hash_more_and_no_fault(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = count_hashes(monkeypatch)
    (installed / RECORD_NAME).unlink()
    read_policy_folder(installed)
    (installed / RECORD_NAME).mkdir()
    read_policy_folder(installed)
    assert sizes == file_sizes(installed) * 2


@given(content=st.binary(max_size=200))
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50
)
def test_no_record_makes_a_good_policy_bad_or_a_bad_one_good(
    tmp_path: Path, content: bytes
) -> None:
    folder = tmp_path / "1"
    if not folder.exists():
        write_policy(folder)
    (folder / RECORD_NAME).write_bytes(content)
    read_policy_folder(folder)
    flip_a_byte(folder / ONNX)
    with pytest.raises(BadPolicyFolder):
        read_policy_folder(folder)
    flip_a_byte(folder / ONNX)


def test_the_manifest_says_what_a_file_must_be_whatever_the_record_says(installed: Path) -> None:
    other = {"sha256": "0" * 64, "size": (installed / ONNX).stat().st_size}
    files = json.loads((installed / "manifest.json").read_bytes())["files"]
    change_manifest(installed, files=files | {ONNX: other})
    with pytest.raises(BadPolicyFolder, match=r"policy\.onnx has SHA-256"):
        read_policy_folder(installed)
    record = json.loads((installed / RECORD_NAME).read_bytes())
    record[ONNX]["stamp"][0] += 1
    record[ONNX]["sha256"] = "0" * 64
    (installed / RECORD_NAME).write_text(json.dumps(record))
    with pytest.raises(BadPolicyFolder, match=r"policy\.onnx has SHA-256"):
        read_policy_folder(installed)


def test_a_refused_file_gets_no_record(store: PolicyStore, tmp_path: Path) -> None:
    whole = write_policy(tmp_path / "state" / "whole")
    flip_a_byte(whole / ONNX)
    with pytest.raises(PolicyRefused):
        store.install(whole, 1)
    assert not (whole / RECORD_NAME).exists()


def test_no_release_brings_its_own_record(installed: Path) -> None:
    manifest = json.loads((installed / "manifest.json").read_bytes())
    manifest["files"][RECORD_NAME] = {"sha256": "0" * 64, "size": 1}
    with pytest.raises(BadManifest):
        parse_manifest(json.dumps(manifest).encode())
