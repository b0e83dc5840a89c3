"""The two Flower processes beside an agent: the SuperNode and our client, started and watched.

`SuperNode` belongs to one thread of one process: the kernel ends the children when the thread that
started them ends (PR_SET_PDEATHSIG), so start it from the thread that lives longest. Nothing here
waits for the network; `poll` looks, starts again what died (after a pause that doubles), and says
in one line what is wrong.
"""

from __future__ import annotations

import logging
import secrets
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from agent.child.link import LINK_FD, ParentLink
from agent.errors import LinkClosed
from agent.federation.errors import SuperNodeFailed
from host.children import ChildProcess, end_all, module_command, spawn
from host.files import write_durable
from host.restarts import Backoff, RestartTimer
from protocol.bundle import Bundle

LOOPBACK = "127.0.0.1"
SECRET_BYTES = 32
BACKOFF = Backoff(first_s=1.0, last_s=30.0, steady_s=60.0)
STOP_GRACE_S = 3.0
# No calls home, no installs, one thread; large arrays go back to the system when freed.
FLOWER_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "1048576",
}

State = Literal["stopped", "connecting", "connected", "failed"]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SuperNodeStatus:
    """What `poll` found. `error` is one line, and None while all is well."""

    state: State
    node_id: int | None = None
    error: str | None = None
    restarts: int = 0


@dataclass(frozen=True)
class SuperLinkConnection:
    """What the SuperNode's process told of its connection so far (see `supernode_process`)."""

    node_id: int | None = None
    trouble: str | None = None
    detail: str = ""

    def after(self, message: Mapping[str, Any]) -> SuperLinkConnection:
        """With one more message of its link."""
        match message:
            case {"kind": "connected", "node_id": int(node_id)}:
                return SuperLinkConnection(node_id)
            case {"kind": "trouble", "trouble": str(trouble), "detail": str(detail)}:
                return replace(self, trouble=trouble, detail=detail)
            case {"kind": "well"}:
                return SuperLinkConnection(self.node_id)
        return self

    def error(self, bundle: Bundle) -> str | None:
        """The one line for the operator, if there is trouble."""
        address = bundle.info.superlink.address
        match self.trouble:
            case None:
                return None
            case "silence":
                return f"no SuperLink answers at {address}; trying again"
            case "certificate":
                return (
                    f"TLS with the SuperLink at {address} failed: its certificate is not from the "
                    f"authority in {bundle.ca}; enrol this robot with that coordinator"
                )
            case "tls":
                return f"TLS with the SuperLink at {address} failed; see the SuperNode's log"
            case "unknown":
                return (
                    f"the SuperLink at {address} does not know this robot's key, or the clocks "
                    "differ by more than 5 s; enrol the robot, or set its clock"
                )
        return f"the SuperNode cannot join the SuperLink at {address}: {self.detail}"


@dataclass
class _Children:
    node: ChildProcess
    client: ChildProcess
    link: ParentLink
    started_s: float
    connection: SuperLinkConnection = SuperLinkConnection()

    def listen(self) -> None:
        try:
            for message in self.link.receive_all():
                self.connection = self.connection.after(message)
        except LinkClosed:
            pass  # its process has ended, which `poll` sees


