"""A sleep that other threads and signal handlers can end."""

from __future__ import annotations

import contextlib
import os
import select


class Wake:
    """Ends the main thread's sleep from any thread or signal handler."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def __call__(self) -> None:
        with contextlib.suppress(BlockingIOError):  # a full pipe: it is awake already
            os.write(self._write, b"\0")

    def wait(self, other_fd: int, timeout_s: float) -> None:
        """Sleep until woken, until `other_fd` (if not -1) has something, or `timeout_s`."""
        poller = select.poll()
        poller.register(self._read, select.POLLIN)
        if other_fd >= 0:
            poller.register(other_fd, select.POLLIN)
        poller.poll(max(0.0, timeout_s) * 1000.0)
        try:
            while os.read(self._read, 4096):
                pass
        except BlockingIOError:
            return
