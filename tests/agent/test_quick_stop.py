"""The emergency stop that imports nothing: it stops, or leaves it to the whole command."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_robot import FakeRobot, served, small_config

from agent.config import load_config
from agent.operations.state_machine import State
from agent.quick_stop import STOPPED, stop
from deploy.command import main

HEAVY = ("typer", "click", "pydantic", "httpx", "numpy", "pathlib", "tomllib", "json", "asyncio")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[tuple[FakeRobot, Path]]:
    with served(tmp_path) as (robot, path):
        yield robot, path


@pytest.mark.parametrize("release", [False, True])
def test_it_stops_as_the_command_does(host: tuple[FakeRobot, Path], release: bool) -> None:
    robot, path = host
    options = ["--config", str(path), *(["--release"] if release else [])]
    assert stop(options) == STOPPED
    assert robot.told == ["estop", f"control:estop(release={release})"]
    assert robot.state is State.ESTOP
    assert main(["estop", *options]) == 0


def test_the_configuration_may_come_from_the_environment(
    host: tuple[FakeRobot, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARMADA_CONFIG", str(host[1]))
    assert stop([]) == STOPPED
    monkeypatch.setenv("ARMADA_CONFIG", "/nowhere/agent.toml")
    assert stop([]) is None
    monkeypatch.setenv("armada_agent_paths__state_dir", str(host[0].config.state_dir))
    assert stop([]) == STOPPED


@pytest.mark.parametrize("options", [["--help"], ["--json"], ["--relaese"], ["--config"], ["now"]])
def test_an_option_that_it_does_not_know_is_for_the_whole_command(
    host: tuple[FakeRobot, Path], options: list[str]
) -> None:
    assert stop(["--config", str(host[1]), *options]) is None
    assert host[0].told == []


def test_a_refusal_and_no_answer_are_for_the_whole_command(
    host: tuple[FakeRobot, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    robot, path = host
    robot.refuse("estop")
    assert stop(["--config", str(path)]) is None
    assert main(["estop", "--config", str(path)]) == 1
    assert "control says no" in capsys.readouterr().err
    alone = tmp_path / "alone"
    alone.mkdir()
    assert stop(["--config", str(small_config(alone))]) is None


@pytest.mark.parametrize(
    "line",
    [
        'state_dir = "s"',
        "state_dir='s'",
        '  state_dir   =   "a b/s"  ',
        'state_dir = "/tmp/elsewhere"',
        'state_dir = "s" # where',
        'state_dir = "~/s"',
        'state_dir = "\\u0073"',
    ],
)
def test_it_finds_the_socket_where_the_configuration_has_it_or_does_not_guess(
    tmp_path: Path, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(f'[robot]\nport = "/dev/x"\n[paths]\n{line}\n')
    asked: list[str] = []
    monkeypatch.setattr("agent.quick_stop._asked", lambda at, release: bool(asked.append(at)))
    stop(["--config", str(path)])
    assert asked in ([], [str(load_config(path).agent_socket)])
    assert len(asked) == (not {"#", "~", "\\"} & set(line))


def test_it_imports_next_to_nothing() -> None:
    code = f"import sys, deploy.command; print([m for m in {HEAVY} if m in sys.modules])"
    command = [sys.executable, "-S", "-c", code]  # -S: what a .pth file imports is not ours
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
