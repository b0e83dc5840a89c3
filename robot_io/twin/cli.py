"""``armada twin run``: a wire-level twin of an SO-101 follower and leader."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from host.logs import set_up_logging

DEFAULT_CAMERA = "overhead:128x96@30"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="armada twin", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a twin until SIGTERM or Ctrl-C")
    run.add_argument("--dir", type=Path, required=True, help="folder of ports, socket and EEPROM")
    run.add_argument("--seed", type=int, default=0, help="how the arms were assembled (default 0)")
    run.add_argument(
        "--camera",
        action="append",
        default=[],
        metavar="NAME:WxH@FPS",
        help=f"overhead or wrist_cam, may be repeated (default {DEFAULT_CAMERA})",
    )
    run.add_argument(
        "--bus-timing", action="store_true", help="answers take the time that the wire would"
    )
    run.add_argument(
        "--usb-latency-ms", type=float, default=0.0, help="delay of the USB adapter (default 0)"
    )
    run.add_argument("--verbose", action="store_true")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 after an orderly end, 1 with one line on stderr otherwise."""
    arguments = _parser().parse_args(argv)
    set_up_logging(logging.INFO if arguments.verbose else logging.WARNING)
    try:
        # Imported here, so that a missing extra is one clear line.
        from robot_io.twin import launcher
        from robot_io.twin.errors import TwinError
        from robot_io.twin.scene import parse_camera
    except ModuleNotFoundError as error:
        print(f"armada twin: {error.name} is not installed; install armada[twin]", file=sys.stderr)
        return 1
    try:
        cameras = tuple(parse_camera(text) for text in arguments.camera or [DEFAULT_CAMERA])
        if not 0 <= arguments.usb_latency_ms <= 100:
            raise TwinError("--usb-latency-ms must be within 0..100")
        launcher.run(
            launcher.TwinConfig(
                arguments.dir.resolve(),
                arguments.seed,
                cameras,
                arguments.bus_timing,
                arguments.usb_latency_ms / 1000,
            )
        )
    except (TwinError, OSError) as error:
        print(f"armada twin: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
