"""One child of the supervisor: started, frozen, let go on, stopped, started again."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.child.link import LINK_FD, ParentLink
from agent.child.process_row import ProcessRow
from agent.errors import BadLinkMessage, LinkClosed

log = logging.getLogger(__name__)

BACKOFF_FIRST_S = 0.5
BACKOFF_LAST_S = 30.0
STEADY_S = 30.0  # a child that ran this long has forgotten its earlier deaths
LOG_KEEP_BYTES = 8 << 20


def backoff_s(deaths: int) -> float:
    """How long to wait before the next start, after so many deaths in a row."""
    return float(min(BACKOFF_LAST_S, BACKOFF_FIRST_S * 2 ** max(0, min(deaths, 16) - 1)))


@dataclass
class _Running:
    process: subprocess.Popen[bytes]
    link: ParentLink
    started_s: float
    last_beat_s: float | None = None
    frozen: bool = False
    stop_by_s: float | None = None  # when to kill; None: not asked to stop


class Child:
    """Holds one row's process. All calls come from the supervisor's thread; none of them waits."""

    def __init__(
        self,
        row: ProcessRow,
        config_path: Path,
        log_dir: Path,
        clock: Callable[[], float] = time.monotonic,
        on_open: Callable[[int], None] = lambda fd: None,
        on_close: Callable[[int], None] = lambda fd: None,
    ) -> None:
        self.row = row
        self.restarts = 0
        self.last_exit: str | None = None
        self._config_path = config_path
        self._log_dir = log_dir
        self._clock = clock
        self._on_open = on_open  # with the link's descriptor, to watch it
        self._on_close = on_close
        self._running: _Running | None = None
        self._deaths = 0
        self._not_before_s = 0.0
        self._wanted = False

    @property
    def pid(self) -> int | None:
        """The process, which leads its own process group; None when there is none."""
        return None if self._running is None else self._running.process.pid

    @property
    def frozen(self) -> bool:
        """True while its group is stopped by us."""
        return self._running is not None and self._running.frozen

    def describe(self) -> dict[str, Any]:
        """One row of the status."""
        if self._running is None:
            state = "waiting" if self._wanted else "off"
        elif self._running.stop_by_s is not None:
            state = "stopping"
        else:
            state = "stopped" if self._running.frozen else "running"
        return {
            "pid": self.pid,
            "state": state,
            "restarts": self.restarts,
            "last_exit": self.last_exit,
        }

    def freeze(self) -> None:
        """SIGSTOP the whole group now, if this row is one to freeze."""
        running = self._running
        if running is not None and self.row.otherwise == "freeze" and not running.frozen:
            self._signal_group(running, signal.SIGSTOP)
            running.frozen = True

    def want(self, wanted: bool) -> None:
        """May it run? Starts, freezes, lets go on or stops accordingly."""
        self._wanted = wanted
        running = self._running
        if running is None:
            if wanted and self._clock() >= self._not_before_s:
                self._start()
            return
        if wanted and running.frozen:
            running.frozen = False
            running.last_beat_s = None  # silence while frozen is no silence
            self._signal_group(running, signal.SIGCONT)
        elif not wanted and self.row.otherwise == "freeze":
            self.freeze()
        elif not wanted and running.stop_by_s is None:
            self.stop()

    def stop(self) -> None:
        """Ask the process to end; `poll` kills its group when the grace is over."""
        self._wanted = False
        running = self._running
        if running is None or running.stop_by_s is not None:
            return
        running.stop_by_s = self._clock() + self.row.stop_grace_s
        self._signal_process(running, signal.SIGTERM)
        if running.frozen:
            running.frozen = False
            self._signal_group(running, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL the group; `poll` sees the death."""
        if self._running is not None:
            self._signal_group(self._running, signal.SIGKILL)

    def send(self, kind: str, **fields: Any) -> None:
        """Send to the process. Raises LinkClosed if there is none, or it is going."""
        if self._running is None:
            raise LinkClosed(f"{self.row.name} is not running")
        self._running.link.send(kind, **fields)

    def receive(self) -> list[dict[str, Any]]:
        """What the process has said; heartbeats are taken out and noted."""
        running = self._running
        if running is None:
            return []
        try:
            messages = running.link.receive_all()
        except LinkClosed:
            return []  # its death, if it is one, is found by poll
        except BadLinkMessage as error:
            log.warning("%s: %s; killed", self.row.name, error)
            self.kill()
            return []
        if messages:
            running.last_beat_s = self._clock()
        return [message for message in messages if message["kind"] != "heartbeat"]

    def poll(self) -> bool:
        """Look after the process: notice death, silence and overdue stops. True if it died."""
        running = self._running
        if running is None:
            return False
        code = running.process.poll()
        if code is not None:
            self._buried(running, code)
            return True
        now_s = self._clock()
        if running.stop_by_s is not None and now_s >= running.stop_by_s:
            log.warning("%s did not end in %.0f s; killed", self.row.name, self.row.stop_grace_s)
            running.stop_by_s = float("inf")
            self.kill()
        silent_since_s = running.last_beat_s
        if (
            silent_since_s is not None
            and not running.frozen
            and running.stop_by_s is None
            and now_s - silent_since_s > self.row.silence_s
        ):
            log.error("%s was silent for %.0f s; killed", self.row.name, self.row.silence_s)
            running.last_beat_s = None
            self.kill()
        return False

    def _start(self) -> None:
        link = ParentLink()
        child_fd = link.child_fd()
        environment = os.environ | {LINK_FD: str(child_fd), "PYTHONUNBUFFERED": "1"}
        log_path = self._log_dir / f"{self.row.name}.log"
        try:
            self._log_dir.mkdir(parents=True, exist_ok=True)
            if log_path.exists() and log_path.stat().st_size > LOG_KEEP_BYTES:
                log_path.replace(log_path.with_suffix(".log.1"))
            with log_path.open("ab") as output:
                process = subprocess.Popen(
                    self.row.command(self._config_path, os.getpid()),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=environment,
                    pass_fds=(child_fd,),
                    process_group=0,
                )
        except OSError as error:
            link.close()
            self._deaths += 1
            self._not_before_s = self._clock() + backoff_s(self._deaths)
            self.last_exit = f"cannot start: {error}"
            log.error("%s %s", self.row.name, self.last_exit)  # noqa: TRY400
            return
        link.close_child_end()
        self._running = _Running(process, link, self._clock())
        self._on_open(link.fileno())
        log.info("%s started, pid %d", self.row.name, process.pid)

    def _buried(self, running: _Running, code: int) -> None:
        """The process is dead: end what it left behind, and decide when to start it again."""
        self._signal_group(running, signal.SIGKILL)
        self._on_close(running.link.fileno())
        running.link.close()
        self._running = None
        self.last_exit = _exit_words(code)
        if running.stop_by_s is not None:
            self._deaths = 0
            self._not_before_s = 0.0
            log.info("%s ended (%s)", self.row.name, self.last_exit)
            return
        now_s = self._clock()
        steady = now_s - running.started_s >= STEADY_S
        self._deaths = 1 if steady else self._deaths + 1
        self.restarts += 1
        wait_s = backoff_s(self._deaths)
        self._not_before_s = now_s + wait_s
        log.error("%s died (%s); again in %.1f s", self.row.name, self.last_exit, wait_s)

    def _signal_process(self, running: _Running, number: signal.Signals) -> None:
        if running.process.poll() is None:
            running.process.send_signal(number)

    def _signal_group(self, running: _Running, number: signal.Signals) -> None:
        try:
            os.killpg(running.process.pid, number)
        except ProcessLookupError:
            pass  # the whole group has ended
        except PermissionError as error:
            log.warning("%s: group cannot be signalled: %s", self.row.name, error)


def _exit_words(code: int) -> str:
    if code >= 0:
        return f"exit {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
