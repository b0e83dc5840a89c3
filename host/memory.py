"""How much memory the host has left, and a limit on what this process takes."""

from __future__ import annotations

import re
import resource
from dataclasses import dataclass
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class MemoryReserve:
    """When a process that does nothing must give its memory back, and when it may have it again.

    Pure. ``below_bytes``: what the host is to have left; 0: nothing is ever given back.
    """

    below_bytes: int

    def is_short(self, available_bytes: int | None) -> bool:
        """Whether the host has less left than it is to have."""
        return available_bytes is not None and available_bytes < self.below_bytes

    def has_room(self, available_bytes: int | None, wanted_bytes: int) -> bool:
        """Whether so much can be taken without being short at once."""
        return available_bytes is None or available_bytes >= self.below_bytes + wanted_bytes


def available_bytes(meminfo: Path = _MEMINFO) -> int | None:
    """What programs can still take without swapping; None where the kernel does not tell."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo.read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else int(found[1]) << 10


def resident_bytes(pid: int) -> int:
    """What a process holds in memory; 0 when there is none of this number."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * resource.getpagesize()


def limit_memory(limit_bytes: int) -> None:
    """Let this process take so much and then fail to get more; 0: no limit.

    By RLIMIT_DATA: what it allocates counts, files and libraries do not.
    """
    if limit_bytes:
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, hard))
