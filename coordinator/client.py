"""The operator's side of the coordinator's HTTPS: its own certificate, its own authority."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import httpx

from coordinator.config import load_config
from coordinator.errors import CoordinatorError
from coordinator.identity.layout import Layout
from protocol.json_client import JsonClient
from protocol.messages import CommandWord

REQUEST_S = 10.0


class OperatorClient(JsonClient):
    """Speaks to the coordinator that runs in `folder`, with that folder's certificate.

    Every call raises CoordinatorError with one line when no coordinator answers, or when it
    answers with an error.
    """

    whom = "coordinator"
    unreachable = CoordinatorError
    failed = CoordinatorError

    def __init__(self, folder: Path) -> None:
        layout = Layout(folder)
        config = load_config(layout.root)
        context = ssl.create_default_context(cafile=str(layout.ca_certificate))
        context.load_cert_chain(layout.identity_certificate, layout.identity_key)
        host = f"[{config.host}]" if ":" in config.host else config.host
        base = f"https://{host}:{config.ports.https}"
        http = httpx.Client(base_url=base, verify=context, timeout=REQUEST_S, trust_env=False)
        super().__init__(http, base, f"start `armada coordinator run --dir {folder}`")

    def status(self) -> dict[str, Any]:
        """The document of `coordinator.server.status`."""
        return self.ask("GET", "/v1/status")

    def command(self, robot_id: str, word: CommandWord) -> None:
        """Ask one robot to pause, resume, roll_back or collect."""
        self.ask("POST", f"/v1/agents/{robot_id}/command", {"command": word})
