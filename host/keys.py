"""Single keys of the person at the terminal, where there is one."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from types import TracebackType
from typing import Any, Self


class Keys:
    """A context manager: keys come without Enter and without echo; Ctrl-C stays an interrupt.

    Without a terminal at standard input no key is ever pressed.
    """

    def __init__(self) -> None:
        self.there = sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty()
        self._before: list[Any] = []

    def __enter__(self) -> Self:
        if self.there:
            self._fd = sys.stdin.fileno()
            self._before = termios.tcgetattr(self._fd)
            tty.setcbreak(self._fd, termios.TCSANOW)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.there:
            termios.tcsetattr(self._fd, termios.TCSANOW, self._before)

    def pressed(self, wait_s: float) -> str | None:
        """The next key, in lower case; None when none came in time."""
        if not self.there:
            time.sleep(wait_s)
            return None
        if not select.select([self._fd], [], [], wait_s)[0]:
            return None
        typed = os.read(self._fd, 1)
        if not typed:  # the terminal is gone
            self.there = False
        return typed.decode(errors="replace").lower() or None
