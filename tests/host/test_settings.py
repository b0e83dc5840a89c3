"""Configuration out of a file, the environment and flags; what is wrong is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from host.settings import (
    BadSettings,
    Settings,
    Table,
    load_settings,
    settings_in_force,
    take_flags,
)


class Loop(Table):
    """A table."""

    fps: float = Field(default=30.0, gt=0)
    """Rate."""


class Round(Table):
    name: Literal["round"]
    size: int = 1


class Square(Table):
    name: Literal["square"]
    width: int = 1


class Example(Settings):
    """A whole file."""

    model_config = SettingsConfigDict(env_prefix="EXAMPLE_")

    loop: Loop = Loop()
    cameras: dict[str, Loop] = Field(default_factory=dict)
    shape: Round | Square | None = Field(default=None, discriminator="name")
    folder: Path | None = None
    state: Path = Path("state")


def load(path: Path, text: str) -> Example:
    path.write_text(text)
    return load_settings(Example, path, "write it")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "example.toml"


def test_a_variable_wins_over_the_file_and_the_file_over_the_default(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load(file, "").loop.fps == 30.0
    assert load(file, "[loop]\nfps = 40\n").loop.fps == 40.0
    monkeypatch.setenv("EXAMPLE_LOOP__FPS", "50")
    assert load(file, "[loop]\nfps = 40\n").loop.fps == 50.0


def test_a_variable_adds_to_a_table_of_the_file_and_takes_nothing_from_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXAMPLE_CAMERAS__WRIST__FPS", "60")
    cameras = load(file, "[cameras.top]\nfps = 10\n").cameras
    assert {name: camera.fps for name, camera in cameras.items()} == {"top": 10.0, "wrist": 60.0}


def test_a_flag_wins_over_all_and_reaches_child_processes(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXAMPLE_LOOP__FPS", "50")
    take_flags(Example, ["--loop.fps", "60"])
    assert load(file, "[loop]\nfps = 40\n").loop.fps == 60.0
    take_flags(Example, ["--loop.fps=70"])
    assert load(file, "").loop.fps == 70.0


@pytest.mark.parametrize("arguments", [["--fps", "3"], ["loop.fps", "3"], ["--loop.fps"]])
def test_what_is_no_flag_is_refused(arguments: list[str]) -> None:
    with pytest.raises(BadSettings):
        take_flags(Example, arguments)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[lop]\n", "unknown key lop; did you mean loop? allowed here: loop, cameras"),
        ("[loop]\nfsp = 1\n", "unknown key loop.fsp; did you mean fps? allowed here: fps"),
        ("[loop]\nzzzz = 1\n", "unknown key loop.zzzz; allowed here: fps"),
        ("[cameras.top]\nfp = 1\n", "unknown key cameras.top.fp; did you mean fps?"),
        (
            '[shape]\nname = "square"\nwidht = 2\n',
            "unknown key shape.square.widht; did you mean width? allowed here: name, width",
        ),
        ("[loop]\nfps = 0\n", "loop.fps = 0: input should be greater than 0"),
        ("loop = 1 1\n", "not TOML"),
    ],
)
def test_the_line_names_the_key_the_nearest_known_one_and_what_is_allowed(
    file: Path, text: str, line: str
) -> None:
    with pytest.raises(BadSettings) as caught:
        load(file, text)
    assert line in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("variable", ["EXAMPLE_LOP__FPS", "EXAMPLE_LOOP__FSP"])
def test_a_misspelt_variable_is_refused_like_a_misspelt_key(
    file: Path, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "50")
    with pytest.raises(BadSettings, match="did you mean"):
        load(file, "")


def test_relative_paths_of_the_file_lie_beside_it(file: Path) -> None:
    assert load(file, 'state = "s"\n').state == file.parent / "s"


def test_a_file_that_is_not_there_says_how_to_come_by_it(file: Path) -> None:
    with pytest.raises(BadSettings, match="no such file; write it"):
        load_settings(Example, file, "write it")


def test_each_value_tells_where_it_comes_from(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("[cameras.top]\nfps = 10\n")
    monkeypatch.setenv("EXAMPLE_LOOP__FPS", "50")
    origins = {each.key: each.origin for each in settings_in_force(Example, file, "")}
    assert origins["loop.fps"] == "$EXAMPLE_LOOP__FPS"
    assert origins["cameras.top.fps"] == str(file)
    assert origins["state"] == "default"
