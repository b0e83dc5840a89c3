"""Topics go both ways; a manifest is its own bytes; a bundle says what it lacks."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.bundle import BUNDLE_FILES, load_bundle
from protocol.errors import BadBundle, BadManifest, BadTopic
from protocol.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    FileEntry,
    Golden,
    ReleaseManifest,
    parse_manifest,
    write_manifest,
)
from protocol.topics import AGENT_KINDS, Address, Kind, Topics

TOPICS = Topics("fleet")


@given(
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True).filter(
        lambda name: name.lower() != "coordinator"
    ),
    st.sampled_from(AGENT_KINDS),
)
def test_an_agents_topic_reads_back(agent_id: str, kind: Kind) -> None:
    assert TOPICS.parse(TOPICS.of_agent(agent_id, kind)) == Address(kind, agent_id)


@given(st.text(max_size=100))
def test_any_other_topic_is_refused_and_nothing_else_is_raised(topic: str) -> None:
    with pytest.raises(BadTopic):
        TOPICS.parse(topic)


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "a b", "-x", "x" * 64, "coordinator", "é"])
def test_a_name_that_would_change_a_topic_is_refused(name: str) -> None:
    with pytest.raises(BadTopic):
        TOPICS.status(name)


@pytest.mark.parametrize(
    "topic",
    [
        "armada/v1/other/window",
        "armada/v1/fleet/window/x",
        "armada/v1/fleet/agents/arm-1/window",
        "armada/v1/fleet/status",
        "armada/v1/fleet/agents//status",
    ],
)
def test_a_topic_of_another_fleet_or_shape_is_refused(topic: str) -> None:
    with pytest.raises(BadTopic):
        TOPICS.parse(topic)


def manifest(**changes: object) -> ReleaseManifest:
    fields = {
        "version": 1,
        "round": 2,
        "base_digest": "ab" * 32,
        "spec": {"kind": "act"},
        "normalizer": {},
        "files": {"policy.onnx": FileEntry(sha256="cd" * 32, size=5)},
        "golden": (Golden(observation={"observation.state": [0.5]}, action=[[1.0]]),),
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


def test_a_bundle_says_what_it_lacks(tmp_path: Path) -> None:
    for name in BUNDLE_FILES:
        (tmp_path / name).write_text("{}")
    (tmp_path / "key.pem").unlink()
    with pytest.raises(BadBundle, match=r"lacks key\.pem; make it with"):
        load_bundle(tmp_path)
    (tmp_path / "key.pem").write_text("")
    with pytest.raises(BadBundle, match=r"bundle\.json: agent_id"):
        load_bundle(tmp_path)
