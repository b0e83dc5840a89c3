"""One rule for threads: none ends in silence.

Whatever runs on a thread of its own, in an executor or as somebody's callback is `guarded`: an
exception that it did not foresee is logged with its traceback and told as one line, `WHAT died:
TYPE: text`, to whoever keeps the status.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable
from typing import NoReturn

log = logging.getLogger(__name__)

CRASHED = 70  # exit status; EX_SOFTWARE of sysexits.h

OnCrash = Callable[[str], None]


def guarded[**P](what: str, function: Callable[P, None], on_crash: OnCrash) -> Callable[P, None]:
    """`function`, with its unforeseen exceptions given to `on_crash` as one line.

    SystemExit is one of them: a thread that raises it ends without a word. What `on_crash` raises
    goes to the caller.
    """

    @functools.wraps(function)
    def run(*arguments: P.args, **named: P.kwargs) -> None:
        try:
            function(*arguments, **named)
        except (Exception, SystemExit) as error:
            line = f"{what} died: {type(error).__name__}: {error}"
            log.critical("%s", line, exc_info=True)
            on_crash(line)

    return run


def spawn(name: str, target: Callable[[], None], on_crash: OnCrash) -> threading.Thread:
    """Start a daemon thread; its death is told as `thread NAME died: …`."""
    thread = threading.Thread(
        target=guarded(f"thread {name}", target, on_crash), name=name, daemon=True
    )
    thread.start()
    return thread


def only_logged(_line: str) -> None:
    """An `on_crash` for a part that shows by itself that it is dead."""


def exit_process(_line: str) -> NoReturn:
    """An `on_crash` for a process that is of no use without the thread: end it at once."""
    logging.shutdown()
    os._exit(CRASHED)
