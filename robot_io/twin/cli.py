"""``armada twin run``: a wire-level twin of an SO-101 follower and leader."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from host.command_line import command_group, run_command_line
from host.logs import set_up_logging
from robot_io.twin.errors import TwinError

DEFAULT_CAMERA = "overhead:128x96@30"

app = command_group(
    help="A wire-level twin of an SO-101 follower and leader.",
)


@app.callback()
def _twin() -> None:
    """Keeps `run` a command of its own, although it is the only one."""


@app.command()
def run(
    folder: Annotated[Path, typer.Option("--dir", help="folder of ports, socket and EEPROM")],
    seed: Annotated[int, typer.Option(help="how the arms were assembled")] = 0,
    camera: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:WxH@FPS",
            help=f"overhead or wrist_cam, may be repeated (default {DEFAULT_CAMERA})",
        ),
    ] = None,
    task: Annotated[str, typer.Option(help="of the twin; an unknown name lists them")] = "lift",
    robot_seed: Annotated[
        int | None,
        typer.Option(min=0, help="give this robot light, table, cubes and camera of its own"),
    ] = None,
    bus_timing: Annotated[
        bool, typer.Option("--bus-timing", help="answers take the time that the wire would")
    ] = False,
    usb_latency_ms: Annotated[float, typer.Option(help="delay of the USB adapter, 0 to 100")] = 0.0,
    verbose: Annotated[bool, typer.Option("--verbose")] = False,
) -> None:
    """Run a twin until SIGTERM or Ctrl-C."""
    set_up_logging(logging.INFO if verbose else logging.WARNING)
    try:
        # Imported here, so that a missing extra is one clear line.
        from robot_io.twin import launcher
        from robot_io.twin.scene import parse_camera
        from robot_io.twin.tasks import task_named
    except ModuleNotFoundError as error:
        raise TwinError(f"{error.name} is not installed; install armada[twin]") from error
    if not 0 <= usb_latency_ms <= 100:
        raise TwinError("--usb-latency-ms must be within 0..100")
    launcher.run(
        launcher.TwinConfig(
            folder.resolve(),
            seed,
            tuple(parse_camera(text) for text in camera or [DEFAULT_CAMERA]),
            bus_timing,
            usb_latency_ms / 1000,
            task_named(task),
            robot_seed,
        )
    )


def main(argv: Sequence[str]) -> int:
    """Run the command; 0 after an orderly end, 1 with one line on stderr otherwise."""
    return run_command_line(app, "armada twin", argv, (TwinError, OSError))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
