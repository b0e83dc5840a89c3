"""One row of the process table: what a child is, and how it is started."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agent.operations.state_machine import Permissions
from host.children import module_command
from host.restarts import Backoff

Predicate = Callable[[Permissions], bool]
BACKOFF = Backoff()


@dataclass(frozen=True)
class ProcessRow:
    """One process.

    `otherwise` says what becomes of it when it may not run: `freeze` stops its whole process group
    by SIGSTOP and lets it go on later; `stop` ends it. `parent_death_signal` is what the kernel
    sends it if the supervisor dies. `silence_s` is the longest time without a heartbeat, counted
    from the first one and not while frozen. `backoff` is the pause before the next start when the
    process died unasked. `gives_memory_back`: frozen, it may be killed when the host is short of
    memory; what it must not lose is on the disk.
    """

    name: str
    module: str
    runs: Predicate
    otherwise: Literal["freeze", "stop"] = "stop"
    nice: int = 0
    silence_s: float = 60.0
    stop_grace_s: float = 3.0
    parent_death_signal: signal.Signals = signal.SIGKILL
    backoff: Backoff = BACKOFF
    gives_memory_back: bool = False

    def command(self, config_path: Path) -> list[str]:
        """The command line; the kernel ends the process with the thread that starts it."""
        return module_command(
            self.module,
            "--config",
            str(config_path),
            death_signal=self.parent_death_signal,
            nice=self.nice,
        )
