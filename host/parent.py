"""Binds a process to the one that started it."""

from __future__ import annotations

import ctypes
import os

_PR_SET_PDEATHSIG = 1  # prctl(2)


def bind_to_parent(parent_pid: int, death_signal: int) -> None:
    """Ask the kernel (Linux) for `death_signal` when the thread that started this process ends.

    Raises SystemExit when that parent is dead already, OSError when the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl(PR_SET_PDEATHSIG): {os.strerror(error)}")
    if os.getppid() != parent_pid:
        raise SystemExit(1)
