"""Tells systemd how the unit is: sd_notify(3) in a datagram, nothing when not under systemd."""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger(__name__)


class Notifier:
    """Sends to the socket that systemd named; every method is a no-op without one."""

    def __init__(self, address: str | None, watchdog_usec: str | None) -> None:
        self._address = address
        self._period_s: float | None = None
        if address and watchdog_usec and watchdog_usec.isdigit():
            self._period_s = int(watchdog_usec) / 1e6 / 2.0  # half the limit, as sd_watchdog says

    @classmethod
    def from_environment(cls) -> Notifier:
        """Take the address out of the environment, so that no child speaks in our name."""
        return cls(os.environ.pop("NOTIFY_SOCKET", None), os.environ.pop("WATCHDOG_USEC", None))

    @property
    def watchdog_period_s(self) -> float | None:
        """How often to call `watchdog`, None if systemd does not ask for it."""
        return self._period_s

    def ready(self, status: str) -> None:
        """The API answers."""
        self._send(f"READY=1\nSTATUS={status}")

    def watchdog(self, status: str) -> None:
        """The supervisor's loop is alive."""
        self._send(f"WATCHDOG=1\nSTATUS={status}")

    def stopping(self) -> None:
        """The arm is being parked."""
        self._send("STOPPING=1\nSTATUS=parking the arm")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        address = self._address
        if address.startswith("@"):  # abstract namespace
            address = "\0" + address[1:]
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                # A systemd that does not read must not stop the supervisor's loop.
                sender.sendto(text.encode(), socket.MSG_DONTWAIT, address)
        except OSError as error:
            log.warning("systemd cannot be told: %s", error)
