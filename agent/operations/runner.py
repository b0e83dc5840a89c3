"""Runs operations one at a time; the emergency stop waits for nobody."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from agent.errors import AgentError, OperationFailed
from agent.operations.arguments import Arguments
from agent.operations.operation import Operation, Reply, Robot
from agent.operations.sequences import QUICK_S

log = logging.getLogger(__name__)


class OperationRunner:
    """Whatever is asked of one robot goes through its one runner."""

    def __init__(self, robot: Robot) -> None:
        self._robot = robot
        self._one_at_a_time = asyncio.Lock()

    async def run(self, operation: Operation, arguments: Arguments) -> Reply:
        """Do it. Raises AgentError with one line; OperationFailed for what nobody foresaw."""
        waits = self._one_at_a_time if operation.alone else contextlib.nullcontext()
        async with waits:
            try:
                return await operation.sequence(operation, self._robot, arguments)
            except AgentError:
                raise
            except Exception as error:
                log.exception("%s failed", operation.verb)
                why = " ".join(str(error).split())
                line = f"{operation.verb} failed: {type(error).__name__}: {why}"
                if operation.commands_control:
                    await self._hold(line)
                raise OperationFailed(f"{line}; see the agent's log") from error

    async def _hold(self, line: str) -> None:
        """Nobody knows how far it came: a fault, and the arm held where it is, until a reset."""
        self._robot.fault(line)
        try:
            await self._robot.command("estop", QUICK_S, release=False)
        except Exception:
            log.exception("the control process could not be told to hold")
