"""The operator's side of the coordinator's HTTPS: its own certificate, its own authority."""

from __future__ import annotations

import ssl
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from coordinator.config import load_config
from coordinator.errors import CoordinatorError
from coordinator.identity.layout import Layout

REQUEST_S = 10.0


class OperatorClient:
    """Speaks to the coordinator that runs in `folder`, with that folder's certificate.

    Every call raises CoordinatorError with one line when no coordinator answers, or when it
    answers with an error.
    """

    def __init__(self, folder: Path) -> None:
        layout = Layout(folder)
        config = load_config(layout.root)
        context = ssl.create_default_context(cafile=str(layout.ca_certificate))
        context.load_cert_chain(layout.identity_certificate, layout.identity_key)
        host = f"[{config.host}]" if ":" in config.host else config.host
        base = f"https://{host}:{config.ports.https}"
        self._http = httpx.Client(base_url=base, verify=context, timeout=REQUEST_S, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def status(self) -> dict[str, Any]:
        """The document of `coordinator.server.status`."""
        return self._ask("GET", "/v1/status")

    def command(self, robot_id: str, word: str) -> None:
        """Ask one robot to pause, resume, roll_back or collect."""
        self._ask("POST", f"/v1/agents/{robot_id}/command", word)

    def _ask(self, method: str, path: str, content: str = "") -> dict[str, Any]:
        try:
            reply = self._http.request(method, path, content=content)
            document: dict[str, Any] = reply.json()
        except (httpx.HTTPError, ValueError) as error:
            raise CoordinatorError(
                f"no coordinator answers at {self._http.base_url} ({error}); is `run` running?"
            ) from error
        if reply.status_code != httpx.codes.OK:
            raise CoordinatorError(str(document.get("error", reply.status_code)))
        return document
