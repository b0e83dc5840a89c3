"""Speaks to a running agent over its Unix socket."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from agent.errors import AgentUnreachable, BadArguments, RequestFailed
from agent.operations.operation import Operation
from agent.operations.table import OPERATIONS, operation_of

TIMEOUT_S = 120.0  # loading a policy on a small host is the slowest answer


class AgentClient:
    """One method an operation, made from `agent.operations.table`; each returns the reply's fields.

    `client.record_start(task="…")`, or `client.record_start("…")` in the order of the row's fields.
    Before anything is sent they raise UnknownOperation and BadArguments; then AgentClientError:
    AgentUnreachable when no agent answers, RequestFailed with the agent's own line.
    """

    def __init__(
        self,
        socket_path: Path,
        timeout_s: float = TIMEOUT_S,
        operations: Iterable[Operation] = OPERATIONS,
    ) -> None:
        self._socket_path = socket_path
        self._operations = tuple(operations)
        self._http = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(socket_path)),
            base_url="http://agent",
            timeout=timeout_s,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __getattr__(self, verb: str) -> Callable[..., dict[str, Any]]:
        if verb.startswith("_"):
            raise AttributeError(verb)  # of an object half made, or asked for by a library
        operation = operation_of(verb, self._operations)

        def call(*positional: Any, **named: Any) -> dict[str, Any]:
            fields = _fields(operation, positional, named)
            operation.arguments.parse(fields)
            return self.post(operation.path, **fields)

        return call

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def status(self) -> dict[str, Any]:
        """GET /v1/status."""
        return self._call("GET", "/v1/status", None)

    def post(self, path: str, **fields: Any) -> dict[str, Any]:
        """POST to `path`, unchecked."""
        return self._call("POST", path, fields)

    def _call(self, method: str, path: str, fields: dict[str, Any] | None) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, json=fields)
        except httpx.TimeoutException as error:
            raise AgentUnreachable(
                f"the agent at {self._socket_path} did not answer {path} in time"
            ) from error
        except httpx.TransportError as error:
            raise AgentUnreachable(
                f"no agent answers at {self._socket_path} ({error}); "
                "start it by `armada agent run --config FILE`"
            ) from error
        try:
            reply = response.json()
        except ValueError as error:
            raise RequestFailed(
                f"{path}: the agent answered {response.status_code} without JSON"
            ) from error
        if response.is_error or not isinstance(reply, dict):
            line = reply.get("error") if isinstance(reply, dict) else None
            raise RequestFailed(str(line or f"{path}: the agent answered {response.status_code}"))
        return reply


def _fields(
    operation: Operation, positional: tuple[Any, ...], named: dict[str, Any]
) -> dict[str, Any]:
    """All by name. Raises BadArguments for too many, or one given twice."""
    names = list(operation.arguments.model_fields)
    by_place = dict(zip(names, positional, strict=False))
    twice = by_place.keys() & named.keys()
    if len(positional) > len(names) or twice:
        wrong = f"{min(twice)} is given twice" if twice else f"{len(positional)} are too many"
        raise BadArguments(f"{operation.verb}: {wrong} (fields: {', '.join(names) or 'none'})")
    return by_place | named
