"""The names of Flower's internals that the coordinator needs, in one file, for one version.

A campaign is one run of the SuperLink, executed by Flower's own `flwr-serverapp`; our server app
(`server_process`) speaks to the robots through the public `Grid` alone (`fleet`). What is private
here is little: registering keys, starting the run, claiming its task.

The public commands for that were weighed. `flower-superexec` would claim the task, but it executes
the bundle of any run, and whoever reaches the loopback port may start one: here a task that is not
of our own run is never executed. `flwr supernode register` takes a process a key, and
`flwr supernode list` does not say which keys it knows.
"""

from __future__ import annotations

import hashlib
import io
import logging
import ssl
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points

import flwr
import httpx
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, StartRunRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import SuperExecAuthHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient

from coordinator.federation.errors import (
    FederationError,
    FlowerVersionError,
    SuperLinkRefused,
    SuperLinkUnreachable,
    unreachable,
)
from coordinator.federation.orders import SuperLinkAccess, canonical_key

FLWR_VERSION = "1.41.0"
if flwr.__version__ != FLWR_VERSION:
    raise FlowerVersionError(
        f"flwr {flwr.__version__} is installed; armada needs exactly {FLWR_VERSION} "
        f"(pip install flwr=={FLWR_VERSION})"
    )

ACQUIRE_METHOD = "/flwr.proto.Runtime/AcquireTask"
SERVER_APP = "coordinator.federation.server_process:app"

log = logging.getLogger(__name__)

# Robots never unpack it. On this side it names our installed server app, and holds no code.
BUNDLE_CONFIG = f"""\
[project]
name = "campaign"
version = "1"

[tool.flwr.app]
publisher = "armada"

[tool.flwr.app.components]
serverapp = "{SERVER_APP}"
clientapp = "armada.installed:app"
"""


def bundle() -> bytes:
    """A Flower app bundle: a configuration that Flower accepts, its hash, and no code at all."""
    config = BUNDLE_CONFIG.encode()
    content = f"pyproject.toml,{hashlib.sha256(config).hexdigest()},{8 * len(config)}"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("pyproject.toml"), config)
        archive.writestr(zipfile.ZipInfo(".info/CONTENT"), content)
    return buffer.getvalue()


def register_nodes(access: SuperLinkAccess, keys: Mapping[str, str]) -> dict[str, int]:
    """Register SuperNode keys by agent id; node id by agent id. Known keys keep their node.

    Raises SuperLinkUnreachable or SuperLinkRefused.
    """
    nodes: dict[str, int] = {}
    with _translated(access), _control(access) as control:
        known = {
            canonical_key(node.public_key): node.node_id
            for node in control.ListNodes(ListNodesRequest()).nodes_info
        }
        for agent_id, public_key in keys.items():
            pem = canonical_key(public_key)
            if pem in known:
                nodes[agent_id] = known[pem]
                continue
            request = RegisterNodeRequest(public_key=pem.encode(), name=agent_id)
            nodes[agent_id] = control.RegisterNode(request).node_id
    return nodes


def start_run(access: SuperLinkAccess) -> str:
    """Start a run of the SuperLink and claim its task: the token to execute it with.

    Tasks that a process left before it died are claimed on the way and dropped; the SuperLink
    closes them as failed when their heartbeat does not come. Raises SuperLinkUnreachable or
    SuperLinkRefused.
    """
    with _translated(access):
        with _control(access) as control:
            run_id = control.StartRun(StartRunRequest(fab={"content": bundle()})).run_id
        secret = SuperExecAuthHttpInterceptor(
            master_secret=access.secret.read_bytes(), protected_methods={ACQUIRE_METHOD}
        )
        request = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
        with RuntimeHttpClient.from_server_address(
            server_address=access.address,
            insecure=False,
            root_certificates=access.ca.read_bytes(),
            interceptors=[secret],
        ) as runtime:
            while True:
                response = runtime.AcquireTask(request)
                if not response.HasField("task"):
                    raise SuperLinkRefused(
                        f"SuperLink at {access.address} gave the task of run {run_id} away; "
                        "does another coordinator use it?"
                    )
                if response.task.run_id == run_id:
                    return str(response.token)
                log.warning("dropped the task of run %d: it is not ours", response.task.run_id)


def execute(access: SuperLinkAccess, token: str) -> None:
    """Be `flwr-serverapp`: run our server app in this process, then end it (SystemExit)."""
    (command,) = entry_points(group="console_scripts", name="flwr-serverapp")
    sys.argv = [
        command.name,
        "--runtime-api-address", access.address,
        "--root-certificates", str(access.ca),
        "--token", token,
    ]  # fmt: skip
    command.load()()


def _control(access: SuperLinkAccess) -> ControlHttpClient:
    return ControlHttpClient.from_server_address(
        server_address=access.address,
        insecure=False,
        root_certificates=access.ca.read_bytes(),
        interceptors=[],
    )


@contextmanager
def _translated(access: SuperLinkAccess) -> Iterator[None]:
    """Turns what Flower's HTTP client raises into one clear line."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        text = f"HTTP {status} {' '.join(error.response.text.split())[:200]}"
        if status == httpx.codes.UNAUTHORIZED:
            text += f"; is {access.secret} the secret the SuperLink was started with?"
        raise SuperLinkRefused(f"SuperLink at {access.address} refused: {text}") from error
    except (httpx.TransportError, ssl.SSLError) as error:
        if "certificate" in str(error).lower() or "ssl" in str(error).lower():
            raise SuperLinkUnreachable(
                f"TLS with the SuperLink at {access.address} failed: {error}; its certificate must "
                f"come from the authority in {access.ca}"
            ) from error
        raise unreachable(access.address, str(error) or type(error).__name__) from error
    except FileNotFoundError as error:
        raise FederationError(
            f"{error.filename} does not exist; run `armada coordinator init`"
        ) from error
