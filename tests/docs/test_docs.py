"""The documents say what is there: files, targets, versions."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMED_FILE = re.compile(r"`((?:[\w.-]+/)+[\w.-]*|[\w-]+\.(?:toml|md|lock|yaml))`")
# Files of a user's machine, not of the tree.
ELSEWHERE = (
    "armada/v1", "state_dir/", "journal/", "dataset", "agent.toml", "coordinator.toml",
    "run/", "calibration/", "training/", "policies/", "federation/", "log/",
    "ca/", "server/", "identity/", "mosquitto/", "superlink/", "state/", "releases/",
)  # fmt: skip


def text_of(document: Path) -> str:
    return document.read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_a_document_names_is_there(document: Path) -> None:
    named = {name for name in NAMED_FILE.findall(text_of(document))}
    missing = [
        name
        for name in sorted(named)
        if not name.startswith(ELSEWHERE) and not (ROOT / name).exists()
    ]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_make_target_that_a_document_names_is_there(document: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([\w-]+)", text_of(document), re.MULTILINE))
    assert named <= targets


def test_the_versions_of_the_formats_are_those_of_the_code() -> None:
    rows = re.findall(
        r"^\| .* \| `([\w/]+\.py)` `([\w.]+)` \| `?([\w./-]+)`? \|$",
        text_of(ROOT / "docs" / "formats.md"),
        re.MULTILINE,
    )
    assert len(rows) >= 8
    for file, name, version in rows:
        module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
        owner, _, field = name.partition(".")
        found = getattr(module, owner)
        if field:
            found = found.model_fields[field].default
        assert str(found) == version, f"{file} {name}"


def test_flower_is_pinned_to_the_version_that_the_formats_name() -> None:
    dependencies = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]["dependencies"]
    pin = next(line for line in dependencies if line.startswith("flwr=="))
    assert f"flwr {pin.removeprefix('flwr==')}" in text_of(ROOT / "docs" / "formats.md")
