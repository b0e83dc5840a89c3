"""One way to run a child process: spawned, bound to its parent, logged, signalled, ended.

Every child leads a session, and so a process group, of its own: a Ctrl-C at the terminal is its
parent's to handle, and a signal to the group reaches all that it started. When it is started
again is decided in `host.restarts`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from host.logs import open_log

TAIL_BYTES = 1 << 16
_WAIT_PERIOD_S = 0.01


def module_command(
    module: str, *arguments: str, death_signal: int = signal.SIGKILL, nice: int = 0
) -> list[str]:
    """Command of a Python module that the kernel ends, by `death_signal`, with its parent.

    The parent is the thread that starts it: start it from one that lives as long as it shall.
    """
    binding = [str(os.getpid()), str(int(death_signal)), str(nice)]
    return [sys.executable, "-m", "host.launch", *binding, module, *arguments]


def spawn(
    command: Sequence[str],
    *,
    log: Path | None = None,
    environment: Mapping[str, str] | None = None,
    stdin: IO[bytes] | None = None,
    stdout: int | None = None,
    pass_fds: Sequence[int] = (),
) -> ChildProcess:
    """Start a command; `environment` is added to ours.

    Its input is empty, or the file `stdin` from where it stands. Its output is appended to `log`,
    or goes where ours goes; `stdout` names another place for that half. Nothing waits. Raises
    OSError when the log cannot be opened or the program not started.
    """
    output: IO[bytes] | None = None
    log_start = 0
    if log is not None:
        output = open_log(log)
        log_start = output.tell()
    try:
        popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=output if stdout is None else stdout,
            stderr=output,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            pass_fds=pass_fds,
            start_new_session=True,
        )
    finally:
        if output is not None:
            output.close()
    return ChildProcess(popen, log, log_start)


class ChildProcess:
    """A started process. May be used from several threads.

    It may be signalled at any time: until `poll` has seen it dead, its number is nobody else's.
    What it leaves behind in its group is ended with it.
    """

    def __init__(self, popen: subprocess.Popen[bytes], log: Path | None, log_start: int) -> None:
        self._popen = popen
        self._log = log
        self._log_start = log_start
        self._lock = threading.RLock()

    @property
    def pid(self) -> int:
        """Its number, and that of its process group."""
        return self._popen.pid

    @property
    def exit_words(self) -> str:
        """How it ended, `exit 3` or `SIGKILL`; `running` while it runs."""
        status = self.poll()
        return "running" if status is None else exit_words(status)

    def poll(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        with self._lock:
            if self._popen.returncode is None and self._is_dead():
                # Not reaped yet, it holds its group's number: this signal cannot hit a stranger.
                os.killpg(self.pid, signal.SIGKILL)
                self._popen.wait()
            return self._popen.returncode

    def wait(self, timeout_s: float = float("inf")) -> int:
        """Its exit status, once it has ended. Raises TimeoutError."""
        deadline_s = time.monotonic() + timeout_s
        while (status := self.poll()) is None:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0.0:
                raise TimeoutError(f"process {self.pid} did not end within {timeout_s:g} s")
            time.sleep(min(_WAIT_PERIOD_S, left_s))
        return status

    def ask_to_end(self) -> None:
        """SIGTERM to the process alone, which ends its own; no wait."""
        with self._lock:
            if self.poll() is None:
                os.kill(self.pid, signal.SIGTERM)
                self.signal_group(signal.SIGCONT)  # a stopped process takes no other signal

    def signal_group(self, number: int) -> None:
        """Send a signal to it and all that it started; nothing when it has ended."""
        with self._lock:
            if self.poll() is None:
                os.killpg(self.pid, number)

    def kill(self) -> None:
        """SIGKILL to the whole group; no wait."""
        self.signal_group(signal.SIGKILL)

    def log_tail(self, limit_bytes: int = TAIL_BYTES) -> str:
        """The last part of what its log has had since it was started; empty without a log."""
        if self._log is None:
            return ""
        with self._log.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(self._log_start, size - limit_bytes))
            return stream.read(limit_bytes).decode(errors="replace")

    def _is_dead(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def end_all(processes: Sequence[ChildProcess], grace_s: float) -> list[ChildProcess]:
    """Ask all to end at once, kill the groups of those left after `grace_s`; returns these."""
    for process in processes:
        process.ask_to_end()
    deadline_s = time.monotonic() + grace_s
    killed = []
    for process in processes:
        try:
            process.wait(max(0.0, deadline_s - time.monotonic()))
        except TimeoutError:
            process.kill()
            process.wait()
            killed.append(process)
    return killed


def exit_words(status: int) -> str:
    """An exit status in words: `exit 3`, `SIGKILL`."""
    if status >= 0:
        return f"exit {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
