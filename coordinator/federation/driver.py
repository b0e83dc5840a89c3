"""The coordinator's hand on Flower: rounds in child processes, with a limit on their time.

Nothing of Flower is imported here. Each round is one process (`round_job`), because Flower keeps a
task's identity global and may interrupt its own process; the next one is started while the last
one is still talked about, since importing Flower takes some three seconds.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
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
from coordinator.federation.round_job import RegisterJob, RegisterResult, RoundJob
from coordinator.federation.superlink import FLOWER_ENVIRONMENT

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

START_S = 30.0  # imports on a busy machine
SLACK_S = 120.0  # aggregation, disk, a SuperLink that is restarted meanwhile
REGISTER_S = 60.0
LOG_NAME = "rounds.log"
MAX_LOG_BYTES = 8 << 20

logger = logging.getLogger(__name__)


def round_limit_s(order: RoundOrder) -> float:
    """The longest a round may take before its process is killed."""
    limit_s = START_S + SLACK_S + order.connect_timeout_s
    if order.kind != "install":
        limit_s += order.reply_timeout_s
    if order.kind != "statistics":
        limit_s += order.install_timeout_s
    return limit_s


class RoundDriver:
    """Runs rounds one after the other, from any thread; `close` may come from another.

    work_dir keeps one folder a round (`0003-train/weights.safetensors`), the strategy's memory and
    the log. With `warm`, a process stands by for the next round (about 130 MB).
    """

    def __init__(self, access: SuperLinkAccess, work_dir: Path, *, warm: bool = True) -> None:
        self._access = access
        self._work_dir = work_dir
        self._warm = warm
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._spare: subprocess.Popen[bytes] | None = None
        self._running: subprocess.Popen[bytes] | None = None
        self._closed = False

    def prepare(self) -> None:
        """Start the spare process now, so that the first round finds it warm."""
        with self._lock:
            if self._warm and not self._closed and self._spare is None:
                self._spare = self._spawn()

    def run_round(self, order: RoundOrder) -> RoundResult:
        """Carry out a round; blocks. Whatever goes wrong with it is in `failure`.

        Raises OSError if no process can be started or the disk refuses.
        """
        started_s = time.monotonic()
        folder = self._work_dir / f"{order.round:04d}-{order.kind}"
        folder.mkdir(parents=True, exist_ok=True)
        job = RoundJob(
            access=self._access,
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
        return RoundResult(
            round=order.round,
            kind=order.kind,
            replies=[],
            failure=failure,
            seconds=time.monotonic() - started_s,
        )

    def register(self, members: Sequence[Member]) -> dict[str, int]:
        """Make the members' SuperNode keys known to the SuperLink; node id by agent id.

        Do this once the SuperLink is up; known keys keep their node. Blocks for REGISTER_S at
        most. Raises FederationError with the one line why not.
        """
        self._work_dir.mkdir(parents=True, exist_ok=True)
        keys = {member.agent_id: canonical_key(member.public_key) for member in members}
        job = RegisterJob(access=self._access, result=self._work_dir / "register.json", keys=keys)
        failure = self._run(job, START_S + REGISTER_S)
        if failure is not None:
            raise FederationError(failure)
        result = RegisterResult.model_validate_json(job.result.read_bytes())
        if result.failure is not None:
            raise FederationError(result.failure)
        return dict(result.nodes)

    def close(self) -> None:
        """End what runs or stands by; a round under way fails. Safe to call twice."""
        with self._lock:
            self._closed = True
            processes = [p for p in (self._spare, self._running) if p is not None]
            self._spare = None
        for process in processes:
            _end(process)

    def _run(self, job: RoundJob | RegisterJob, limit_s: float) -> str | None:
        """Have a process do the job; the one line why it did not, or None."""
        with self._turn:
            with self._lock:
                if self._closed:
                    return "the coordinator is being stopped"
                process, self._spare = self._spare, None
                if process is None or process.poll() is not None:
                    process = self._spawn()
                self._running = process
            try:
                job.result.unlink(missing_ok=True)
                return self._await(process, job, limit_s)
            finally:
                _end(process)
                with self._lock:
                    self._running = None
                self.prepare()

    def _await(
        self, process: subprocess.Popen[bytes], job: RoundJob | RegisterJob, limit_s: float
    ) -> str | None:
        assert process.stdin is not None
        log = self._work_dir / LOG_NAME
        try:
            process.stdin.write(job.model_dump_json().encode() + b"\n")
            process.stdin.flush()
            status = process.wait(limit_s)
        except BrokenPipeError:
            return f"the round's process ended before it began; see {log}"
        except subprocess.TimeoutExpired:
            return f"the round took more than {limit_s:.0f} s and was ended; see {log}"
        if status == 0:
            return None
        if self._closed:
            return "the coordinator is being stopped"
        return f"the round's process ended with {status}; see {log}"

    def _spawn(self) -> subprocess.Popen[bytes]:
        log = self._work_dir / LOG_NAME
        self._work_dir.mkdir(parents=True, exist_ok=True)
        if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
        self._access.home.mkdir(parents=True, exist_ok=True)
        environment = {
            **os.environ,
            **FLOWER_ENVIRONMENT,
            "FLWR_HOME": str(self._access.home),
        }
        with log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "coordinator.federation.round_job"],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C at the terminal is the coordinator's to handle
            )


def run_round(order: RoundOrder, work_dir: Path, access: SuperLinkAccess) -> RoundResult:
    """One round without a spare process; see RoundDriver."""
    driver = RoundDriver(access, work_dir, warm=False)
    try:
        return driver.run_round(order)
    finally:
        driver.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Cut the lifeline, then kill; the process holds nothing that a kill could damage."""
    if process.stdin is not None:
        try:
            process.stdin.close()
        except BrokenPipeError:
            logger.debug("round process %d was gone already", process.pid)
    try:
        process.wait(1.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
