"""Configuration: a TOML file, the environment and flags, checked whole and refused in one line.

What stands nearer to the person wins: the file, then variables `PREFIX_SECTION__KEY`, then flags
`--section.key value`. Flags are put into the environment, where child processes find them too.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

NESTED = "__"  # between the parts of a key in a variable's name


class BadSettings(ValueError):
    """A configuration that cannot be used; the text is one line: where, what, what is allowed."""


class Table(BaseModel):
    """A table of a configuration file. The docstring below a field says what it means."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Settings(BaseSettings):
    """A whole file. Set `env_prefix` in the subclass's model_config."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        env_nested_delimiter=NESTED,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment before the file, whose content comes as the constructor's arguments."""
        return env_settings, init_settings


@dataclass(frozen=True)
class Setting:
    """One value in force: its dotted key, and whether a file, a variable or nobody set it."""

    key: str
    value: object
    origin: str


def load_settings[S: Settings](kind: type[S], path: Path, missing: str) -> S:
    """Read and check `path` with what the environment adds.

    Relative paths in the file are relative to its folder. Raises BadSettings; `missing` says how
    to come by a file that is not there.
    """
    table = _read(kind, path, missing)
    _refuse_strange_variables(kind)
    try:
        return kind(**table)
    except ValidationError as error:
        raise BadSettings(f"{path}: {explain(kind, error)}") from error
    except SettingsError as error:
        raise BadSettings(f"environment: {error}: {error.__cause__}") from error


def settings_in_force[S: Settings](kind: type[S], path: Path, missing: str) -> list[Setting]:
    """Every value with its origin, in the order of the model. Raises BadSettings."""
    table = _read(kind, path, missing)
    settings = load_settings(kind, path, missing)
    return [
        Setting(key, value, _origin(kind, key, table, path))
        for key, value in _leaves(settings.model_dump(mode="json"))
    ]


def take_flags(kind: type[Settings], arguments: Sequence[str]) -> None:
    """Put `--section.key value` (or `=value`) into the environment. Raises BadSettings."""
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        key = name.removeprefix("--")
        if not name.startswith("--") or "." not in key:
            raise BadSettings(f"{argument}: not an option; a setting is given as --section.key")
        if not equals:
            following = next(rest, None)
            if following is None:
                raise BadSettings(f"{name}: a value is missing")
            value = following
        os.environ[variable_of(kind, key)] = value


def variable_of(kind: type[Settings], key: str) -> str:
    """The environment variable that sets a dotted key."""
    return kind.model_config.get("env_prefix", "") + key.replace(".", NESTED).upper()


def explain(kind: type[BaseModel], error: ValidationError) -> str:
    """The first complaint as one line: key, what is wrong, what is allowed."""
    problem = error.errors(include_url=False)[0]
    location = [str(part) for part in problem["loc"] if part != "[key]"]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        return _unknown(f"key {key}", location[-1], _keys_beside(kind, location))
    if problem["type"] == "union_tag_invalid":
        tag, tags = problem["ctx"]["tag"], problem["ctx"]["expected_tags"].replace("'", "")
        return _unknown(f"{key} {tag!r}", tag, tags.split(", "))
    if problem["type"] == "missing":
        return f"key {key} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    if not key:
        return message
    if isinstance(problem["input"], dict):
        return f"{key}: {message}"
    return f"{key} = {problem['input']!r}: {message[:1].lower()}{message[1:]}"


def _read(kind: type[Settings], path: Path, missing: str) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadSettings(f"{path}: no such file; {missing}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BadSettings(f"{path}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise BadSettings(f"{path}: not TOML: {error}") from error
    _make_absolute(kind, table, path.parent.resolve())
    return table


def _make_absolute(kind: type[BaseModel], table: dict[str, Any], folder: Path) -> None:
    for name, field in kind.model_fields.items():
        value = table.get(name)
        if field.annotation is Path and isinstance(value, str):
            table[name] = str(folder / Path(value).expanduser())
        elif isinstance(value, dict):
            for inner in _tables_in(field.annotation):
                _make_absolute(inner, value, folder)


def _refuse_strange_variables(kind: type[Settings]) -> None:
    """pydantic-settings overlooks a variable whose first part names nothing."""
    prefix = kind.model_config.get("env_prefix", "")
    for variable in os.environ:
        if variable.upper().startswith(prefix):
            section = variable[len(prefix) :].split(NESTED)[0].lower()
            if section not in kind.model_fields:
                line = _unknown(f"key {section}", section, list(kind.model_fields))
                raise BadSettings(f"environment variable {variable}: {line}")


def _unknown(what: str, last: str, allowed: list[str]) -> str:
    near = difflib.get_close_matches(last, allowed, 1)
    meant = f"; did you mean {near[0]}?" if near else ";"
    return f"unknown {what}{meant} allowed here: {', '.join(allowed) or 'none'}"


def _keys_beside(kind: type[BaseModel], location: list[str]) -> list[str]:
    """The keys that are allowed in the table in which the last part of `location` stands."""
    tables: list[type[BaseModel]] = [kind]
    for part in location[:-1]:
        fields = [table.model_fields[part] for table in tables if part in table.model_fields]
        if fields:
            tables = [inner for field in fields for inner in _tables_in(field.annotation)]
        else:  # a name in a dictionary of tables, or the tag of one of several kinds of table
            tables = [table for table in tables if _is_tagged(table, part)] or tables
    return list(dict.fromkeys(name for table in tables for name in table.model_fields))


def _is_tagged(table: type[BaseModel], tag: str) -> bool:
    return any(
        get_origin(field.annotation) is Literal and tag in get_args(field.annotation)
        for field in table.model_fields.values()
    )


def _tables_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [table for part in get_args(annotation) for table in _tables_in(part)]


def _leaves(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def _origin(kind: type[Settings], key: str, table: Mapping[str, Any], path: Path) -> str:
    variable = variable_of(kind, key)
    if variable in {name.upper() for name in os.environ}:
        return f"${variable}"
    found: object = table
    for part in key.split("."):
        if not isinstance(found, dict):
            break  # a word that stands for a table
        if part not in found:
            return "default"
        found = found[part]
    return str(path)
