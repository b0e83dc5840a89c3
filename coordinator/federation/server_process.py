"""The Flower process of a campaign: `python -m coordinator.federation.server_process ACCESS FD`.

Everything is imported first; then jobs are awaited on the line FD (see `server_jobs`). With the
first one a run of the SuperLink is started, and this process becomes Flower's `flwr-serverapp`,
which calls the server app below: it carries out this job and all later ones over its grid, in one
run, for as long as the coordinator lives.

Flower sends SIGINT to its own process when the SuperLink no longer knows the task. That ends this
process, and the job under way; the coordinator starts another, with a new run.
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import sys

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from coordinator.federation import flower_runtime
from coordinator.federation.errors import FederationError
from coordinator.federation.fleet import GridFleet
from coordinator.federation.orders import RoundResult, SuperLinkAccess
from coordinator.federation.round import conduct
from coordinator.federation.server_jobs import (
    BEGUN,
    DONE,
    JOB,
    LOST,
    Job,
    RegisterJob,
    RegisterResult,
)
from host.files import write_durable
from host.logs import set_up_logging
from host.threads import exit_process, spawn

LINE_CUT = 3
RUN_LOST = 4

log = logging.getLogger(__name__)


class _Desk:
    """Jobs from the coordinator, one after the other. The end of the line ends the process."""

    def __init__(self, access: SuperLinkAccess, line: socket.socket) -> None:
        self.access = access
        self._line = line
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._under_way: Job | None = None
        self.begun = False
        spawn("jobs", self._listen, exit_process)

    def _listen(self) -> None:
        with self._line.makefile("rb") as lines:
            for line in lines:
                self._jobs.put(JOB.validate_json(line))
        os._exit(LINE_CUT)

    def take(self) -> Job:
        """The job under way, or the next one; waits for it."""
        if self._under_way is None:
            self._under_way = self._jobs.get()
        return self._under_way

    def begin(self) -> None:
        """Say that the job under way is taken up: from now on it fails with this process."""
        if not self.begun:
            self.begun = True
            self._line.sendall(BEGUN)

    def answer(self, job: Job, result: RoundResult | RegisterResult, *, lost: bool) -> None:
        """Keep the result, and tell; `lost`: this process ends now."""
        write_durable(job.result, result.model_dump_json().encode())
        self._under_way, self.begun = None, False
        self._line.sendall(LOST if lost else DONE)


_desk: _Desk | None = None
app = ServerApp()


@app.main()
def main(grid: Grid, _context: Context) -> None:
    """Serve jobs for as long as the run is of use. Called by Flower."""
    assert _desk is not None, "this app is executed by its own process alone"
    fleet = GridFleet(grid, _desk.access.address)
    while not fleet.lost:
        job = _desk.take()
        if not _desk.begun and not _answers(fleet):
            break  # the job is not begun: another process takes it, with another run
        _desk.begin()
        try:
            result = _carry_out(job, fleet, _desk.access)
        except FederationError as error:
            result = job.failed(str(error))
        _desk.answer(job, result, lost=fleet.lost)
    logging.shutdown()
    os._exit(RUN_LOST)  # Flower would wait for the SuperLink on its way out


def _answers(fleet: GridFleet) -> bool:
    """Is the run still ours? One that was lost while nothing was to do shows it here."""
    try:
        fleet.connected()
    except FederationError as error:
        log.warning("%s", error)
        return False
    return True


def _carry_out(job: Job, fleet: GridFleet, access: SuperLinkAccess) -> RoundResult | RegisterResult:
    if isinstance(job, RegisterJob):
        return RegisterResult(nodes=flower_runtime.register_nodes(access, job.keys))
    return conduct(job.order, fleet, job.folder, job.memory_folder)


def run(access: SuperLinkAccess, line: socket.socket) -> None:
    """Wait for the first job, start the run, execute it. Does not return but by SystemExit."""
    global _desk
    _desk = _Desk(access, line)
    while True:
        job = _desk.take()
        _desk.begin()
        try:
            token = flower_runtime.start_run(access)
        except FederationError as error:
            _desk.answer(job, job.failed(str(error)), lost=False)
            continue
        flower_runtime.execute(access, token)


if __name__ == "__main__":
    set_up_logging()
    # Flower uploads to the SuperLink what is written to sys.stderr; our log is for our file alone.
    sys.stderr = os.fdopen(os.dup(sys.stderr.fileno()), "w", buffering=1)
    logging.getLogger("flwr").setLevel(logging.INFO)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # Flower imports this module by its name, and must find the one that holds the desk.
    from coordinator.federation import server_process

    server_process.run(
        SuperLinkAccess.model_validate_json(sys.argv[1]), socket.socket(fileno=int(sys.argv[2]))
    )
