"""HTTPS with client certificates: releases for the fleet, status for the coordinator's operator.

    GET  /v1/releases/<version>/<file>   any certificate of this authority; ranges are served
    GET  /v1/status                      the coordinator's own certificate only
    POST /v1/agents/<id>/command         the coordinator's own certificate only

The peer's CN comes from the TLS layer, never from a header.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from coordinator.errors import CoordinatorError
from coordinator.identity.layout import Layout
from coordinator.releases import ReleaseRepository
from host.complaints import first_complaint
from host.threads import OnCrash, spawn
from protocol.messages import CommandWord
from protocol.topics import COORDINATOR_IDENTITY

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 4096
START_S = 10.0

Commander = Callable[[str, CommandWord], str | None]
Handler = Callable[[Request], Awaitable[Response]]


class CommandRequest(BaseModel):
    """Body of POST /v1/agents/<id>/command."""

    model_config = ConfigDict(extra="forbid")

    command: CommandWord


class PeerProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, with the CN of the client's certificate as `request.state.peer`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        self.app_state = {**self.app_state, "peer": _common_name(transport)}
        super().connection_made(transport)


def _common_name(transport: asyncio.Transport) -> str | None:
    certificate = transport.get_extra_info("peercert") or {}
    for part in certificate.get("subject", ()):
        for key, value in part:
            if key == "commonName":
                return str(value)
    return None


def make_app(
    repository: ReleaseRepository, snapshot: Callable[[], bytes], command: Commander
) -> Starlette:
    """The application; `command` returns why a command could not be sent, or None."""

    async def status(request: Request) -> Response:
        return _operator_only(request) or Response(snapshot(), media_type="application/json")

    async def release(request: Request) -> Response:
        path = repository.find(request.path_params["version"], request.path_params["name"])
        if path is None:
            return JSONResponse({"error": "no such file in any release"}, 404)
        return FileResponse(path)

    async def post_command(request: Request) -> Response:
        refused = _operator_only(request)
        if refused is not None:
            return refused
        body = await request.body()
        if len(body) > MAX_BODY_BYTES:
            return JSONResponse({"error": "the request is too long"}, 413)
        try:
            asked = CommandRequest.model_validate_json(body)
        except ValidationError as error:
            return JSONResponse({"error": first_complaint(error, "request")}, 400)
        why_not = await asyncio.to_thread(command, request.path_params["agent_id"], asked.command)
        if why_not is not None:
            return JSONResponse({"error": why_not}, 409)
        return JSONResponse({"ok": True})

    return Starlette(
        routes=[
            Route("/v1/status", status),
            Route("/v1/releases/{version:int}/{name:str}", release),
            Route("/v1/agents/{agent_id:str}/command", post_command, methods=["POST"]),
        ]
    )


def _operator_only(request: Request) -> Response | None:
    if request.state.peer == COORDINATOR_IDENTITY:
        return None
    return JSONResponse({"error": "this needs the coordinator's own certificate"}, 403)


class HttpsServer:
    """uvicorn on its own thread."""

    def __init__(self, layout: Layout, host: str, port: int, app: Any, on_crash: OnCrash) -> None:
        self._address = (host, port)
        self._socket: socket.socket | None = None
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=PeerProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=2,
                ssl_certfile=layout.server_certificate,
                ssl_keyfile=layout.server_key,
                ssl_ca_certs=str(layout.ca_certificate),
                ssl_cert_reqs=ssl.CERT_REQUIRED,
            )
        )
        self._on_crash = on_crash
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Bind, then serve. Raises CoordinatorError when the port is not to be had."""
        host, port = self._address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(self._address)
            # Listening now, so that a second server finds the port taken and a client waits.
            listener.listen()
        except OSError as error:
            listener.close()
            raise CoordinatorError(
                f"HTTPS port {host}:{port}: {error.strerror}; change ports.https or stop the other"
            ) from error
        self._socket = listener
        self._thread = spawn("https", self._run, self._on_crash)

    def stop(self) -> None:
        """Stop serving; at most a few seconds."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(5.0)
        if self._socket is not None:
            self._socket.close()

    def _run(self) -> None:
        assert self._socket is not None
        self._server.run(sockets=[self._socket])
