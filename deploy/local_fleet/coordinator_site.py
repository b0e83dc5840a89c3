"""The coordinator's machine in the local fleet: own CA, mosquitto, SuperLink, coordinator."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tomllib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from coordinator.client import OperatorClient
from deploy.local_fleet.errors import LocalFleetError
from deploy.local_fleet.processes import ARMADA, ProcessGroup


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on; all held at once, so that they differ."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def mosquitto_binary() -> str:
    """Debian keeps the broker in /usr/sbin, which is on no ordinary user's PATH."""
    found = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if found is None:
        raise LocalFleetError("mosquitto is not installed: run 'make install'")
    return found


@dataclass
class CoordinatorSite:
    """The server's folder and its three processes."""

    folder: Path
    group: ProcessGroup
    settings: dict[str, dict[str, Any]]
    _client: OperatorClient | None = None

    def prepare(self, robot_bundles: dict[str, Path]) -> None:
        """Make the CA, the servers' certificates, and one enrolment for each robot."""
        mqtt, superlink, https = free_ports(3)
        self._run("init", "--dir", str(self.folder), "--host", "127.0.0.1",
                  "--mqtt-port", str(mqtt), "--superlink-port", str(superlink),
                  "--https-port", str(https))  # fmt: skip
        path = self.folder / "coordinator.toml"
        path.write_text(with_settings(path.read_text(), self.settings))
        for robot_id, bundle in robot_bundles.items():
            self._run("enrol", robot_id, "--dir", str(self.folder), "--out", str(bundle))

    def start(self) -> None:
        """Start broker, SuperLink and coordinator: the commands that the units start."""
        mosquitto_config = self.folder / "mosquitto" / "mosquitto.conf"
        self.group.start("mosquitto", [mosquitto_binary(), "-c", str(mosquitto_config)])
        self.group.start(
            "superlink", [*ARMADA, "coordinator", "superlink", "--dir", str(self.folder)]
        )
        self.group.start("coordinator", [*ARMADA, "coordinator", "run", "--dir", str(self.folder)])

    def status(self) -> dict[str, Any]:
        """The coordinator's own account of the campaign, as any operator gets it."""
        if self._client is None:
            self._client = OperatorClient(self.folder)
        return self._client.status()

    def audit_log(self) -> bytes:
        """The coordinator's record of all that it decided, as it lies on the disk."""
        return (self.folder / "state" / "audit.jsonl").read_bytes()

    def _run(self, *arguments: str) -> None:
        done = subprocess.run(
            [*ARMADA, "coordinator", *arguments], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise LocalFleetError(f"armada coordinator {arguments[0]}: {done.stderr.strip()}")


def with_settings(toml: str, settings: dict[str, dict[str, Any]]) -> str:
    """Set values in a configuration, table by table; its owner checks the keys."""
    document = tomllib.loads(toml)
    for table, values in settings.items():
        document.setdefault(table, {}).update(values)
    return tomli_w.dumps(document)
