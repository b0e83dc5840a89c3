"""Becomes a child of the supervisor: `python -m agent.launch PARENT SIGNAL NICE MODULE [ARG…]`.

The kernel is asked for a signal at the parent's death before any of the module's own code runs.
Doing so here, after exec, spares the supervisor a fork that runs Python.
"""

from __future__ import annotations

import ctypes
import logging
import os
import runpy
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2)

log = logging.getLogger(__name__)


def bind_to_parent(parent_pid: int, death_signal: int) -> None:
    """Ask for `death_signal` when the parent dies; exit if it is already dead."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl(PR_SET_PDEATHSIG): {os.strerror(error)}")
    if os.getppid() != parent_pid:
        sys.exit(1)


def main(argv: list[str]) -> None:
    """Bind, set the priority, then run the module as `__main__`."""
    parent_pid, death_signal, nice = (int(text) for text in argv[:3])
    module, *arguments = argv[3:]
    bind_to_parent(parent_pid, death_signal)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
    if nice:
        os.nice(nice)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
