"""Speaks to a running agent over its Unix socket."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx

from agent.errors import AgentUnreachable, BadArguments, RequestFailed
from agent.operations.operation import Operation
from agent.operations.table import OPERATIONS, operation_of
from protocol.json_client import JsonClient

TIMEOUT_S = 120.0  # loading a policy on a small host is the slowest answer


class AgentClient(JsonClient):
    """One method an operation, made from `agent.operations.table`; each returns the reply's fields.

    `client.record_start(task="…")`, or `client.record_start("…")` in the order of the row's fields.
    Before anything is sent they raise UnknownOperation and BadArguments; then AgentClientError:
    AgentUnreachable when no agent answers, RequestFailed with the agent's own line.
    """

    whom = "agent"
    unreachable = AgentUnreachable
    failed = RequestFailed

    def __init__(
        self,
        socket_path: Path,
        timeout_s: float = TIMEOUT_S,
        operations: Iterable[Operation] = OPERATIONS,
    ) -> None:
        http = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(socket_path)),
            base_url="http://agent",
            timeout=timeout_s,
        )
        super().__init__(http, str(socket_path), "start it by `armada agent run --config FILE`")
        self._operations = tuple(operations)

    def __getattr__(self, verb: str) -> Callable[..., dict[str, Any]]:
        if verb.startswith("_"):
            raise AttributeError(verb)  # of an object half made, or asked for by a library
        operation = operation_of(verb, self._operations)

        def call(*positional: Any, **named: Any) -> dict[str, Any]:
            fields = _fields(operation, positional, named)
            operation.arguments.parse(fields)
            return self.post(operation.path, **fields)

        return call

    def status(self) -> dict[str, Any]:
        """GET /v1/status."""
        return self.ask("GET", "/v1/status")

    def post(self, path: str, **fields: Any) -> dict[str, Any]:
        """POST to `path`, unchecked."""
        return self.ask("POST", path, fields)


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
