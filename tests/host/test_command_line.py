"""One command line: an exit status and one line for every way in which a command can end."""

from __future__ import annotations

import pytest
import typer

from host.command_line import INTERRUPTED, command_group, run_command_line


class Refused(Exception):
    pass


class NoTerminal(Refused, EOFError):
    """What click would take for the end of its own input."""


class WrongFile(Refused):
    pass


def ended_by(end: BaseException | None) -> int:
    app = command_group("A group.")

    @app.command()
    def walk() -> None:
        if end is not None:
            raise end

    @app.command()
    def rest() -> None: ...

    return run_command_line(app, "armada room", ["walk"], (Refused,), (WrongFile,))


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (None, 0),
        (typer.Exit(7), 7),
        (Refused("no"), 1),
        (NoTerminal("no"), 1),
        (WrongFile("no"), 2),
        (KeyboardInterrupt(), INTERRUPTED),
        (EOFError(), INTERRUPTED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_exit_status(
    capsys: pytest.CaptureFixture[str], end: BaseException | None, status: int
) -> None:
    assert ended_by(end) == status
    error = capsys.readouterr().err
    assert ("armada: no\n" in error) == isinstance(end, Refused)


def test_what_nobody_foresaw_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        ended_by(ZeroDivisionError())
