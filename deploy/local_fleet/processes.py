"""The demo's processes: started as the units start them, ended by pid in a stated order."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.local_fleet.errors import ProcessDied, StepTimeout
from host.children import ChildProcess, end_all, spawn

ARMADA = (sys.executable, "-m", "deploy.command")  # the command line, as the units start it


@dataclass
class Process:
    """One started command and where its output goes."""

    name: str
    child: ChildProcess
    log_path: Path

    def tail(self, lines: int = 8) -> str:
        """The last lines of the log: what a person wants to see when the process died."""
        text = self.child.log_tail().strip().splitlines()
        return "\n".join(text[-lines:])


class ProcessGroup:
    """Starts commands and ends them all, the last started first, whatever happens.

    Each command gets a session of its own, so that Ctrl-C in the terminal reaches the demo alone
    and the agents are asked to park before the arms lose their power. `setpriv` makes the kernel
    end every command should the demo itself be killed. Call `start` from the main thread only:
    the kernel ties that promise to the thread that started the command.
    """

    def __init__(self, log_folder: Path) -> None:
        self._log_folder = log_folder
        self._log_folder.mkdir(parents=True, exist_ok=True)
        self._processes: list[Process] = []

    def start(
        self, name: str, argv: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> Process:
        """Start a command; its output goes to `<log folder>/<name>.log`."""
        log_path = self._log_folder / f"{name}.log"
        command = ["setpriv", "--pdeathsig", "TERM", "--", *argv]
        process = Process(name, spawn(command, log=log_path, environment=environment), log_path)
        self._processes.append(process)
        return process

    def check(self) -> None:
        """Raise if any process has ended by itself.

        Raises:
            ProcessDied: names the process, its exit status and the end of its log.
        """
        for process in self._processes:
            status = process.child.poll()
            if status is not None:
                raise ProcessDied(
                    f"{process.name} ended with status {status}; the end of {process.log_path}:\n"
                    f"{process.tail()}"
                )

    def wait_until[T](
        self,
        what: str,
        ready: Callable[[], T | None],
        timeout_s: float,
        period_s: float,
    ) -> T:
        """Poll `ready` until it gives a value, watching that no process dies meanwhile.

        Raises:
            ProcessDied: a process ended.
            StepTimeout: nothing after `timeout_s`.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            value = ready()
            if value is not None:
                return value
            self.check()
            if time.monotonic() > deadline_s:
                raise StepTimeout(f"{what}: not there after {timeout_s:.0f} s")
            time.sleep(period_s)

    def stop(self, processes: Sequence[Process], grace_s: float) -> list[str]:
        """SIGTERM to all of them at once, SIGKILL to what is left after `grace_s`.

        Returns the names of those that had to be killed.
        """
        killed = end_all([process.child for process in processes], grace_s)
        self._processes = [p for p in self._processes if p not in processes]
        return [process.name for process in processes if process.child in killed]

    def stop_all(self, grace_s: float) -> list[str]:
        """End whatever is left, the last started first."""
        killed = []
        for process in reversed(self._processes):
            killed += self.stop([process], grace_s)
        return killed
