"""Flower's SuperNode as a child that tells what its connection does:
`python -m agent.federation.supernode_process ARGS…`.

It is the stock `flower-supernode`, with two seams. Its connection is wrapped to report the node's
id, and to look for messages every PULL_PERIOD_S: Flower does so every 3 s and has no option for
it, and a round waits for two of them. Its retries are watched, since they see each error and each
success of a call. What is told goes up the link: `connected` with the node's id, `trouble` with
its kind, `well` when a call succeeds again.
"""

from __future__ import annotations

import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Any, Literal

import httpx

from agent.child.link import ChildLink
from agent.errors import LinkClosed

PULL_PERIOD_S = 1.0
# What a proxy before a SuperLink that is down answers.
NOBODY_BEHIND = (
    httpx.codes.BAD_GATEWAY,
    httpx.codes.SERVICE_UNAVAILABLE,
    httpx.codes.GATEWAY_TIMEOUT,
)

Trouble = Literal["silence", "certificate", "tls", "unknown", "refused"]


def trouble_of(error: BaseException) -> Trouble | None:
    """What an error of a call to the SuperLink means; None if it is about one run alone.

    silence: nobody answers. certificate: it is of another authority. tls: other faults of TLS.
    unknown: the key is not registered, or the clocks differ. refused: any other refusal.
    """
    if isinstance(error, httpx.HTTPStatusError):
        match error.response.status_code:
            case httpx.codes.FORBIDDEN:
                return None  # the run is over
            case httpx.codes.UNAUTHORIZED | httpx.codes.PRECONDITION_FAILED:
                return "unknown"
            case status if status in NOBODY_BEHIND:
                return "silence"
            case _:
                return "refused"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return "certificate"
        if isinstance(cause, ssl.SSLError):
            return "tls"
        cause = cause.__cause__ or cause.__context__
    return "silence" if isinstance(error, httpx.TransportError) else "refused"


class Reporter:
    """Sends what changed, and nothing twice."""

    def __init__(self, send: Callable[..., None]) -> None:
        self._send = send
        self._trouble: Trouble | None = None

    def connected(self, node_id: int) -> None:
        self._send("connected", node_id=node_id)

    def failed(self, error: BaseException) -> None:
        trouble = trouble_of(error)
        if trouble is not None and trouble != self._trouble:
            self._trouble = trouble
            detail = str(error) or type(error).__name__
            if isinstance(error, httpx.HTTPStatusError):
                detail = f"HTTP {error.response.status_code} {error.response.text}"
            self._send("trouble", trouble=trouble, detail=" ".join(detail.split())[:200])

    def succeeded(self) -> None:
        if self._trouble is not None:
            self._trouble = None
            self._send("well")


def watched(make_invoker: Callable[[], Any], reporter: Reporter) -> Callable[[], Any]:
    """Flower's maker of retry invokers, with a reporter that sees each error and success."""

    def make() -> Any:
        invoker = make_invoker()
        should_giveup, on_success = invoker.should_giveup, invoker.on_success

        def seen_error(error: Exception) -> bool:
            reporter.failed(error)
            return should_giveup(error)

        def seen_success(state: Any) -> None:
            reporter.succeeded()
            on_success(state)

        invoker.should_giveup, invoker.on_success = seen_error, seen_success
        return invoker

    return make


def attentive(connect: Callable[..., Any], reporter: Reporter) -> Callable[..., Any]:
    """Flower's connection, reporting the node's id, and pulling until there is a message."""

    @contextmanager
    def connection(*args: Any, **kwargs: Any) -> Iterator[Any]:
        try:
            with connect(*args, **kwargs) as (node_id, receive, *others):
                reporter.connected(node_id)

                def receive_next() -> Any:
                    while (message := receive()) is None:
                        time.sleep(PULL_PERIOD_S)
                    return message

                yield node_id, receive_next, *others
        except SystemExit as leaving:  # Flower leaves so when it cannot join
            if leaving.__context__ is not None:
                reporter.failed(leaving.__context__)
            raise

    return connection


def run_supernode(arguments: list[str], reporter: Reporter) -> None:
    """Be Flower's SuperNode, with the two seams, until it ends."""
    from flwr.supernode import fleet_http_connection, start_client_internal

    fleet_http_connection.make_simple_http_retry_invoker = watched(
        fleet_http_connection.make_simple_http_retry_invoker, reporter
    )
    start_client_internal.http_request_response = attentive(
        start_client_internal.http_request_response, reporter
    )
    (command,) = entry_points(group="console_scripts", name="flower-supernode")
    sys.argv = [command.name, *arguments]
    command.load()()


def main(arguments: list[str]) -> None:
    """Be the SuperNode, and report to whoever holds the other end of the link."""
    link = ChildLink.from_environment()

    def send(kind: str, **fields: Any) -> None:
        try:
            link.send(kind, **fields)
        except LinkClosed:
            sys.exit(0)

    run_supernode(arguments, Reporter(send))


if __name__ == "__main__":
    main(sys.argv[1:])
