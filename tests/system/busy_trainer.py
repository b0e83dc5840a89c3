"""Stands where the trainer stands and does nothing but use its CPU, in a child too."""

from __future__ import annotations

import os
import signal
import time

from agent.child.link import ChildLink
from host.launch import bind_to_parent


def main() -> None:
    """Burn CPU in two processes of one group, heartbeats from the first."""
    parent = os.getpid()
    if os.fork() == 0:
        bind_to_parent(parent, signal.SIGKILL)
        while True:
            sum(range(10_000))
    link = ChildLink.from_environment()
    while True:
        until_s = time.monotonic() + 0.1
        while time.monotonic() < until_s:
            sum(range(10_000))
        link.heartbeat()


if __name__ == "__main__":
    main()
