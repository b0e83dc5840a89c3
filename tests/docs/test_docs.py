"""The documents say what is there: files, targets, versions."""

from __future__ import annotations

import importlib
import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest
import typer

from deploy.rooms import app

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
    named = set(NAMED_FILE.findall(text_of(document)))
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


def commands_in(text: str) -> list[list[str]]:
    """Every `armada …` of a document: of its code blocks, and in backticks."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines += [" ".join(each.split()) for each in re.findall(r"`([^`]+)`", prose)]
    return [
        shlex.split(line, comments=True)[1:] for line in lines if re.match(r"armada(\s|$)", line)
    ]


def assert_command_exists(words: list[str]) -> None:
    """Each command and each option is known to the command line itself."""
    command: click.Command = typer.main.get_command(app)
    context = click.Context(command, resilient_parsing=True)
    rest = [word for word in words if word not in ("…", "...", "|", "COMMAND")]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        found = command.get_command(context, rest[0])
        assert found is not None, f"armada {' '.join(words)}: there is no {rest[0]}"
        command = found
        rest = rest[1:]
    known = {option for param in command.get_params(context) for option in param.opts}
    options = [word.split("=")[0] for word in rest if word.startswith("--")]
    assert [each for each in options if "." not in each and each not in known] == [], words


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_armada_command_that_a_document_names_is_there(document: Path) -> None:
    for words in commands_in(text_of(document)):
        assert_command_exists(words)


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
