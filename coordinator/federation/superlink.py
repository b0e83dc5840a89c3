"""The SuperLink's command line and environment, and how our own processes reach it.

Always on loopback: Flower's node authentication does not cover its Control API, where anybody who
can connect may start a run. Robots on other hosts come through a reverse proxy that passes the
fleet calls alone. Task requests need the secret that only the coordinator's folder holds.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

from coordinator.config import CoordinatorConfig
from coordinator.federation.orders import SuperLinkAccess
from coordinator.identity.layout import Layout
from host.files import write_durable

LOOPBACK = "127.0.0.1"
SECRET_BYTES = 32
FLOWER_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONUNBUFFERED": "1",
    # Large arrays go back to the system when freed; else each thread keeps some, round by round.
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "1048576",
}


def superlink_folder(folder: Path) -> Path:
    """Where the SuperLink keeps its database, home and secret, under the coordinator's folder."""
    return folder / "superlink"


def superlink_access(folder: Path, config: CoordinatorConfig) -> SuperLinkAccess:
    """Address, CA and secret for the coordinator's rounds; makes the secret if there is none."""
    home = superlink_folder(folder)
    secret = home / "tasks.secret"
    if not secret.exists():
        write_durable(secret, secrets.token_bytes(SECRET_BYTES), mode=0o600)
    return SuperLinkAccess(
        address=f"{LOOPBACK}:{config.ports.superlink}",
        ca=Layout(folder).ca_certificate.absolute(),
        secret=secret.absolute(),
        home=(home / "rounds").absolute(),
    )


def superlink_command(folder: Path, config: CoordinatorConfig) -> tuple[list[str], dict[str, str]]:
    """Arguments and full environment to exec as the SuperLink."""
    access = superlink_access(folder, config)
    layout = Layout(folder)
    home = superlink_folder(folder).absolute()
    arguments = [
        str(Path(sys.executable).with_name("flower-superlink")),
        "--host", LOOPBACK,
        "--port", str(config.ports.superlink),
        "--ssl-ca-certfile", str(layout.ca_certificate.absolute()),
        "--ssl-certfile", str(layout.server_certificate.absolute()),
        "--ssl-keyfile", str(layout.server_key.absolute()),
        "--enable-supernode-auth",
        "--isolation", "process",
        "--superexec-auth-secret-file", str(access.secret),
        "--database", str(home / "superlink.db"),
        "--disable-runtime-dependency-installation",
    ]  # fmt: skip
    return arguments, {**os.environ, **FLOWER_ENVIRONMENT, "FLWR_HOME": str(home)}
