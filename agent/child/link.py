"""The line between the supervisor and each child: JSON lines over a socketpair.

A child finds its end in the environment variable ARMADA_LINK_FD. A process started by hand has no
link; `ChildLink.from_environment()` then gives one that swallows what is sent and never receives.
"""

from __future__ import annotations

import json
import os
import select
import socket
import threading
from collections import deque
from typing import Any

from agent.errors import BadLinkMessage, LinkClosed

LINK_FD = "ARMADA_LINK_FD"
MAX_LINE_BYTES = 1 << 20  # a status is some kilobytes; a megabyte is somebody's mistake
MAX_OUTBOX = 256  # messages kept for a child that does not read


def encode_line(kind: str, fields: dict[str, Any]) -> bytes:
    """One message as one line of JSON. Raises BadLinkMessage if a field is not JSON."""
    try:
        line = json.dumps({"kind": kind, **fields}, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadLinkMessage(f"link message {kind!r} is not JSON: {error}") from error
    return line.encode() + b"\n"


def decode_line(line: bytes) -> dict[str, Any]:
    """The message in one line. Raises BadLinkMessage if it is not a JSON object with a kind."""
    try:
        message = json.loads(line)
    except ValueError as error:
        raise BadLinkMessage(f"link line is not JSON: {line[:80]!r}") from error
    if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
        raise BadLinkMessage(f"link line has no kind: {line[:80]!r}")
    return message


class LineBuffer:
    """Cuts a byte stream into messages; pure."""

    def __init__(self) -> None:
        self._bytes = b""

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Messages completed by `data`. Raises BadLinkMessage for a bad or endless line."""
        *lines, self._bytes = (self._bytes + data).split(b"\n")
        if len(self._bytes) > MAX_LINE_BYTES:
            raise BadLinkMessage(f"link line is longer than {MAX_LINE_BYTES} bytes")
        return [decode_line(line) for line in lines if line]


class ChildLink:
    """A child's end. `send` may be called from several threads, `receive` from one."""

    def __init__(self, connection: socket.socket | None) -> None:
        self._connection = connection
        self._buffer = LineBuffer()
        self._inbox: deque[dict[str, Any]] = deque()
        self._send_lock = threading.Lock()
        if connection is not None:
            connection.setblocking(True)

    @classmethod
    def from_environment(cls) -> ChildLink:
        """The link the supervisor handed down, or a null link when there is none."""
        number = os.environ.pop(LINK_FD, None)  # grandchildren must not take it for theirs
        if number is None:
            return cls(None)
        connection = socket.socket(fileno=int(number))
        connection.set_inheritable(False)
        return cls(connection)

    @property
    def connected(self) -> bool:
        """False for a process that was started by hand."""
        return self._connection is not None

    def fileno(self) -> int:
        """The descriptor to poll, or -1 for a null link."""
        return -1 if self._connection is None else self._connection.fileno()

    def heartbeat(self) -> None:
        """Say that the loop body is alive. Raises LinkClosed."""
        self.send("heartbeat")

    def send(self, kind: str, **fields: Any) -> None:
        """Send one message. Raises LinkClosed when the supervisor is gone, BadLinkMessage."""
        if self._connection is None:
            return
        line = encode_line(kind, fields)
        with self._send_lock:
            try:
                self._connection.sendall(line)
            except OSError as error:
                raise LinkClosed("the supervisor is gone") from error

    def receive(self, timeout_s: float = 0.0) -> dict[str, Any] | None:
        """The next message, or None after `timeout_s`. Raises LinkClosed, BadLinkMessage."""
        if self._inbox:
            return self._inbox.popleft()
        if self._connection is None:
            if timeout_s > 0:
                select.select([], [], [], timeout_s)
            return None
        poller = select.poll()
        poller.register(self._connection, select.POLLIN)
        if not poller.poll(timeout_s * 1000.0):
            return None
        try:
            data = self._connection.recv(65536)
        except OSError as error:
            raise LinkClosed("the supervisor is gone") from error
        if not data:
            raise LinkClosed("the supervisor is gone")
        self._inbox.extend(self._buffer.feed(data))
        return self._inbox.popleft() if self._inbox else None

    def close(self) -> None:
        """Close the descriptor; later calls behave as on a null link."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class ParentLink:
    """The supervisor's end. Never blocks: what a child does not read waits in a bounded outbox.

    A frozen child reads nothing for hours, so a newer message of kind `state` replaces an older
    one that still waits.
    """

    def __init__(self) -> None:
        self._connection, self._child_end = socket.socketpair()
        self._connection.setblocking(False)
        self._buffer = LineBuffer()
        self._outbox: deque[tuple[str, bytes]] = deque()
        self._partial = b""

    def fileno(self) -> int:
        """The descriptor to watch for reading."""
        return self._connection.fileno()

    def child_fd(self) -> int:
        """The child's descriptor, to be passed on by `pass_fds`."""
        return self._child_end.fileno()

    def close_child_end(self) -> None:
        """Call once the child is started, so that its death closes the link."""
        self._child_end.close()

    def send(self, kind: str, **fields: Any) -> None:
        """Queue one message and write what the child takes now. Raises LinkClosed."""
        line = encode_line(kind, fields)
        if kind == "state":
            self._outbox = deque(item for item in self._outbox if item[0] != "state")
        if len(self._outbox) >= MAX_OUTBOX:
            raise LinkClosed(f"the child has left {MAX_OUTBOX} messages unread")
        self._outbox.append((kind, line))
        self.flush()

    def flush(self) -> bool:
        """Write what the child takes now; True when nothing waits. Raises LinkClosed."""
        while self._partial or self._outbox:
            if not self._partial:
                self._partial = self._outbox.popleft()[1]
            try:
                sent = self._connection.send(self._partial)
            except BlockingIOError:
                return False
            except OSError as error:
                raise LinkClosed("the child is gone") from error
            self._partial = self._partial[sent:]
        return True

    def receive_all(self) -> list[dict[str, Any]]:
        """All messages that are there now. Raises LinkClosed at end of stream, BadLinkMessage."""
        messages: list[dict[str, Any]] = []
        while True:
            try:
                data = self._connection.recv(65536)
            except BlockingIOError:
                return messages
            except OSError as error:
                raise LinkClosed("the child is gone") from error
            if not data:
                if messages:
                    return messages  # the next call finds the end again
                raise LinkClosed("the child is gone")
            messages.extend(self._buffer.feed(data))

    def close(self) -> None:
        """Close both ends."""
        self._connection.close()
        self._child_end.close()
