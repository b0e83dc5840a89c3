"""What the twin's processes share as processes: birth, death with the parent, messages.

A message is one SEQPACKET datagram: a JSON header, and for a hand's plan a newline and raw
float64 behind it. Each request gets one reply.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

from host.parent import bind_to_parent
from robot_io.twin.errors import BadRequest, TwinProcessDied

_PR_SET_TIMERSLACK = 29
MESSAGE_MAX_BYTES = 1 << 20


def become_child(parent: int) -> Callable[[], bool]:
    """Tie this process to ``parent`` and give a function that says whether to go on.

    The kernel kills this process when the parent dies; a terminal's Ctrl-C is left to the parent,
    which ends its children in order by SIGTERM.

    Raises:
        SystemExit: the parent is gone already.
    """
    bind_to_parent(parent, signal.SIGKILL)
    # Sleeps of a fraction of a millisecond (a wire at 1 Mbaud) must not be rounded up by 50 us.
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    running = True

    def stop(_signal: int, _frame: object) -> None:
        nonlocal running
        running = False

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop)
    return lambda: running


def act_as_hardware(priority: int) -> None:
    """Ask for SCHED_FIFO: servos do not wait while a host's programs share its processors.

    Where it is not permitted the twin runs as an ordinary process, and a host that is busy for
    longer than its own reply time-out sees servos that are late.
    """
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))


def receive(link: socket.socket, wait: bool = False) -> tuple[dict[str, Any], bytes] | None:
    """The next message; None when none waits, unless ``wait`` says to wait for one.

    Raises:
        EOFError: the other end is closed.
    """
    try:
        data = link.recv(MESSAGE_MAX_BYTES, 0 if wait else socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None
    if not data:
        raise EOFError("the twin's main process closed its end")
    header, _, rest = data.partition(b"\n")
    return json.loads(header), rest


def reply(link: socket.socket, **fields: Any) -> None:
    """Answer the message that was just received."""
    link.send(json.dumps(fields).encode())


class TwinProcess:
    """The parent's end of one process: requests, one at a time."""

    def __init__(self, name: str, link: socket.socket) -> None:
        self.name = name
        self._link = link
        self._lock = threading.Lock()
        link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MESSAGE_MAX_BYTES)

    def ask(self, payload: bytes = b"", timeout_s: float = 5.0, **fields: Any) -> dict[str, Any]:
        """Send ``fields`` and wait for the reply.

        Raises:
            BadRequest: the process refused, with its reason.
            TwinProcessDied: no reply.
        """
        message = json.dumps(fields).encode() + b"\n" + payload
        with self._lock:
            self._link.settimeout(timeout_s)
            try:
                self._link.send(message)
                data = self._link.recv(MESSAGE_MAX_BYTES)
            except OSError as error:
                raise TwinProcessDied(f"the twin's {self.name} process: {error}") from error
        if not data:
            raise TwinProcessDied(f"the twin's {self.name} process has ended")
        answer: dict[str, Any] = json.loads(data)
        if "error" in answer:
            raise BadRequest(answer["error"])
        return answer

    def close(self) -> None:
        """Close this end; the process sees that and ends too."""
        self._link.close()
