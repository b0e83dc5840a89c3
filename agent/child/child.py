"""One child of the supervisor: started, frozen, let go on, stopped, started again."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.child.link import LINK_FD, ParentLink
from agent.child.process_row import ProcessRow
from agent.errors import BadLinkMessage, LinkClosed
from host.children import ChildProcess, spawn
from host.memory import resident_bytes
from host.restarts import RestartTimer, is_silent

log = logging.getLogger(__name__)


@dataclass
class _Running:
    process: ChildProcess
    link: ParentLink
    started_s: float
    last_beat_s: float | None = None
    frozen: bool = False
    stop_by_s: float | None = None  # when to kill; None: not asked to stop
    gives_back_bytes: int = 0  # its memory, which the host needs: it is being killed for that


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
        self.wants_bytes = 0  # what it gave back and will take again when it is started
        self.reason: str | None = None  # why it is not there, when that is no fault
        self._config_path = config_path
        self._log_dir = log_dir
        self._clock = clock
        self._on_open = on_open  # with the link's descriptor, to watch it
        self._on_close = on_close
        self._running: _Running | None = None
        self._timer = RestartTimer(row.backoff)
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
            "reason": self.reason,
        }

    def freeze(self) -> None:
        """SIGSTOP the whole group now, if this row is one to freeze."""
        running = self._running
        if running is not None and self.row.otherwise == "freeze" and not running.frozen:
            running.process.signal_group(signal.SIGSTOP)
            running.frozen = True

    def want(self, wanted: bool) -> None:
        """May it run? Starts, freezes, lets go on or stops accordingly."""
        self._wanted = wanted
        running = self._running
        if running is None:
            if wanted and self._timer.due(self._clock()):
                self._start()
            return
        if wanted and running.frozen:
            running.frozen = False
            running.last_beat_s = None  # silence while frozen is no silence
            running.process.signal_group(signal.SIGCONT)
        elif not wanted and self.row.otherwise == "freeze":
            self.freeze()
        elif not wanted and running.stop_by_s is None:
            self.stop()

    def give_memory_back(self, reason: str) -> None:
        """Kill it, frozen as it is; it is no fault, and not to be started before there is room."""
        running = self._running
        if running is None or not running.frozen or running.gives_back_bytes:
            return
        running.gives_back_bytes = resident_bytes(running.process.pid) or 1
        self.reason = reason
        self.kill()

    def stop(self) -> None:
        """Ask the process to end; `poll` kills its group when the grace is over."""
        self._wanted = False
        running = self._running
        if running is None or running.stop_by_s is not None:
            return
        running.stop_by_s = self._clock() + self.row.stop_grace_s
        running.process.ask_to_end()
        running.frozen = False

    def kill(self) -> None:
        """SIGKILL the group; `poll` sees the death."""
        if self._running is not None:
            self._running.process.kill()

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
        if running.process.poll() is not None:
            self._buried(running)
            return True
        now_s = self._clock()
        if running.stop_by_s is not None:
            if now_s >= running.stop_by_s:
                log.warning(
                    "%s did not end in %.0f s; killed", self.row.name, self.row.stop_grace_s
                )
                running.stop_by_s = float("inf")
                self.kill()
        elif is_silent(now_s, running.last_beat_s, self.row.silence_s, frozen=running.frozen):
            log.error("%s was silent for %.0f s; killed", self.row.name, self.row.silence_s)
            running.last_beat_s = None
            self.kill()
        return False

    def _start(self) -> None:
        link = ParentLink()
        child_fd = link.child_fd()
        try:
            process = spawn(
                self.row.command(self._config_path),
                log=self._log_dir / f"{self.row.name}.log",
                environment={LINK_FD: str(child_fd)},
                pass_fds=(child_fd,),
            )
        except OSError as error:
            link.close()
            self._timer.died(self._clock())
            self.last_exit = f"cannot start: {error}"
            log.error("%s %s", self.row.name, self.last_exit)  # noqa: TRY400
            return
        link.close_child_end()
        self.wants_bytes, self.reason = 0, None
        self._running = _Running(process, link, self._clock())
        self._on_open(link.fileno())
        log.info("%s started, pid %d", self.row.name, process.pid)

    def _buried(self, running: _Running) -> None:
        """The process is dead, and its group with it: decide when to start it again."""
        self._on_close(running.link.fileno())
        running.link.close()
        self._running = None
        self.last_exit = running.process.exit_words
        if running.stop_by_s is not None:
            self._timer.forget()
            log.info("%s ended (%s)", self.row.name, self.last_exit)
            return
        if running.gives_back_bytes:
            self.wants_bytes = running.gives_back_bytes
            self._timer.forget()
            log.info("%s gave back %d MB: %s", self.row.name, self.wants_bytes >> 20, self.reason)
            return
        self.restarts += 1
        now_s = self._clock()
        pause_s = self._timer.died(now_s, now_s - running.started_s)
        log.error("%s died (%s); again in %.1f s", self.row.name, self.last_exit, pause_s)
