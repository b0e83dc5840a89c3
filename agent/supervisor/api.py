"""The agent's API: JSON over HTTP on a Unix socket, for the command line, the page and the demo.

    GET  /v1/status
    POST /v1/calibrate        {"arm": "follower"|"leader",
                               "step": "homing"|"range_start"|"range_finish"}
    POST /v1/teleop/start|stop
    POST /v1/record/start     {"task": "…"}
    POST /v1/record/finish|discard
    POST /v1/rollout/arm      {"policy": "active"|"local"|version}
    POST /v1/rollout/start    {"seconds": 20, "task": "…", "record": false}
    POST /v1/rollout/stop|disarm
    POST /v1/park | /v1/estop {"release": false} | /v1/reset

Replies are {"ok": true, …}, or a 4xx with {"error": "one clear line"}: 400 for a request that is
wrong in itself, 404 for an unknown path, 409 for one that does not fit the present state.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from agent.errors import AgentError
from agent.supervisor.operations import Arm, CalibrationStep, Operations
from agent.supervisor.supervisor import Supervisor

MAX_BODY_BYTES = 64 << 10
BACKLOG = 16


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Nothing(_Body):
    """A request without fields."""


class Calibrate(_Body):
    """One step of calibrating one arm."""

    arm: Arm
    step: CalibrationStep


class RecordStart(_Body):
    """What the episode shows, in words."""

    task: Annotated[str, Field(min_length=1, max_length=500)]


class RolloutArm(_Body):
    """Which policy."""

    policy: Annotated[str, Field(min_length=1, max_length=64)] = "active"


class RolloutStart(_Body):
    """One episode."""

    seconds: float
    task: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    record: bool = False


class Estop(_Body):
    """With `release` the torque is taken away: the arm falls."""

    release: bool = False


Handler = Callable[[Request], Awaitable[Response]]


def build_app(supervisor: Supervisor, operations: Operations) -> Starlette:
    """The routes of the module's docstring."""
    do = operations

    async def status(_: Request) -> Response:
        return JSONResponse(supervisor.status())

    def post[B: _Body](path: str, model: type[B], call: Callable[[B], Awaitable[Any]]) -> Route:
        async def handle(request: Request) -> Response:
            try:
                body = await _read(request, model)
            except ValueError as error:
                return _error(400, str(error))
            try:
                result = await call(body)
            except AgentError as error:
                return _error(409, str(error))
            return JSONResponse({"ok": True, "state": supervisor.state.value, **result})

        return Route(path, handle, methods=["POST"])

    routes = [
        Route("/v1/status", status, methods=["GET"]),
        post("/v1/calibrate", Calibrate, lambda body: do.calibrate(body.arm, body.step)),
        post("/v1/teleop/start", Nothing, lambda _: do.teleop_start()),
        post("/v1/teleop/stop", Nothing, lambda _: do.teleop_stop()),
        post("/v1/record/start", RecordStart, lambda body: do.record_start(body.task)),
        post("/v1/record/finish", Nothing, lambda _: do.record_finish()),
        post("/v1/record/discard", Nothing, lambda _: do.record_discard()),
        post("/v1/rollout/arm", RolloutArm, lambda body: do.rollout_arm(body.policy)),
        post(
            "/v1/rollout/start",
            RolloutStart,
            lambda body: do.rollout_start(body.seconds, body.task, body.record),
        ),
        post("/v1/rollout/stop", Nothing, lambda _: do.rollout_stop()),
        post("/v1/rollout/disarm", Nothing, lambda _: do.rollout_disarm()),
        post("/v1/park", Nothing, lambda _: do.park()),
        post("/v1/estop", Estop, lambda body: do.estop(body.release)),
        post("/v1/reset", Nothing, lambda _: do.reset()),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _http_error})


async def _http_error(request: Request, error: Exception) -> Response:
    code = error.status_code if isinstance(error, HTTPException) else 500
    return _error(code, f"{request.method} {request.url.path}: no such call")


async def _read[B: _Body](request: Request, model: type[B]) -> B:
    """The body under its model. Raises ValueError with one line."""
    raw = b""
    async for piece in request.stream():
        raw += piece
        if len(raw) > MAX_BODY_BYTES:
            raise ValueError(f"the request is longer than {MAX_BODY_BYTES} bytes")
    try:
        return model.model_validate(json.loads(raw) if raw else {})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in problem["loc"]) or "body"
        allowed = ", ".join(model.model_fields) or "none"
        raise ValueError(f"{key}: {problem['msg']} (fields: {allowed})") from error
    except ValueError as error:
        raise ValueError(f"the request is not JSON: {error}") from error


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
