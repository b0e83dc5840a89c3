"""Both ends of the inference socket.

Control listens (`PolicyChannel`), the inference process connects (`InferenceEnd`). One I/O thread
on control's side does all that could wait, so the loop only leaves a request in a mailbox, where a
newer one replaces an older one that was not sent yet, and picks up replies that are there.
The newest connection counts: an inference process that was restarted replaces the one before.
"""

from __future__ import annotations

import itertools
import logging
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from agent.inference.errors import BadFrame, ControlGone, InferenceGone, InferenceLate
from agent.inference.wire import Array, FrameParser, InferenceMessage, encode_frame
from host.threads import OnCrash, only_logged, spawn

log = logging.getLogger(__name__)

GONE = "gone"  # the kind of the frame that PolicyChannel itself puts among the replies
_SOCKET_BUFFER_BYTES = 1 << 20  # the kernel caps it; a small picture then fits in one write
_REPLIES_KEPT = 64  # nobody reads while no episode runs
_UCRED = struct.Struct("3i")  # pid, uid, gid of SO_PEERCRED, socket(7)


class _Peer:
    """A non-blocking stream socket that speaks frames."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)
        self.connection = connection
        self._parser = FrameParser()
        self._out: deque[memoryview] = deque()

    @property
    def sending(self) -> bool:
        """True while a frame is only partly written."""
        return bool(self._out)

    def queue(self, header: Mapping[str, Any], arrays: Mapping[str, Array] | None = None) -> None:
        """Add a frame to what is to be written. Raises BadFrame."""
        self._out.extend(memoryview(buffer) for buffer in encode_frame(header, arrays))

    def flush(self) -> None:
        """Write what the other side takes now. Raises OSError."""
        while self._out:
            try:
                sent = self.connection.sendmsg(list(itertools.islice(self._out, 16)))
            except BlockingIOError:
                return
            while sent:
                first = self._out[0]
                if sent < len(first):
                    self._out[0] = first[sent:]
                    break
                sent -= len(self._out.popleft())

    def read(self) -> list[InferenceMessage]:
        """Return the frames that are complete now. Raises OSError, EOFError, BadFrame."""
        frames: list[InferenceMessage] = []
        while True:
            try:
                count = self.connection.recv_into(self._parser.space())
            except BlockingIOError:
                return frames
            if count == 0:
                if frames:
                    return frames  # the next call finds the end again
                raise EOFError
            frame = self._parser.filled(count)
            if frame is not None:
                frames.append(frame)


class PolicyChannel:
    """Control's end. `submit` and `replies` never wait; `request` does and is not for the loop."""

    def __init__(
        self, path: Path, realtime_priority: int = 0, on_crash: OnCrash = only_logged
    ) -> None:
        """Take the socket's path; `open` makes it.

        `realtime_priority` is the loop's own (SCHED_FIFO; 0: none). The I/O thread needs the same:
        while it holds Python's lock, the loop waits for whatever keeps it from the processor.
        """
        self.path = path
        self._realtime_priority = realtime_priority
        self._on_crash = on_crash
        self._listener: socket.socket | None = None
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread: threading.Thread | None = None
        self._closing = False
        self._peer: _Peer | None = None  # touched by the I/O thread alone
        self._mailbox: deque[tuple[dict[str, Any], dict[str, Array]]] = deque(maxlen=1)
        self._commands: deque[dict[str, Any]] = deque()
        self._replies: deque[InferenceMessage] = deque(maxlen=_REPLIES_KEPT)
        self._waiting: dict[int, SimpleQueue[InferenceMessage]] = {}
        self._command_ids = itertools.count(1)
        self._greeting: dict[str, Any] | None = None
        self._connected = threading.Event()

    def open(self) -> None:
        """Listen. A socket left by a dead process is replaced. Raises OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        listener.setblocking(False)
        listener.bind(str(self.path))
        self.path.chmod(0o600)  # nobody can connect before listen()
        listener.listen(4)
        self._listener = listener
        self._thread = spawn("inference-io", self._run, self._died)

    def close(self) -> None:
        """Close the socket and end the thread."""
        self._closing = True
        if self._thread is not None:
            os.eventfd_write(self._wake, 1)
            self._thread.join(timeout=5.0)
            self._thread = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            self.path.unlink(missing_ok=True)
        if self._wake >= 0:
            os.close(self._wake)
            self._wake = -1

    @property
    def connected(self) -> bool:
        """True while an inference process is connected (it may still hang)."""
        return self._connected.is_set()

    def submit(self, header: dict[str, Any], arrays: dict[str, Array]) -> None:
        """Leave a request to be sent; one that still waits there is replaced. Never waits.

        The arrays must not change afterwards.
        """
        self._mailbox.append((header, arrays))
        os.eventfd_write(self._wake, 1)

    def replies(self) -> list[InferenceMessage]:
        """Return what came since the last call, in order; GONE frames mark a lost connection."""
        frames: list[InferenceMessage] = []
        while self._replies:
            frames.append(self._replies.popleft())
        return frames

    def request(self, header: dict[str, Any], timeout_s: float) -> InferenceMessage:
        """Send a command and wait for its reply, first for a connection if there is none.

        Raises InferenceLate, InferenceGone.
        """
        deadline_s = time.monotonic() + timeout_s
        if not self._connected.wait(timeout_s):
            raise InferenceGone(
                f"no inference process connected to {self.path} within {timeout_s:g} s; "
                "see its log for why it does not start"
            )
        command = next(self._command_ids)
        waiter: SimpleQueue[InferenceMessage] = SimpleQueue()
        self._waiting[command] = waiter
        try:
            self._commands.append({**header, "command": command})
            os.eventfd_write(self._wake, 1)
            reply = waiter.get(timeout=max(0.0, deadline_s - time.monotonic()))
        except Empty:
            raise InferenceLate(
                f"the inference process did not answer {header['kind']!r} within {timeout_s:g} s"
            ) from None
        finally:
            self._waiting.pop(command, None)
        if reply.kind == GONE:
            raise InferenceGone(f"the inference process ended during {header['kind']!r}")
        return reply

    def greet_with(self, header: dict[str, Any] | None) -> int:
        """Set what each new connection is told first; return the `command` its reply will carry.

        The reply comes among the replies. One to an earlier greeting may still come, too.
        """
        command = -next(self._command_ids)  # below zero: nobody waits for it in `request`
        self._greeting = None if header is None else {**header, "command": command}
        return command

    def _run(self) -> None:
        assert self._listener is not None
        self._take_priority()
        poller = select.poll()
        poller.register(self._listener, select.POLLIN)
        poller.register(self._wake, select.POLLIN)
        while not self._closing:
            for descriptor, events in poller.poll():
                if descriptor == self._wake:
                    os.eventfd_read(self._wake)
                elif descriptor == self._listener.fileno():
                    self._accept(poller)
                elif self._peer is not None and events & ~select.POLLOUT:
                    self._receive(poller)
            self._send(poller)
        self._drop(poller, "the channel was closed")

    def _take_priority(self) -> None:
        if self._realtime_priority == 0:
            return
        policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
        try:  # 0: this thread alone
            os.sched_setscheduler(0, policy, os.sched_param(self._realtime_priority))
        except OSError as error:
            log.info("the inference socket's thread gets no real-time priority: %s", error.strerror)

    def _accept(self, poller: select.poll) -> None:
        assert self._listener is not None
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # it hung up again before we came
        ucred = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        pid, uid, _ = _UCRED.unpack(ucred)
        if uid != os.getuid():
            log.warning("process %d of another user (uid %d) refused", pid, uid)
            connection.close()
            return
        self._drop(poller, f"replaced by process {pid}")
        self._mailbox.clear()  # what waited there was meant for the one before
        self._peer = _Peer(connection)
        poller.register(connection, select.POLLIN)
        if self._greeting is not None:
            self._peer.queue(self._greeting)
        self._connected.set()
        log.info("inference process %d connected", pid)

    def _receive(self, poller: select.poll) -> None:
        assert self._peer is not None
        try:
            frames = self._peer.read()
        except EOFError:
            self._drop(poller, "it closed the socket")
            return
        except (OSError, BadFrame) as error:
            self._drop(poller, str(error))
            return
        for frame in frames:
            waiter = self._waiting.get(frame.header.get("command", 0))
            if waiter is not None:
                waiter.put(frame)
            else:
                self._replies.append(frame)

    def _send(self, poller: select.poll) -> None:
        peer = self._peer
        if peer is None:
            return
        try:
            peer.flush()
            while not peer.sending and self._commands:
                peer.queue(self._commands.popleft())
                peer.flush()
            while not peer.sending and self._mailbox:
                self._queue_request(peer)
                peer.flush()
        except OSError as error:
            self._drop(poller, str(error))
            return
        poller.modify(peer.connection, select.POLLIN | (select.POLLOUT if peer.sending else 0))

    def _queue_request(self, peer: _Peer) -> None:
        header, arrays = self._mailbox.popleft()
        try:
            peer.queue(header, arrays)
        except BadFrame as error:
            self._replies.append(
                InferenceMessage({"kind": "failed", "id": header["id"], "error": str(error)})
            )

    def _died(self, line: str) -> None:
        """Nobody reads or writes any more: whoever waits is told, and later requests find none."""
        self._connected.clear()
        self._tell_gone(line)
        self._on_crash(line)

    def _drop(self, poller: select.poll, reason: str) -> None:
        if self._peer is None:
            return
        self._connected.clear()
        poller.unregister(self._peer.connection)
        self._peer.connection.close()
        self._peer = None
        self._commands.clear()
        self._tell_gone(reason)
        log.warning("inference process disconnected: %s", reason)

    def _tell_gone(self, reason: str) -> None:
        gone = InferenceMessage({"kind": GONE, "error": reason})
        self._replies.append(gone)
        for waiter in list(self._waiting.values()):
            waiter.put(gone)


class InferenceEnd:
    """The inference process's end; one thread."""

    def __init__(self, path: Path) -> None:
        """Connect. Raises ControlGone when nobody listens there."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            connection.connect(str(path))
        except OSError as error:
            connection.close()
            raise ControlGone(f"control does not listen on {path}: {error.strerror}") from error
        self._peer = _Peer(connection)

    def receive(self, timeout_s: float) -> list[InferenceMessage]:
        """Return every frame that is complete, at most after `timeout_s`; maybe none.

        Raises ControlGone, BadFrame.
        """
        self._wait(select.POLLIN, timeout_s)
        try:
            return self._peer.read()
        except (EOFError, OSError) as error:
            raise ControlGone("control closed the inference socket") from error

    def send(self, header: Mapping[str, Any], arrays: Mapping[str, Array] | None = None) -> None:
        """Write one frame, waiting until the kernel has it all. Raises ControlGone, BadFrame."""
        self._peer.queue(header, arrays)
        try:
            self._peer.flush()
            while self._peer.sending:
                self._wait(select.POLLOUT, 1.0)
                self._peer.flush()
        except OSError as error:
            raise ControlGone("control closed the inference socket") from error

    def close(self) -> None:
        """Hang up."""
        self._peer.connection.close()

    def _wait(self, events: int, timeout_s: float) -> None:
        poller = select.poll()
        poller.register(self._peer.connection, events)
        poller.poll(timeout_s * 1000.0)
