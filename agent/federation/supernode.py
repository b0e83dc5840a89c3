"""The two Flower processes beside an agent: the SuperNode and our client, started and watched.

`SuperNode` belongs to one thread of one process: the kernel ends the children when the thread that
started them ends (PR_SET_PDEATHSIG), so start it from the thread that lives longest. Nothing here
waits for the network; `poll` looks, starts again what died (after a pause that doubles), and says
in one line what is wrong.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from agent.child.link import LINK_FD, ParentLink
from agent.errors import LinkClosed
from agent.federation.errors import SuperNodeFailed
from host.files import write_durable
from protocol.bundle import Bundle

LOOPBACK = "127.0.0.1"
SECRET_BYTES = 32
BACKOFF_FIRST_S = 1.0
BACKOFF_LIMIT_S = 30.0
STEADY_S = 60.0  # connected as long as this, the pauses start from the first again
STOP_GRACE_S = 3.0
MAX_LOG_BYTES = 8 << 20

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
class Connection:
    """What the SuperNode's process told of its connection so far (see `supernode_process`)."""

    node_id: int | None = None
    trouble: str | None = None
    detail: str = ""

    def after(self, message: Mapping[str, Any]) -> Connection:
        """With one more message of its link."""
        match message:
            case {"kind": "connected", "node_id": int(node_id)}:
                return Connection(node_id)
            case {"kind": "trouble", "trouble": str(trouble), "detail": str(detail)}:
                return replace(self, trouble=trouble, detail=detail)
            case {"kind": "well"}:
                return Connection(self.node_id)
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
    node: subprocess.Popen[bytes]
    client: subprocess.Popen[bytes]
    link: ParentLink
    started_s: float
    connection: Connection = Connection()

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
        self._retry_at_s = 0.0
        self._backoff_s = BACKOFF_FIRST_S
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
            if now_s >= self._retry_at_s:
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
            self._retry_at_s = now_s + self._backoff_s
            self._backoff_s = min(self._backoff_s * 2, BACKOFF_LIMIT_S)
            return SuperNodeStatus("failed", None, self._error, self._restarts)
        error = connection.error(self._bundle)
        if connection.node_id is None:
            return SuperNodeStatus("connecting", None, self._error or error, self._restarts)
        if now_s - children.started_s > STEADY_S:
            self._backoff_s = BACKOFF_FIRST_S
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

    def _launch(self) -> None:
        # Flower is imported by the children alone; its runtime file only says how to call them.
        self._folder.mkdir(parents=True, exist_ok=True)
        secret = self._folder / "tasks.secret"
        write_durable(secret, secrets.token_bytes(SECRET_BYTES), mode=0o600)
        port = _free_port()
        environment = _environment(self._folder)
        node_command = [
            sys.executable, "-m", "agent.federation.supernode_process", str(os.getpid()),
            "--superlink", self._bundle.info.superlink.address,
            "--root-certificates", str(self._bundle.ca.absolute()),
            "--auth-supernode-private-key", str(self._bundle.supernode_key.absolute()),
            "--isolation", "process",
            "--host", LOOPBACK,
            "--port", str(port),
            "--superexec-auth-secret-file", str(secret.absolute()),
        ]  # fmt: skip
        client_command = [
            sys.executable, "-m", "agent.federation.client_app",
            "--runtime", f"{LOOPBACK}:{port}",
            "--secret", str(secret.absolute()),
            "--exchange", str(self._exchange.absolute()),
            "--parent", str(os.getpid()),
        ]  # fmt: skip
        if self._node_log.exists() and self._node_log.stat().st_size > MAX_LOG_BYTES:
            self._node_log.replace(self._node_log.with_suffix(".log.1"))
        link = ParentLink()
        try:
            node = _spawn(node_command, environment, self._node_log, link)
            try:
                client = _spawn(client_command, environment, self._folder / "client.log")
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
            return (
                f"the Flower client ended with {children.client.returncode}; "
                f"see {self._folder / 'client.log'}"
            )
        trouble = children.connection.error(self._bundle)
        return trouble or (
            f"the SuperNode ended with {children.node.returncode}; see {self._node_log}"
        )

    def _end_children(self) -> None:
        children, self._children = self._children, None
        if children is None:
            return
        for process in (children.client, children.node):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.send_signal(signal.SIGCONT)  # a stopped process takes no other signal
        deadline_s = time.monotonic() + STOP_GRACE_S
        for process in (children.client, children.node):
            try:
                process.wait(max(0.0, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        children.link.close()


def _environment(home: Path) -> dict[str, str]:
    """Environment of a Flower process: its own home, no calls home, no installs, one thread."""
    return {
        **os.environ,
        "FLWR_HOME": str(home.absolute()),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _spawn(
    command: list[str], environment: dict[str, str], output: Path, link: ParentLink | None = None
) -> subprocess.Popen[bytes]:
    fds = [] if link is None else [link.child_fd()]
    if fds:
        environment = environment | {LINK_FD: str(fds[0])}
    with output.open("ab") as stream:
        return subprocess.Popen(
            command,
            env=environment,
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )


def _free_port() -> int:
    """A loopback port that is free now; taken a moment later, the SuperNode is started again."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
