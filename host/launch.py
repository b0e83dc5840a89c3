"""Becomes a bound child: `python -m host.launch PARENT SIGNAL NICE MODULE [ARG…]`.

The kernel is asked for a signal at the parent's death before any of the module's own code runs.
Doing so here, after exec, spares the parent a fork that runs Python.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys

from host.parent import bind_to_parent


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
