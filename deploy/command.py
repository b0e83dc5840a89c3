"""The command line's door: the emergency stop goes through at once, all else to the rooms.

Importing typer and the agent's client takes longer than an arm may move on.
"""

from __future__ import annotations

import sys

from agent.quick_stop import stop


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit status: 2 for wrong usage, with one line on stderr."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["estop"]:
        line = stop(arguments[1:])
        if line is not None:
            sys.stdout.write(f"{line}\n")
            return 0
    from deploy.rooms import run  # whatever was not said above, it says at length

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