class SuperNode:
    """Flower's SuperNode with the bundle's identity, and the client app that answers for it.

    folder: private to this object: Flower's home, the logs, and the secret between the two.
    exchange: the TrainingExchange's folder.
    """

    def __init__(
        self,
        bundle: Bundle,
        folder: Path,
        exchange: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bundle = bundle
        self._folder = folder
        self._exchange = exchange
        self._clock = clock
        self._children: _Children | None = None
        self._wanted = False
        self._timer = RestartTimer(BACKOFF)
        self._restarts = 0
        self._error: str | None = None

    def start(self) -> None:
        """Start both processes; no wait. Raises SuperNodeFailed if they cannot be started."""
        self._wanted = True
        if self._children is None:
            self._launch()

    def stop(self) -> None:
        """End both processes, by force after STOP_GRACE_S. Safe to call twice."""
        self._wanted = False
        self._error = None
        self._end_children()

    def poll(self) -> SuperNodeStatus:
        """Look after the processes: call it every second or so."""
        now_s = self._clock()
        children = self._children
        if children is None:
            if not self._wanted:
                return SuperNodeStatus("stopped", restarts=self._restarts)
            if self._timer.due(now_s):
                self._restarts += 1
                self._launch()
                return SuperNodeStatus("connecting", None, self._error, self._restarts)
            return SuperNodeStatus("failed", None, self._error, self._restarts)
        ended = children.node.poll() is not None or children.client.poll() is not None
        children.listen()  # after the look: what a process said last is heard
        connection = children.connection
        if ended:
            self._error = self._why_it_ended(children)
            log.warning("%s", self._error)
            self._end_children()
            lived_s = 0.0 if connection.node_id is None else now_s - children.started_s
            self._timer.died(now_s, lived_s)
            return SuperNodeStatus("failed", None, self._error, self._restarts)
        error = connection.error(self._bundle)
        if connection.node_id is None:
            return SuperNodeStatus("connecting", None, self._error or error, self._restarts)
        self._error = None
        state: State = "connected" if error is None else "connecting"
        return SuperNodeStatus(state, connection.node_id, error, self._restarts)

    @property
    def pids(self) -> tuple[int, int] | None:
        """Process ids of the SuperNode and of our client, while they run."""
        children = self._children
        return None if children is None else (children.node.pid, children.client.pid)

    @property
    def _node_log(self) -> Path:
        return self._folder / "supernode.log"

    @property
    def _client_log(self) -> Path:
        return self._folder / "client.log"

    def _launch(self) -> None:
        # Flower is imported by the children alone.
        self._folder.mkdir(parents=True, exist_ok=True)
        secret = self._folder / "tasks.secret"
        write_durable(secret, secrets.token_bytes(SECRET_BYTES), mode=0o600)
        port = _free_port()
        environment = FLOWER_ENVIRONMENT | {"FLWR_HOME": str(self._folder.absolute())}
        node_command = module_command(
            "agent.federation.supernode_process",
            "--superlink", self._bundle.info.superlink.address,
            "--root-certificates", str(self._bundle.ca.absolute()),
            "--auth-supernode-private-key", str(self._bundle.supernode_key.absolute()),
            "--isolation", "process",
            "--host", LOOPBACK,
            "--port", str(port),
            "--superexec-auth-secret-file", str(secret.absolute()),
            death_signal=signal.SIGTERM,
        )  # fmt: skip
        client_command = module_command(
            "agent.federation.client_app",
            "--runtime", f"{LOOPBACK}:{port}",
            "--secret", str(secret.absolute()),
            "--exchange", str(self._exchange.absolute()),
            death_signal=signal.SIGTERM,
        )  # fmt: skip
        link = ParentLink()
        try:
            node = spawn(
                node_command,
                log=self._node_log,
                environment=environment | {LINK_FD: str(link.child_fd())},
                pass_fds=[link.child_fd()],
            )
            try:
                client = spawn(client_command, log=self._client_log, environment=environment)
            except OSError:
                node.kill()
                node.wait()
                raise
        except OSError as error:
            link.close()
            raise SuperNodeFailed(f"SuperNode cannot be started: {error}") from error
        link.close_child_end()
        self._children = _Children(node, client, link, self._clock())

    def _why_it_ended(self, children: _Children) -> str:
        if children.client.poll() is not None and children.node.poll() is None:
            return f"the Flower client ended: {children.client.exit_words}; see {self._client_log}"
        trouble = children.connection.error(self._bundle)
        return trouble or f"the SuperNode ended: {children.node.exit_words}; see {self._node_log}"

    def _end_children(self) -> None:
        children, self._children = self._children, None
        if children is not None:
            end_all([children.client, children.node], STOP_GRACE_S)
            children.link.close()


def _free_port() -> int:
    """A loopback port that is free now; taken a moment later, the SuperNode is started again."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
