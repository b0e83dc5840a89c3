"""The coordinator's hand on Flower: one child process a campaign, with a limit on each job's time.

Nothing of Flower is imported here. The child (`server_process`) carries out every round over one
long run of the SuperLink. When it dies, or the SuperLink loses its run, the round under way fails
with one line, and the next round finds a new child with a new run.
"""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from coordinator.federation.errors import FederationError
from coordinator.federation.orders import (
    GateConfig,
    Member,
    RoundOrder,
    RoundResult,
    SuperLinkAccess,
    canonical_key,
)
from coordinator.federation.server_jobs import (
    BEGUN,
    DONE,
    LOST,
    Job,
    RegisterJob,
    RegisterResult,
    RoundJob,
)
from coordinator.federation.superlink import FLOWER_ENVIRONMENT
from host.children import ChildProcess, end_all, spawn

__all__ = [
    "GateConfig",
    "Member",
    "RoundDriver",
    "RoundOrder",
    "RoundResult",
    "SuperLinkAccess",
    "canonical_key",
    "run_round",
]

START_S = 30.0  # imports on a busy machine, and the run's start
SLACK_S = 120.0  # aggregation, disk, a SuperLink that is restarted meanwhile
REGISTER_S = 60.0
EXIT_S = 15.0  # Flower takes some seconds to leave a run that it lost
END_GRACE_S = 1.0
SERVER_MODULE = "coordinator.federation.server_process"
LOG_NAME = "rounds.log"
STOPPING = "the coordinator is being stopped"

log = logging.getLogger(__name__)


def round_limit_s(order: RoundOrder) -> float:
    """The longest a round may take before its process is killed."""
    limit_s = START_S + SLACK_S + order.connect_timeout_s
    if order.kind != "install":
        limit_s += order.reply_timeout_s
    if order.kind != "statistics":
        limit_s += order.install_timeout_s
    return limit_s


@dataclass
class _Server:
    """A Flower process, and our end of its line."""

    process: ChildProcess
    line: socket.socket

    @classmethod
    def start(cls, access: SuperLinkAccess, output: Path) -> _Server:
        access.home.mkdir(parents=True, exist_ok=True)
        ours, theirs = socket.socketpair()
        with theirs:
            fd = theirs.fileno()
            try:
                # Not bound to a parent: that would be a thread, and ours may end before it.
                process = spawn(
                    [sys.executable, "-m", SERVER_MODULE, access.model_dump_json(), str(fd)],
                    log=output,
                    environment={
                        **FLOWER_ENVIRONMENT,
                        "FLWR_HOME": str(access.home),
                        "FLWR_LOG_LEVEL": "CRITICAL",  # of its own handler; ours writes it all
                    },
                    pass_fds=[fd],
                )
            except OSError:
                ours.close()
                raise
        return cls(process, ours)

    def carry_out(self, job: Job, limit_s: float) -> list[bytes]:
        """Hand over the job and wait; the lines that came up. Raises TimeoutError."""
        deadline_s = time.monotonic() + limit_s
        heard = b""
        try:
            self.line.settimeout(limit_s)
            self.line.sendall(job.model_dump_json().encode() + b"\n")
            while not heard.endswith((DONE, LOST)):
                self.line.settimeout(max(0.001, deadline_s - time.monotonic()))
                data = self.line.recv(4096)
                if not data:
                    break
                heard += data
        except ConnectionError:
            log.debug("process %d cut the line", self.process.pid)
        return heard.splitlines(keepends=True)

    def end(self) -> None:
        """Cut the line, then kill; the process holds nothing that a kill could damage."""
        try:
            self.line.shutdown(socket.SHUT_RDWR)  # wakes whoever waits in carry_out
        except OSError:
            log.debug("process %d was gone already", self.process.pid)
        end_all([self.process], END_GRACE_S)


