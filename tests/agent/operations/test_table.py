"""The table is the one list: all that is made of it agrees, and one more row is enough."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import typer
from fake_robot import FakeRobot, served, small_config

from agent.cli import make_app
from agent.client import AgentClient
from agent.config import load_config
from agent.control.arm_controller import ArmController
from agent.control.commands import Commands
from agent.control.policy_source import PolicySource
from agent.errors import BadArguments, Refused, UnknownOperation
from agent.operations.arguments import Arguments, Task
from agent.operations.operation import Operation
from agent.operations.sequences import begin_teleop
from agent.operations.state_machine import Event, State
from agent.operations.table import OPERATIONS, control_commands, operation_of
from agent.recording.session import RecordingSession


class Replay(Arguments):
    """Which episode."""

    episode: Task
    slowly: bool = False


REPLAY = Operation(
    "replay",
    "Play a recorded episode.",
    60.0,
    begin_teleop,
    arguments=Replay,
    event=Event.TELEOP_START,
    said=lambda reply: f"played {reply['frames']} frames",
)
ROWS = (*OPERATIONS, REPLAY)


class CommandsWithReplay(Commands):
    """What the row needs beside itself: the function that does it."""

    def replay(self, episode: str, slowly: bool) -> dict[str, Any]:
        return {"frames": len(episode), "slowly": slowly}


def commands_of(
    folder: Path, kind: type[Commands], rows: tuple[Operation, ...] = OPERATIONS
) -> Commands:
    config = load_config(small_config(folder))
    none = object()  # none of the parts is touched by what is tested here
    return kind(
        config,
        cast(ArmController, none),
        cast(RecordingSession, none),
        cast(PolicySource, none),
        operations=rows,
    )


@pytest.fixture
def robot(tmp_path: Path) -> Iterator[tuple[FakeRobot, Path]]:
    with served(tmp_path, ROWS) as (robot, path):
        robot.answer("replay", frames=3)
        yield robot, path


def test_one_more_row_gives_a_route_a_method_and_a_state_sequence(
    robot: tuple[FakeRobot, Path],
) -> None:
    fake, _ = robot
    with AgentClient(fake.config.agent_socket, operations=ROWS) as client:
        assert client.replay("abc", slowly=True)["frames"] == 3
        assert fake.told == ["teleop_start", "control:replay(episode=abc,slowly=True)"]
        assert fake.state is State.TELEOP
        with pytest.raises(BadArguments, match="episode"):
            client.replay()


def test_one_more_row_gives_a_command_of_the_command_line(
    robot: tuple[FakeRobot, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    fake, path = robot
    command = typer.main.get_command(make_app(ROWS))
    arguments = ["replay", "--episode", "abc", "--slowly", "--config", str(path)]
    command.main(arguments, standalone_mode=False)
    assert capsys.readouterr().out == "played 3 frames\n"
    assert fake.told[-1] == "control:replay(episode=abc,slowly=True)"


def test_one_more_row_gives_a_command_of_the_control_process(tmp_path: Path) -> None:
    commands = commands_of(tmp_path, CommandsWithReplay, ROWS)
    assert commands.run("replay", {"episode": "abc"}) == {"frames": 3, "slowly": False}
    with pytest.raises(BadArguments, match=r"episode: .*at most 500"):
        commands.run("replay", {"episode": "x" * 501})
    with pytest.raises(Refused, match="knows no command 'replay'"):
        commands_of(tmp_path, CommandsWithReplay).run("replay", {"episode": "abc"})


def test_the_control_process_can_do_every_command_of_the_table() -> None:
    for name, model in control_commands().items():
        method = getattr(Commands, name)
        taken = method.__code__.co_varnames[1 : method.__code__.co_argcount]
        assert set(taken) == set(model.model_fields), name


@pytest.mark.parametrize(
    ("name", "arguments", "line"),
    [
        ("run", {}, "knows no command 'run'"),  # a method, and no command
        ("__init__", {}, "knows no command"),
        ("park", {}, "energise: Field required"),
        ("park", {"energise": True, "faster": 1}, "faster"),
        ("estop", [], "body"),
        ("calibrate", {"arm": "third", "step": "homing"}, "arm"),
        ("rollout_start", {"seconds": 1e9}, "at most 120"),
        ("rollout_start", {"seconds": float("nan")}, "at most 120"),
        ("rollout_arm", {"folder": "x" * 5000, "policy": "7"}, "folder"),
    ],
)
def test_the_control_process_checks_what_it_is_sent(
    tmp_path: Path, name: str, arguments: Any, line: str
) -> None:
    with pytest.raises((BadArguments, Refused), match=line):
        commands_of(tmp_path, Commands).run(name, arguments)


def test_every_verb_and_path_is_there_once() -> None:
    assert len({row.verb for row in OPERATIONS}) == len(OPERATIONS)
    assert len({row.path for row in OPERATIONS}) == len(OPERATIONS)
    assert operation_of("teleop_start").path == "/v1/teleop/start"
    assert operation_of("park").path == "/v1/park"


def test_rows_that_share_a_command_agree_on_what_is_sent() -> None:
    for row in (row for row in OPERATIONS if row.commands_control):
        assert control_commands()[row.command] is (row.sent or row.arguments)


def test_an_unknown_verb_names_those_that_there_are() -> None:
    with pytest.raises(UnknownOperation, match="no operation 'dance'; there are: calibrate, "):
        operation_of("dance")
