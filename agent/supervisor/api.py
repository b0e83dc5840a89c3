"""The agent's API: JSON over HTTP on a Unix socket, for the command line, the page and the demo.

    GET  /v1/status
    POST /v1/<verb>     one for each row of `agent.operations.table`, `_` of the verb being `/`:
                        POST /v1/record/start {"task": "…"}

Replies are {"ok": true, …}, or {"error": "one clear line"}: 400 for a request that is wrong in
itself, 404 for an unknown path, 409 for one that does not fit the present state, 500 for a fault
that nobody foresaw, which the status names.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any, Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from agent.errors import AgentError, BadArguments, OperationFailed
from agent.operations.operation import Operation, Robot
from agent.operations.runner import OperationRunner
from agent.operations.table import OPERATIONS

MAX_BODY_BYTES = 64 << 10
BACKLOG = 16


class ServedRobot(Robot, Protocol):
    """What the API speaks for: the supervisor, or a test's stand-in."""

    def status(self) -> dict[str, Any]:
        """The body of GET /v1/status."""


def build_app(robot: ServedRobot, operations: Iterable[Operation] = OPERATIONS) -> Starlette:
    """One route an operation, and the status."""
    runner = OperationRunner(robot)

    async def status(_: Request) -> Response:
        return JSONResponse(robot.status())

    def post(operation: Operation) -> Route:
        async def handle(request: Request) -> Response:
            try:
                arguments = operation.arguments.parse(await _body(request))
            except BadArguments as error:
                return _error(400, str(error))
            try:
                reply = await runner.run(operation, arguments)
            except AgentError as error:
                return _error(500 if isinstance(error, OperationFailed) else 409, str(error))
            return JSONResponse({"ok": True, "state": robot.state.value, **reply})

        return Route(operation.path, handle, methods=["POST"])

    return Starlette(
        routes=[Route("/v1/status", status, methods=["GET"]), *map(post, operations)],
        exception_handlers={
            HTTPException: _no_such_call,
            ClientDisconnect: _gone,
            Exception: _unforeseen,
        },
    )


async def _body(request: Request) -> bytes:
    """Raises BadArguments for one that is too long."""
    raw = b""
    async for piece in request.stream():
        raw += piece
        if len(raw) > MAX_BODY_BYTES:
            raise BadArguments(f"the request is longer than {MAX_BODY_BYTES} bytes")
    return raw


async def _no_such_call(request: Request, error: Exception) -> Response:
    code = error.status_code if isinstance(error, HTTPException) else 500
    return _error(code, f"{request.method} {request.url.path}: no such call")


async def _gone(request: Request, error: Exception) -> Response:
    return _error(400, "the caller hung up before the request was whole")


async def _unforeseen(request: Request, error: Exception) -> Response:
    """Outside of an operation; the server logs the trace."""
    line = f"{request.url.path} failed: {type(error).__name__}: {error}"
    return _error(500, f"{line}; see the agent's log")


def _error(code: int, line: str) -> Response:
    return JSONResponse({"ok": False, "error": line}, status_code=code)


class ApiServer(uvicorn.Server):
    """uvicorn inside the supervisor's loop; signals stay the supervisor's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave the signal handlers alone."""
        yield


def make_server(app: Starlette) -> ApiServer:
    """A server that logs its troubles alone and closes quickly."""
    return ApiServer(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=1,
        )
    )


def bind_socket(path: Path) -> socket.socket:
    """Listen at `path` for the owner and the group alone.

    An old file is replaced: the agent's lock has made sure that nobody listens there any more.
    Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o660)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener
