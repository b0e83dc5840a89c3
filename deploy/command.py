"""The one command line, `armada`: finds the room that a command belongs to and hands over.

Rooms are imported only when their command runs, so that `armada status` does not pay for torch,
and a coordinator's machine needs no serial driver.
"""

from __future__ import annotations

import importlib
import sys

ROOMS = {
    "agent": ("agent.cli", "agent run: the daemon on a robot host"),
    "record": ("agent.cli", "record teleoperated episodes"),
    "rollout": ("agent.cli", "let a released policy drive the arm"),
    "status": ("agent.cli", "what the agent on this host is doing"),
    "setup": ("agent.cli", "setup calibrate: teach the agent an arm's joints"),
    "doctor": ("agent.cli", "check this host, one line a finding"),
    "park": ("agent.cli", "bring the follower to its rest pose"),
    "estop": ("agent.cli", "stop now and hold"),
    "reset": ("agent.cli", "leave fault or emergency stop; parks"),
    "config": ("deploy.configuration", "show and check agent.toml and coordinator.toml"),
    "coordinator": ("coordinator.cli", "init, enrol, superlink, run, status"),
    "twin": ("robot_io.twin.cli", "a wire-level twin of an SO-101 leader and follower"),
    "demo": ("deploy.local_fleet.cli", "a whole fleet on this machine"),
}

# Rooms whose own parser has no level for the name of the room.
STRIPPED = {"config", "coordinator", "twin", "demo"}


def usage() -> str:
    """The help text: one line a command."""
    width = max(map(len, ROOMS))
    lines = [f"  {name:<{width}}  {what}" for name, (_, what) in ROOMS.items()]
    return "usage: armada COMMAND ...\n\n" + "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status (2 for a command that does not exist)."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        sys.stdout.write(usage())
        return 0 if arguments else 2
    name = arguments[0]
    if name not in ROOMS:
        sys.stderr.write(
            f"armada: no command {name!r}; there are: {', '.join(ROOMS)} (armada --help)\n"
        )
        return 2
    room = importlib.import_module(ROOMS[name][0])
    status: int = room.main(arguments[1:] if name in STRIPPED else arguments)
    return status


if __name__ == "__main__":
    sys.exit(main())
