"""A typer application as one command of ours: an exit status, and one line for what went wrong."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click
import typer
from click.exceptions import NoArgsIsHelpError

INTERRUPTED = 130  # 128 + SIGINT
typer.core.HAS_RICH = False  # else typer escapes the brackets of plain help, too


def command_group(help: str | None = None) -> typer.Typer:
    """A group of commands in our manner: plain text, no traceback with the values of variables.

    Completion is installed for `armada` as a whole.
    """
    return typer.Typer(
        help=help,
        no_args_is_help=help is not None,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )


def run_command_line(
    app: typer.Typer,
    name: str,
    arguments: Sequence[str],
    refusals: tuple[type[Exception], ...],
    wrong: tuple[type[Exception], ...] = (),
) -> int:
    """Run `name` with `arguments`; the exit status.

    0 success; 1 with one line on stderr for an error in `refusals`; 2 for wrong usage, and for an
    error in `wrong`; what the command itself gave by typer.Exit; 130 after Ctrl-C. Anything else is
    a fault, and is raised.
    """
    command = typer.main.get_command(app)
    try:
        status = command.main(args=list(arguments), prog_name=name, standalone_mode=False)
    except NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.UsageError as error:
        where = name if error.ctx is None else error.ctx.command_path
        line = " ".join(error.format_message().split())
        sys.stderr.write(f"{where}: {line} ({where} --help says more)\n")
        return error.exit_code
    except click.Abort as error:  # made of an EOFError, which may be one of ours
        cause = error.__cause__
        if cause is not None and isinstance(cause, (*wrong, *refusals)):
            return _refused(name, cause, wrong)
        return INTERRUPTED
    except (*wrong, *refusals) as error:
        return _refused(name, error, wrong)
    return int(status or 0)


def _refused(name: str, error: BaseException, wrong: tuple[type[Exception], ...]) -> int:
    sys.stderr.write(f"{name.split()[0]}: {error}\n")
    return 2 if isinstance(error, wrong) else 1
