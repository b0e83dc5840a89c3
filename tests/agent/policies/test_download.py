"""Releases over a real HTTPS server with client certificates, on loopback.

The server's files are damaged, cut off and moved away as a bad network or a bad server would.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from counted_hashes import count_hashes
from release_site import ONNX, Site, make_bundle
from tiny_policy import write_policy

from agent.policies.download import CHUNK_BYTES
from agent.policies.errors import DownloadInterrupted, ReleaseRefused
from policy.release.folder import read_policy_folder, read_record
from protocol.bundle import load_bundle


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
    assert len(ONNX) - CHUNK_BYTES <= max(sizes) <= len(ONNX)


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
    assert read_record(folder)["policy.onnx"].sha256 == hashlib.sha256(ONNX).hexdigest()


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
    assert read_record(folder).keys() == read_policy_folder(folder).manifest.files.keys()


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


# --- what is here already is not fetched ---

FROZEN, HEAD, NEW_HEAD = (bytes([value]) * 400_000 for value in (1, 2, 3))
FIRST = {"frozen": FROZEN, "head": HEAD}
SECOND = {"frozen": FROZEN, "head": NEW_HEAD}


def tensor(folder: Path, content: bytes) -> Path:
    return folder / f"{hashlib.sha256(content).hexdigest()}.bin"


def install(site: Site, version: int, **tensors: bytes) -> Path:
    site.publish(version, **tensors)
    return site.store.install(site.fetch(), version)


def fetched(site: Site) -> list[str]:
    """Names asked of the server since the last release was installed."""
    return [name for name, _ in site.server.requests]


def test_a_new_release_fetches_only_what_changed(site: Site) -> None:
    first = install(site, 1, **FIRST)
    site.server.requests.clear()
    second = install(site, 2, **SECOND)
    assert fetched(site) == ["manifest.json", tensor(second, NEW_HEAD).name]
    manifest_bytes = len(site.server.files["manifest.json"])
    assert site.traffic.fetched == manifest_bytes + len(NEW_HEAD)
    assert site.traffic.found == len(FROZEN) + len(ONNX) + len(b"seen" + b"done")
    assert tensor(second, FROZEN).stat().st_ino == tensor(first, FROZEN).stat().st_ino
    read_policy_folder(second, hash_all=True)


def test_what_an_unfinished_download_got_is_not_fetched_again(site: Site) -> None:
    site.publish(1, **FIRST)
    site.server.cut["policy.onnx"] = 1000
    with pytest.raises(DownloadInterrupted):
        site.fetch()
    site.server.requests.clear()
    site.publish(2, **SECOND)
    site.fetch()
    assert tensor(site.folder, FROZEN).name not in fetched(site)
    assert tensor(site.folder, NEW_HEAD).name in fetched(site)


def test_a_damaged_file_of_the_right_name_is_fetched_again(site: Site) -> None:
    first = install(site, 1, **FIRST)
    damaged = tensor(first, FROZEN)
    facts = damaged.stat()
    with damaged.open("r+b") as stream:
        stream.write(b"\xff")
    os.utime(damaged, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # its record would vouch for it
    site.server.requests.clear()
    second = install(site, 2, **SECOND)
    assert damaged.name in fetched(site)
    assert tensor(second, FROZEN).read_bytes() == FROZEN
    assert damaged.read_bytes() != FROZEN, "another version's file is never written to"


def test_a_linked_file_is_never_written_to(site: Site) -> None:
    first = install(site, 1, **FIRST)
    notice = site.publish(2, **SECOND)
    part = site.downloads / f"2-{notice.manifest_digest[:16]}.part"
    part.mkdir()
    # As a kill leaves it between the link and its proof, when the link was to the wrong file.
    os.link(tensor(first, HEAD), tensor(part, NEW_HEAD))
    second = site.store.install(site.fetch(), 2)
    assert tensor(first, HEAD).read_bytes() == HEAD
    assert tensor(second, NEW_HEAD).read_bytes() == NEW_HEAD


def test_where_links_fail_files_are_copied(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    first = install(site, 1, **FIRST)

    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "no links on this file system")

    monkeypatch.setattr(os, "link", no_links)
    second = install(site, 2, **SECOND)
    assert site.traffic.found > len(FROZEN)
    assert tensor(second, FROZEN).stat().st_ino != tensor(first, FROZEN).stat().st_ino
    read_policy_folder(second, hash_all=True)


def test_a_version_that_is_pruned_takes_nothing_from_those_that_share_its_files(
    site: Site,
) -> None:
    install(site, 1, **FIRST)
    second = install(site, 2, **SECOND)
    site.store.use(2)
    assert site.store.prune(1) == ["1"]
    read_policy_folder(second, hash_all=True)
    assert tensor(second, FROZEN).stat().st_nlink == 1
