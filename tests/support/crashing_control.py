"""The control process with a bug in one of its threads: `CONFIG PLACE`."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

from agent.child.entry import serve_as_child
from agent.child.link import ChildLink
from agent.control import process
from agent.control.commands import Commands
from agent.control.loop import MotionLoop
from agent.inference.channel import PolicyChannel
from agent.recording.journal import EpisodeWriter
from robot_io.cameras import Camera

PLACES: dict[str, tuple[Any, str]] = {
    "loop": (MotionLoop, "tick"),
    "command": (Commands, "park"),
    "journal": (EpisodeWriter, "append"),
    "link-in": (ChildLink, "receive"),
    "channel": (PolicyChannel, "_accept"),
    "opener": (Camera, "open"),
    "camera": (Camera, "_capture"),
}


def bug(*_: object, **__: object) -> NoReturn:
    raise TypeError("a bug")


if __name__ == "__main__":
    owner, name = PLACES[sys.argv[2]]
    setattr(owner, name, bug)
    sys.exit(serve_as_child(process.serve, ["--config", sys.argv[1]]))
