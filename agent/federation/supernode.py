"""The two Flower processes beside an agent: the SuperNode and our client, started and watched.

`SuperNode` belongs to one thread of one process: the kernel ends the children when the thread that
started them ends (PR_SET_PDEATHSIG), so start it from the thread that lives longest. Nothing here
waits for the network; `poll` looks, starts again what died (after a pause that doubles), and says
in one line what is wrong.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agent.federation.errors import SuperNodeFailed
from host.files import write_durable
from protocol.bundle import Bundle

LOOPBACK = "127.0.0.1"
SECRET_BYTES = 32
BACKOFF_FIRST_S = 1.0
BACKOFF_LIMIT_S = 30.0
STEADY_S = 60.0  # connected as long as this, the pauses start from the first again
STOP_GRACE_S = 3.0
LOG_TAIL_BYTES = 65_536
MAX_LOG_BYTES = 8 << 20

CONNECTED = re.compile(r"SuperNode ID: (\d+)")
# What Flower's retries write: the last of these says whether the SuperLink answers.
LOST = "Connection attempt failed"
REGAINED = ("SuperNode ID:", "Connection successful", "Sent successfully", "Received successfully")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")

State = Literal["stopped", "connecting", "connected", "failed"]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SuperNodeStatus:
    """What `poll` found. `error` is one line, and None while all is well."""

    state: State
    node_id: int | None = None
    error: str | None = None
    restarts: int = 0


@dataclass
class _Children:
    node: subprocess.Popen[bytes]
    client: subprocess.Popen[bytes]
    started_s: float
    log_start: int


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
        log = _read_tail(self._node_log, children.log_start)
        if children.node.poll() is not None or children.client.poll() is not None:
            self._error = self._why_it_ended(children, log)
            logger.warning("%s", self._error)
            self._end_children()
            self._retry_at_s = now_s + self._backoff_s
            self._backoff_s = min(self._backoff_s * 2, BACKOFF_LIMIT_S)
            return SuperNodeStatus("failed", None, self._error, self._restarts)
        found = CONNECTED.findall(log)
        if not found:
            error = self._error or _connection_trouble(log, self._bundle)
            return SuperNodeStatus("connecting", None, error, self._restarts)
        if now_s - children.started_s > STEADY_S:
            self._backoff_s = BACKOFF_FIRST_S
        self._error = None
        if log.rfind(LOST) > max(log.rfind(mark) for mark in REGAINED):
            error = f"no SuperLink answers at {self._bundle.info.superlink.address}; trying again"
            return SuperNodeStatus("connecting", int(found[-1]), error, self._restarts)
        return SuperNodeStatus("connected", int(found[-1]), None, self._restarts)

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
            sys.executable, "-m", "agent.federation.flower_runtime", str(os.getpid()),
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
        log_start = self._node_log.stat().st_size if self._node_log.exists() else 0
        if log_start > MAX_LOG_BYTES:
            self._node_log.replace(self._node_log.with_suffix(".log.1"))
            log_start = 0
        try:
            node = _spawn(node_command, environment, self._node_log)
            try:
                client = _spawn(client_command, environment, self._folder / "client.log")
            except OSError:
                node.kill()
                node.wait()
                raise
        except OSError as error:
            raise SuperNodeFailed(f"SuperNode cannot be started: {error}") from error
        self._children = _Children(node, client, self._clock(), log_start)

    def _why_it_ended(self, children: _Children, log: str) -> str:
        if children.client.poll() is not None and children.node.poll() is None:
            return (
                f"the Flower client ended with {children.client.returncode}; "
                f"see {self._folder / 'client.log'}"
            )
        trouble = _connection_trouble(log, self._bundle)
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


def _connection_trouble(log: str, bundle: Bundle) -> str | None:
    """The one line that the SuperNode's log comes down to, if it tells of trouble."""
    address = bundle.info.superlink.address
    text = log.lower()
    if "certificate_verify_failed" in text or "certificate verify failed" in text:
        return (
            f"TLS with the SuperLink at {address} failed: its certificate is not from the "
            f"authority in {bundle.ca}; enrol this robot with that coordinator"
        )
    if "ssl" in text and ("error" in text or "alert" in text):
        return f"TLS with the SuperLink at {address} failed; see the SuperNode's log"
    if "could not be activated" in text or "2004" in text or "invalid supernode auth" in text:
        return (
            f"the SuperLink at {address} does not know this robot's key, or the clocks differ by "
            "more than 5 s; enrol the robot, or set its clock"
        )
    if "connection attempt failed" in text or "connection refused" in text:
        return f"no SuperLink answers at {address}; trying again"
    if "failed to initialize the connection" in text:
        lines = log[log.lower().index("failed to initialize") :].splitlines()
        detail = lines[1].strip() if len(lines) > 1 else ""
        return f"the SuperNode cannot join the SuperLink at {address}: {detail[:200]}"
    return None


def _read_tail(path: Path, start: int) -> str:
    """Text of a log from `start`: its first and its last part if it is long."""
    try:
        with path.open("rb") as stream:
            stream.seek(start)
            head = stream.read(LOG_TAIL_BYTES)
            size = stream.seek(0, os.SEEK_END)
            tail_start = max(start + len(head), size - LOG_TAIL_BYTES)
            stream.seek(tail_start)
            data = head + stream.read(LOG_TAIL_BYTES)
    except FileNotFoundError:
        return ""
    return COLOUR.sub("", data.decode(errors="replace"))


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


def _spawn(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def _free_port() -> int:
    """A loopback port that is free now; taken a moment later, the SuperNode is started again."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
