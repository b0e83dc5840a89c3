"""`armada config`: what is in force and where it comes from, and the reference of all keys."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from agent.config import DEFAULT_CONFIG_PATH, AgentConfig
from agent.config import MISSING as AGENT_MISSING
from coordinator.config import CONFIG_NAME, CoordinatorConfig
from coordinator.config import MISSING as COORDINATOR_MISSING
from host.command_line import command_group, run_command_line
from host.settings import BadSettings, Settings, settings_in_force, variable_of
from policy.kinds import KINDS, kind_of
from policy.spec import PolicySpec


@dataclass(frozen=True)
class ConfigurationFile:
    """One kind of file: its model, and what to do when it is not there."""

    name: str
    kind: type[Settings]
    missing: str
    # Tables that are another room's model; those after the first add to it.
    inside: tuple[tuple[str, tuple[type[BaseModel], ...]], ...] = ()


FILES = (
    ConfigurationFile("agent.toml", AgentConfig, AGENT_MISSING),
    ConfigurationFile(
        CONFIG_NAME,
        CoordinatorConfig,
        COORDINATOR_MISSING,
        (("policy", (PolicySpec, *(kind_of(kind).spec for kind in KINDS))),),
    ),
)

app = command_group(
    help="Show, check and explain agent.toml and coordinator.toml.",
)
ConfigPath = Annotated[
    Path,
    typer.Option("--config", envvar="ARMADA_CONFIG", help="agent.toml or coordinator.toml"),
]
AsJson = Annotated[bool, typer.Option("--json", help="for a machine")]


def _file_of(path: Path) -> tuple[ConfigurationFile, Path]:
    """The kind of a file, by its name; a folder is the coordinator's."""
    if path.is_dir():
        path = path / CONFIG_NAME
    return (FILES[1] if path.name == CONFIG_NAME else FILES[0]), path


@app.command()
def show(config: ConfigPath = DEFAULT_CONFIG_PATH, as_json: AsJson = False) -> None:
    """Print every value in force: from the file, from the environment, or the default."""
    file, path = _file_of(config)
    try:
        settings = settings_in_force(file.kind, path, file.missing)
    except BadSettings as error:
        raise _refused(error) from error
    if as_json:
        rows = {each.key: {"value": each.value, "origin": each.origin} for each in settings}
        typer.echo(json.dumps(rows, indent=2))
        return
    width = max(len(each.key) for each in settings)
    for each in settings:
        typer.echo(f"{each.key:<{width}}  {json.dumps(each.value)}  ({each.origin})")


@app.command()
def check(config: ConfigPath = DEFAULT_CONFIG_PATH, as_json: AsJson = False) -> None:
    """Check a file with what the environment adds; says in one line what is wrong."""
    file, path = _file_of(config)
    problem: str | None = None
    try:
        settings_in_force(file.kind, path, file.missing)
    except BadSettings as error:
        problem = str(error)
    if as_json:
        typer.echo(json.dumps({"ok": problem is None, "problem": problem}))
    elif problem is None:
        typer.echo(f"{path}: all keys are known, all values allowed")
    if problem is not None:
        raise typer.Exit(2) if as_json else _refused(BadSettings(problem))


@app.command()
def reference() -> None:
    """Print the reference of all keys, as docs/configuration.md has it."""
    typer.echo(render_reference(), nl=False)


def _refused(error: BadSettings) -> typer.Exit:
    typer.echo(f"armada: {error}", err=True)
    return typer.Exit(2)


def render_reference() -> str:
    """Markdown: one table a section, made from the models."""
    parts = [
        "# Configuration\n",
        "Made from the models by `armada config reference`; a test holds it to them. Every key can",
        "also be set by its variable in the environment, which wins over the file, and for one run",
        "by a flag, which wins over both: `armada agent run --control.fps 50`. An unknown key is",
        "refused, and `armada config check` says so before anything starts. Relative paths in a",
        "file are relative to its folder.",
    ]
    for file in FILES:
        variable = variable_of(file.kind, "section.key")
        parts += ["", f"## {file.name}", "", f"Variables: `{variable}`."]
        schema = file.kind.model_json_schema()
        for name, models in file.inside:
            common: dict[str, Any] = {}
            for model in models:
                inner = model.model_json_schema()
                schema["$defs"] |= {**inner.pop("$defs", {}), model.__name__: inner}
                own = {
                    key: entry
                    for key, entry in inner["properties"].items()
                    if entry != common.get(key)
                }
                common, inner["properties"] = common or own, own
            schema["properties"][name] = {
                "anyOf": [{"$ref": f"#/$defs/{model.__name__}"} for model in models]
            }
        parts += _sections(schema)
    return "\n".join(parts) + "\n"