class RoundDriver:
    """Runs rounds one after the other, from any thread; `close` may come from another.

    work_dir keeps one folder a round (`0003-train/weights.safetensors`), the strategy's memory and
    the log. The Flower process stays for the next round (about 130 MB).
    """

    def __init__(self, access: SuperLinkAccess, work_dir: Path) -> None:
        self._access = access
        self._work_dir = work_dir
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._output = work_dir / LOG_NAME
        self._server: _Server | None = None
        self._closed = False

    def prepare(self) -> None:
        """Start the Flower process now, so that the first round finds it warm."""
        self._ready()

    def run_round(self, order: RoundOrder) -> RoundResult:
        """Carry out a round; blocks. Whatever goes wrong with it is in `failure`.

        Raises OSError if no process can be started or the disk refuses.
        """
        started_s = time.monotonic()
        folder = self._work_dir / f"{order.round:04d}-{order.kind}"
        folder.mkdir(parents=True, exist_ok=True)
        job = RoundJob(
            result=folder / "result.json",
            order=order,
            folder=folder,
            memory_folder=self._work_dir,
        )
        failure = self._run(job, round_limit_s(order))
        if failure is None:
            try:
                return RoundResult.model_validate_json(job.result.read_bytes())
            except (OSError, ValidationError) as error:
                failure = f"the round's process left no result: {error}"
        result = job.failed(failure)
        return result.model_copy(update={"seconds": time.monotonic() - started_s})

    def register(self, members: Sequence[Member]) -> dict[str, int]:
        """Make the members' SuperNode keys known to the SuperLink; node id by agent id.

        Do this once the SuperLink is up; known keys keep their node. Blocks for REGISTER_S at
        most. Raises FederationError with the one line why not.
        """
        self._work_dir.mkdir(parents=True, exist_ok=True)
        keys = {member.agent_id: canonical_key(member.public_key) for member in members}
        job = RegisterJob(result=self._work_dir / "register.json", keys=keys)
        failure = self._run(job, START_S + REGISTER_S)
        if failure is not None:
            raise FederationError(failure)
        result = RegisterResult.model_validate_json(job.result.read_bytes())
        if result.failure is not None:
            raise FederationError(result.failure)
        return dict(result.nodes)

    def close(self) -> None:
        """End the Flower process; a round under way fails. Safe to call twice."""
        with self._lock:
            self._closed = True
            server = self._server
        if server is not None:
            server.end()

    def _run(self, job: Job, limit_s: float) -> str | None:
        """Have the process do the job; the one line why it did not, or None."""
        with self._turn:
            failure: str | None = None
            for _attempt in range(2):  # a process that was leaving when we asked did not begin
                server = self._ready()
                if server is None:
                    return STOPPING
                job.result.unlink(missing_ok=True)
                try:
                    heard = server.carry_out(job, limit_s)
                except TimeoutError:
                    heard = [BEGUN]
                    failure = f"took more than {limit_s:.0f} s and was ended"
                else:
                    if DONE in heard:
                        return None
                    failure = None if LOST in heard else self._why_it_ended(server)
                server.end()
                self._ready()  # for the next round
                if failure is None or BEGUN in heard:
                    break
            if failure is None:
                return None
            return STOPPING if self._closed else f"the {job.task} {failure}; see {self._output}"

    def _why_it_ended(self, server: _Server) -> str:
        try:
            status = server.process.wait(EXIT_S)
        except TimeoutError:
            return "was left by its process, which goes on"
        if status == 0:
            return "was ended by the SuperLink: it lost this coordinator, or was restarted"
        return f"was ended by its process: {server.process.exit_words}"

    def _ready(self) -> _Server | None:
        """The Flower process, started if there is none; None once we are closed."""
        with self._lock:
            if self._closed:
                return None
            if self._server is not None and self._server.process.poll() is not None:
                self._server.line.close()
                self._server = None
            if self._server is None:
                self._server = _Server.start(self._access, self._output)
            return self._server


def run_round(order: RoundOrder, work_dir: Path, access: SuperLinkAccess) -> RoundResult:
    """One round, and the end of its process; see RoundDriver."""
    driver = RoundDriver(access, work_dir)
    try:
        return driver.run_round(order)
    finally:
        driver.close()
