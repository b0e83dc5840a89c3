"""A serial port of one's own: bytes in, bytes out, and one exception when it goes away.

pyserial sets the port up; bytes are then moved on its file descriptor with ``poll``, which wakes
once for what has come instead of asking again and again. The ways in which kernel and pyserial
say that an adapter is gone (``OSError``, ``SerialException``, ``termios.error``, a hang-up, an
empty read) all become `Unplugged`. The port can be opened again afterwards.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import select
import termios

import serial

from robot_io.errors import BusError, PortBusy, PortDenied, PortMissing, Unplugged
from robot_io.ports import holders_of, is_pseudo_terminal

_READ_SIZE = 4096


class SerialLink:
    """One serial port. Not thread-safe; `robot_io.bus.ServoBus` serialises its use."""

    def __init__(self, port: str, baudrate: int) -> None:
        self.port = port
        self.baudrate = baudrate
        self.unplugs = 0
        self._serial: serial.Serial | None = None
        self._fd = -1
        self._poll = select.poll()
        self._why_closed = "it has not been opened"

    @property
    def is_open(self) -> bool:
        """True between `open` and `close` or an unplug."""
        return self._serial is not None

    def open(self) -> None:
        """Open the port for this process alone. Does nothing when it is open.

        Raises:
            PortMissing: no such port.
            PortDenied: this user may not open it.
            PortBusy: another process holds it.
            BusError: it is there and yet no serial port.
        """
        if self._serial is not None:
            return
        pseudo_terminal = is_pseudo_terminal(self.port)
        # Who set no lock of his own (LeRobot sets none) is found by his open file.
        if not pseudo_terminal and (holders := holders_of(self.port)):
            raise self._busy(holders)
        link = serial.Serial()
        link.port = self.port
        link.baudrate = self.baudrate
        link.timeout = 0
        link.exclusive = True
        try:
            link.open()
            if not pseudo_terminal:
                # Keeps out those who lock nothing. The twin's side holds a pseudo-terminal open,
                # where the flag would outlive a killed agent and lock everybody out.
                fcntl.ioctl(link.fileno(), termios.TIOCEXCL)
        except (OSError, ValueError, termios.error) as error:
            link.close()
            raise self._explain(error) from error
        self._serial = link
        self._fd = link.fileno()
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def close(self, why: str = "it has been closed") -> None:
        """Close the port. Never raises and may be called twice."""
        link, self._serial, self._fd = self._serial, None, -1
        if link is None:
            return
        self._why_closed = why
        # Closing an adapter that is gone fails too, and nothing is left to do about it.
        with contextlib.suppress(OSError, termios.error):
            link.close()

    def flush_input(self) -> int:
        """Throw away what has come in; returns how many bytes that were at least.

        Raises:
            Unplugged: the port is gone.
        """
        link = self._opened()
        try:
            waiting = link.in_waiting
            # Always, because the driver may hold bytes that are not counted as waiting yet.
            link.reset_input_buffer()
        except (OSError, termios.error) as error:
            raise self._unplugged(error) from error
        return waiting

    def write(self, data: bytes, timeout_s: float) -> None:
        """Hand all of ``data`` to the kernel.

        Raises:
            Unplugged: the port is gone, or takes nothing for ``timeout_s``.
        """
        self._opened()
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:
                self._wait_writable(timeout_s)
            except OSError as error:
                raise self._unplugged(error) from error

    def read(self, timeout_s: float) -> bytes:
        """What has come, after waiting for the first byte; empty after ``timeout_s``.

        Raises:
            Unplugged: the port is gone.
        """
        self._opened()
        data = b""
        try:
            # poll counts whole milliseconds; rounding up keeps it from spinning in the last one.
            ready = self._poll.poll(math.ceil(max(timeout_s, 0.0) * 1000))
            if ready and ready[0][1] & select.POLLIN:
                data = os.read(self._fd, _READ_SIZE)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise self._unplugged(error) from error
        if ready and not data:
            # Readable and yet empty, or a hang-up or an error alone: nobody is there any more.
            raise self._unplugged("hang-up")
        return data

    def _wait_writable(self, timeout_s: float) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        if not poll.poll(math.ceil(timeout_s * 1000)):
            raise self._unplugged("it takes no more bytes")

    def _opened(self) -> serial.Serial:
        if self._serial is None:
            raise Unplugged(f"serial port {self.port} is not open: {self._why_closed}")
        return self._serial

    def _unplugged(self, reason: object) -> Unplugged:
        self.unplugs += 1
        self.close(f"it was unplugged ({reason})")
        return Unplugged(
            f"serial port {self.port} was unplugged ({reason}): plug it in again, then reset"
        )

    def _busy(self, holders: list[tuple[int, str]]) -> PortBusy:
        held = ", ".join(f"{name}, pid {pid}" for pid, name in holders)
        return PortBusy(
            f"serial port {self.port} is held by another process{f' ({held})' if held else ''}: "
            f"find it with `fuser -v {self.port}` and end it"
        )

    def _explain(self, error: Exception) -> BusError:
        code = getattr(error, "errno", None)
        if code in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
            return PortMissing(
                f"no serial port {self.port}: plug the arm in and switch it on; "
                "`armada doctor` lists the ports that are there"
            )
        if code in (errno.EACCES, errno.EPERM):
            return PortDenied(
                f"no permission to open {self.port}: add this user to the group that owns it "
                "(`sudo usermod -aG dialout $USER`) and log in again"
            )
        if code in (errno.EBUSY, errno.EAGAIN):
            return self._busy(holders_of(self.port))
        return BusError(f"{self.port} cannot be opened as a serial port: {error}")
