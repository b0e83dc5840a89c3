"""The audit log: append-only JSON lines, each carrying the hash of the one before.

A line that is changed, removed or put in breaks the chain at that line. Cutting off the end leaves
a chain that is whole, so the campaign's durable state keeps the newest hash it has seen, and
`verify(path, must_contain=…)` finds the cut.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from coordinator.errors import AuditBroken
from host.files import sync_folder

GENESIS = "0" * 64
_KEYS = {"sequence", "unix_s", "kind", "fields", "previous", "hash"}


def _hash(entry: dict[str, Any]) -> str:
    body = {key: entry[key] for key in sorted(_KEYS - {"hash"})}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return sha256(text.encode()).hexdigest()


def _entries(content: bytes, name: str) -> Iterator[dict[str, Any]]:
    """Each entry of a log that must be whole; raises AuditBroken at the first that is not."""
    previous, sequence = GENESIS, 0
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise AuditBroken(f"{name}:{number}: not JSON; the log was damaged here") from error
        if not isinstance(entry, dict) or set(entry) != _KEYS:
            raise AuditBroken(f"{name}:{number}: not an audit entry")
        if entry["previous"] != previous or entry["sequence"] != sequence:
            raise AuditBroken(f"{name}:{number}: does not follow the line before it")
        if entry["hash"] != _hash(entry):
            raise AuditBroken(f"{name}:{number}: was changed after it was written")
        previous, sequence = entry["hash"], sequence + 1
        yield entry


def verify(path: Path, must_contain: str | None = None) -> int:
    """Number of entries; raises AuditBroken with the first line that does not chain.

    `must_contain` is a hash that was seen before: a log cut off behind it is refused.
    """
    content = path.read_bytes() if path.exists() else b""
    seen = {GENESIS}
    count = 0
    for entry in _entries(content, path.name):
        seen.add(entry["hash"])
        count += 1
    if must_contain is not None and must_contain not in seen:
        raise AuditBroken(f"{path.name}: the end is missing; entry {must_contain[:12]}… is gone")
    return count


class AuditLog:
    """Appends to one file. `wall` gives unix seconds.

    Opening verifies the chain (AuditBroken). A last line without its newline was being written
    when the machine died: it was never acknowledged, and is cut off.
    """

    def __init__(self, path: Path, wall: Callable[[], float]) -> None:
        self._path = path
        self._wall = wall
        path.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(path, len(whole))
        self.head = GENESIS
        self._sequence = 0
        for entry in _entries(whole, path.name):
            self.head = entry["hash"]
            self._sequence = entry["sequence"] + 1
        # Unbuffered: an entry is one write.
        self._stream = path.open("ab", buffering=0)
        sync_folder(path.parent)

    def append(self, kind: str, fields: dict[str, Any]) -> str:
        """Write one entry durably; returns its hash. Fields must be JSON."""
        entry: dict[str, Any] = {
            "sequence": self._sequence,
            "unix_s": round(self._wall(), 3),
            "kind": kind,
            # Through JSON once, so that what is hashed is what will be read back.
            "fields": json.loads(json.dumps(fields, allow_nan=False)),
            "previous": self.head,
        }
        entry["hash"] = _hash(entry)
        self._stream.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
        os.fsync(self._stream.fileno())
        self.head = entry["hash"]
        self._sequence += 1
        return self.head

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
