"""The person beside the arm, as far as a program can be one: the twin's control socket."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any, Self

from deploy.local_fleet.errors import TwinRefused


class TwinControl:
    """One request, one reply, newline-delimited JSON over a Unix socket."""

    def __init__(self, path: Path, timeout_s: float = 60.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        self._socket.connect(str(path))
        self._reader = self._socket.makefile("rb")

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """Send one operation and wait for its reply.

        Raises:
            TwinRefused: the twin answered with an error, or went away.
        """
        self._socket.sendall(json.dumps({"op": op, **fields}).encode() + b"\n")
        line = self._reader.readline()
        if not line:
            raise TwinRefused(f"the twin closed its control socket during {op!r}")
        reply: dict[str, Any] = json.loads(line)
        if not reply.get("ok"):
            raise TwinRefused(f"twin refused {op!r}: {reply.get('error', reply)}")
        return reply

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the twin goes on."""
        self._reader.close()
        self._socket.close()
