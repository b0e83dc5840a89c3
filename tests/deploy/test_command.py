"""`armada` hands each command to its room, and says what there is when there is none."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import types

import pytest
import typer

from deploy.command import main
from deploy.rooms import ROOMS, Room, Rooms

TOP = ["agent", "record", "rollout", "status", "setup", "doctor", "park", "estop", "reset"]
NAMES = [*TOP, "config", "coordinator", "trials", "twin", "demo"]
HEAVY = ("torch", "lerobot", "flwr", "onnxruntime", "mujoco", "cv2", "uvicorn")


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.module)
def test_every_room_exists_with_a_main_and_an_app(room: Room) -> None:
    module = importlib.import_module(room.module)
    assert callable(module.main)
    assert isinstance(module.app, typer.Typer)


def test_an_unknown_command_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recrod"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "recrod" in error and "did you mean 'record'" in error
    assert all(name in error for name in NAMES)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["record"], "armada record: Missing option '--task'"),
        (["record", "--task", "t", "--bogus"], "--bogus"),
        (["record", "--task", "t", "--episodes", "x"], "'x' is not a valid int"),
        (["setup", "calibrate", "--arm", "third"], "is not one of 'follower', 'leader'"),
        (["agent", "run", "--confg", "x"], "--confg: not an option"),
        (["park", "now"], "unexpected extra argument (now)"),
        (["status", "--config", "/nowhere/agent.toml"], "/nowhere/agent.toml: no such file"),
    ],
)
def test_wrong_usage_is_one_clear_line_and_exit_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(arguments) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1
    assert words in error


@pytest.mark.parametrize("arguments", [["--help"], ["help"]])
def test_help_names_every_command(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in NAMES)


@pytest.mark.parametrize(
    ("arguments", "names"), [([], NAMES), (["agent"], ["run"]), (["setup"], ["calibrate"])]
)
def test_no_command_at_all_is_wrong_usage_and_shows_the_help(
    capsys: pytest.CaptureFixture[str], arguments: list[str], names: list[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert all(f"\n  {name} " in error for name in names)


def test_help_of_a_command_is_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["record", "--help"]) == 0
    text = capsys.readouterr().out
    assert "[required]" in text and "\\[" not in text  # typer escapes them where rich is on
    for option in ("--task", "--num-episodes", "--episode-time-s", "--reset-time-s", "--json"):
        assert option in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("armada 0.")


def test_interrupted_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("agent.cli.load_config", interrupted)
    assert main(["status"]) == 130


def imported_by(code: str) -> set[str]:
    show = "print(json.dumps([name for name in sys.argv[1:] if name in sys.modules]))"
    code = f"import json, sys\n{code}\n{show}"
    command = [sys.executable, "-c", code, *HEAVY, "coordinator.cli", "agent.cli"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_status_pays_for_no_other_room() -> None:
    code = "from deploy.command import main\nmain(['status', '--config', '/nowhere'])"
    assert imported_by(code) == {"agent.cli"}


def test_the_list_of_commands_pays_for_no_room_with_a_name() -> None:
    assert imported_by("from deploy.command import main\nmain(['--help'])") == {"agent.cli"}


def test_a_room_with_a_name_does_not_import_the_agent() -> None:
    code = "from deploy.command import main\ntry: main(['coordinator', '--help'])\n"
    assert "agent.cli" not in imported_by(code + "except SystemExit: pass")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("armada ro", ["rollout"]),
        ("armada coo", ["coordinator"]),
        ("armada coordinator en", ["enrol"]),
        ("armada setup ca", ["calibrate"]),
        ("armada setup calibrate --arm ", ["follower", "leader"]),
    ],
)
def test_the_shell_completes_commands_and_options(words: str, found: list[str]) -> None:
    environment = {
        "_ARMADA_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
        "PYTHONPATH": ":".join(sys.path),
    }
    code = "from deploy.command import main; main([])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.stdout.split() == found


def room_of(monkeypatch: pytest.MonkeyPatch, **contents: object) -> None:
    module = types.ModuleType("a_room")
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, "a_room", module)
    monkeypatch.setattr(Rooms, "rooms", (*ROOMS, Room("a_room", "room", "what it is")))


def test_one_more_room_is_one_row_and_gets_all_its_arguments(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[list[str]] = []
    room_of(monkeypatch, main=lambda argv: given.append(argv) or 7)
    arguments = ["walk", "--help", "--deep", "3", "-x", "--", "--json"]
    assert main(["room", *arguments]) == 7
    assert given == [arguments]
    assert main(["--help"]) == 0
    assert "what it is" in capsys.readouterr().out
