"""One row of the process table: what a child is, and how it is started."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agent.operations.state_machine import Permissions

Predicate = Callable[[Permissions], bool]


@dataclass(frozen=True)
class ProcessRow:
    """One process.

    `otherwise` says what becomes of it when it may not run: `freeze` stops its whole process group
    by SIGSTOP and lets it go on later; `stop` ends it. `parent_death_signal` is what the kernel
    sends it if the supervisor dies. `silence_s` is the longest time without a heartbeat, counted
    from the first one and not while frozen.
    """

    name: str
    module: str
    runs: Predicate
    otherwise: Literal["freeze", "stop"] = "stop"
    nice: int = 0
    silence_s: float = 60.0
    stop_grace_s: float = 3.0
    parent_death_signal: signal.Signals = signal.SIGKILL

    def command(self, config_path: Path, parent_pid: int) -> list[str]:
        """The command line: the launcher binds the child to its parent, then becomes the module."""
        launcher = [sys.executable, "-m", "host.launch", str(parent_pid)]
        settings = [str(int(self.parent_death_signal)), str(self.nice)]
        return [*launcher, *settings, self.module, "--config", str(config_path)]
