"""The process of a policy on trial that only predicts: `python -m agent.inference.shadow`.

As agent.inference.process, at a socket of its own.
"""

from __future__ import annotations

from pathlib import Path

from agent.child.entry import run_as_child
from agent.child.link import ChildLink
from agent.config import AgentConfig
from agent.inference.process import serve_at


def serve(config: AgentConfig, _path: Path, link: ChildLink) -> None:
    """Serve until the supervisor is gone. Raises LinkClosed."""
    serve_at(config.shadow_socket, config, link)


if __name__ == "__main__":
    run_as_child(serve)
