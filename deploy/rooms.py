"""The one command line, `armada`: finds the room that a command belongs to and hands over.

A room is imported only when its command runs, so that `armada status` does not pay for torch and
a coordinator's machine needs no serial driver.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any

import click
import typer
from click.shell_completion import CompletionItem
from typer.core import TyperGroup

from host.command_line import run_command_line


@dataclass(frozen=True)
class Room:
    """A module with `main(argv)`, which returns the exit status, and `app`, what is completed.

    Without a name the commands of its app stand at the top; it must be cheap to import.
    """

    module: str
    name: str | None = None
    help: str = ""


ROOMS = (
    Room("agent.cli"),
    Room("deploy.configuration", "config", "Show and check agent.toml and coordinator.toml."),
    Room("coordinator.cli", "coordinator", "Init, enrol, superlink, run, status."),
    Room("deploy.closed_loop.cli", "trials", "Try a policy in the twin, faster than real time."),
    Room("robot_io.twin.cli", "twin", "A wire-level twin of an SO-101 leader and follower."),
    Room("deploy.local_fleet.cli", "demo", "A whole fleet on this machine."),
)


class HandedOver(click.Command):
    """A command of a room, which takes all the arguments as they are."""

    def __init__(self, name: str, room: Room) -> None:
        super().__init__(name)
        self.room = room

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Leave them to the room."""
        ctx.args = args
        return []

    def invoke(self, ctx: click.Context) -> Any:
        """Import the room and run it."""
        above = [] if self.room.name is not None else [str(self.name)]
        main = importlib.import_module(self.room.module).main
        raise typer.Exit(main([*above, *ctx.args]))


class Rooms(TyperGroup):
    """The commands of all rooms."""

    rooms: tuple[Room, ...] = ROOMS

    def rows(self) -> Iterator[tuple[str, Room, str]]:
        """Name, room and help of each command; imports no room that has a name."""
        for room in self.rooms:
            if room.name is not None:
                yield room.name, room, room.help
                continue
            for name, command in _commands(room).items():
                yield name, room, command.get_short_help_str(80)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names."""
        return [name for name, _, _ in self.rows()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name; to complete its arguments, the room's own."""
        named = (room for room in self.rooms if room.name == cmd_name)
        room = next(named, None) or next((r for n, r, _ in self.rows() if n == cmd_name), None)
        if room is None:
            return None
        if not ctx.resilient_parsing:
            return HandedOver(cmd_name, room)
        return _app(room) if room.name is not None else _commands(room)[cmd_name]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does; an unknown name is told of with those that there are."""
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as error:
            names = self.list_commands(ctx)
            near = get_close_matches(args[0], names, n=1)
            meant = f", did you mean {near[0]!r}?" if near else ""
            line = f"no command {args[0]!r}{meant}; there are: {', '.join(names)}"
            raise click.UsageError(line, ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One line a command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, _, text in self.rows()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The commands that begin so, then the options."""
        begin = [(name, text) for name, _, text in self.rows() if name.startswith(incomplete)]
        found = [CompletionItem(name, help=text) for name, text in begin]
        return found + click.Command.shell_complete(self, ctx, incomplete)


def _app(room: Room) -> click.Command:
    return typer.main.get_command(importlib.import_module(room.module).app)


def _commands(room: Room) -> Mapping[str, click.Command]:
    group = _app(room)
    assert isinstance(group, click.Group)  # only such a room has no name
    return group.commands


app = typer.Typer(cls=Rooms, no_args_is_help=True, rich_markup_mode=None)


def _say_version(wanted: bool) -> None:
    if wanted:
        print(f"armada {importlib.metadata.version('armada')}")
        raise typer.Exit


@app.callback()
def armada(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """One policy learned by a fleet of arms, while nobody's video leaves the building."""


def run(arguments: list[str]) -> int:
    """Run one command; returns its exit status: 2 for wrong usage, with one line on stderr."""
    if arguments[:1] == ["help"]:
        arguments = ["--help"]
    return run_command_line(app, "armada", arguments, ())