def _sections(schema: dict[str, Any]) -> list[str]:
    definitions = schema.get("$defs", {})
    lines: list[str] = []
    plain: dict[str, Any] = {}
    tables: list[tuple[str, dict[str, Any], bool]] = []
    for name, entry in schema["properties"].items():
        for title, table in _tables_of(name, entry, definitions):
            tables.append((title, table, name in schema.get("required", ())))
        if not _tables_of(name, entry, definitions):
            plain[name] = entry
    if plain:
        lines += ["", *_rows(plain, schema.get("required", []))]
    for title, table, required in tables:
        lines += ["", f"### [{title}]", "", " ".join(table.get("description", "").split())]
        if required:
            lines[-1] += " Required."
        lines += ["", *_rows(table["properties"], table.get("required", []))]
        for name, entry in table["properties"].items():
            if "oneOf" in entry:
                lines += _kinds(f"{title}.{name}", entry, definitions)
    return lines


def _kinds(title: str, entry: dict[str, Any], definitions: dict[str, Any]) -> list[str]:
    """One of several kinds of table, told apart by one key."""
    key = entry["discriminator"]["propertyName"]
    lines = []
    for _, table in _tables_of(title, entry, definitions):
        properties = dict(table["properties"])
        kind = properties.pop(key)["const"]
        lines += ["", f'### [{title}] {key} = "{kind}"', ""]
        lines += [" ".join(table.get("description", "").split()), ""]
        lines += _rows(properties, table.get("required", []))
    return lines


def _tables_of(
    name: str, entry: dict[str, Any], definitions: dict[str, Any]
) -> list[tuple[str, dict[str, Any]]]:
    """The tables that a key of the file may hold, with their headings."""
    found: list[tuple[str, dict[str, Any]]] = []
    branches = [entry, *entry.get("anyOf", ()), *entry.get("oneOf", ())]
    for branch in branches:
        if "$ref" in branch:
            found.append((name, definitions[branch["$ref"].rsplit("/", 1)[1]]))
        named = [
            *branch.get("patternProperties", {}).values(),
            branch.get("additionalProperties"),
        ]
        found += [
            (f"{name}.NAME", definitions[each["$ref"].rsplit("/", 1)[1]])
            for each in named
            if isinstance(each, dict) and "$ref" in each
        ]
    return found


def _rows(properties: dict[str, Any], required: list[str]) -> list[str]:
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for name, entry in properties.items():
        default = "required" if name in required else f"`{json.dumps(entry.get('default'))}`"
        meaning = " ".join(str(entry.get("description", "")).split())
        lines.append(f"| `{name}` | {_allowed(entry)} | {default} | {meaning} |")
    return lines


def _allowed(entry: dict[str, Any]) -> str:
    """Type and bounds in words."""
    if "anyOf" in entry:
        return " or ".join(_allowed(each) for each in entry["anyOf"] if each.get("type") != "null")
    if "oneOf" in entry:
        return "a table below"
    if "enum" in entry:
        return ", ".join(f'"{value}"' for value in entry["enum"])
    if "const" in entry:
        return f'"{entry["const"]}"'
    words = {
        "integer": "whole number",
        "number": "number",
        "string": "text",
        "boolean": "true or false",
        "array": "list",
        "object": "table",
    }.get(str(entry.get("type")), "value")
    bounds = [
        f"{sign} {entry[key]:g}"
        for key, sign in (
            ("exclusiveMinimum", "above"),
            ("minimum", "at least"),
            ("exclusiveMaximum", "below"),
            ("maximum", "at most"),
        )
        if key in entry
    ]
    return ", ".join([words, *bounds])


def main(argv: Sequence[str]) -> int:
    """Run one command; the exit status."""
    return run_command_line(app, "armada config", argv, ())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
