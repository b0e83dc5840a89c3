"""`armada agent run`: the lock, the socket, the API and the supervisor in one asyncio loop."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
from pathlib import Path
from typing import IO

from agent.child.process_row import ProcessRow
from agent.config import AgentConfig
from agent.errors import AgentError
from agent.supervisor.api import bind_socket, build_app, make_server
from agent.supervisor.supervisor import Supervisor
from host.notify import Notifier

log = logging.getLogger(__name__)


class AlreadyRunning(AgentError, BlockingIOError):
    """Another agent uses the same state folder."""


class StateFolderError(AgentError, OSError):
    """The state folder cannot be used."""


def take_lock(run_dir: Path) -> IO[str]:
    """The state folder for this process alone, until the file is closed or the process dies.

    Raises AlreadyRunning, StateFolderError.
    """
    path = run_dir / "agent.lock"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = path.open("a+")
    except OSError as error:
        raise StateFolderError(
            f"paths.state_dir {run_dir.parent} cannot be used: {error.strerror}"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise AlreadyRunning(
            f"another agent (pid {holder}) already uses {run_dir.parent}; "
            "end it first, or give this one another paths.state_dir"
        ) from error
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def run_agent(
    config: AgentConfig, config_path: Path, rows: tuple[ProcessRow, ...] | None = None
) -> None:
    """Run until SIGTERM or SIGINT. Raises AlreadyRunning, StateFolderError."""
    lock = take_lock(config.run_dir)
    try:
        asyncio.run(_serve(config, config_path.resolve(), rows))
    finally:
        lock.close()


async def _serve(
    config: AgentConfig, config_path: Path, rows: tuple[ProcessRow, ...] | None
) -> None:
    supervisor = Supervisor(config, config_path, rows, Notifier.from_environment())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.request_stop)
    try:
        listener = bind_socket(config.agent_socket)
    except OSError as error:
        raise StateFolderError(f"{config.agent_socket}: {error.strerror}") from error
    server = make_server(build_app(supervisor))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    log.info("agent %s, pid %d, listens at %s", config.robot.id, os.getpid(), config.agent_socket)
    try:
        await supervisor.run()
    finally:
        server.should_exit = True
        await serving
        config.agent_socket.unlink(missing_ok=True)
