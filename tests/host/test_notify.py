"""What systemd is told."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

import pytest

from host.notify import Notifier


def test_it_is_told_in_datagrams(tmp_path: Path) -> None:
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(address))
        notifier = Notifier(str(address), "30000000")
        assert notifier.watchdog_period_s == 15.0
        notifier.ready("idle")
        notifier.watchdog("teleop")
        notifier.stopping()
        assert listener.recv(100) == b"READY=1\nSTATUS=idle"
        assert listener.recv(100) == b"WATCHDOG=1\nSTATUS=teleop"
        assert listener.recv(100).startswith(b"STOPPING=1\n")


def test_without_systemd_nothing_is_sent_and_nothing_fails() -> None:
    notifier = Notifier(None, None)
    notifier.ready("idle")
    assert notifier.watchdog_period_s is None


def test_a_socket_that_is_gone_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        Notifier(str(tmp_path / "gone"), None).ready("idle")
    assert "systemd cannot be told" in caplog.text


def test_a_systemd_that_does_not_read_stops_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(address))
        notifier = Notifier(str(address), "30000000")
        queue = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())
        for _ in range(queue + 5):
            notifier.watchdog("idle")
    assert "systemd cannot be told" in caplog.text


def test_children_do_not_inherit_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "@abstract")
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    assert Notifier.from_environment().watchdog_period_s == 1.0
    assert "NOTIFY_SOCKET" not in os.environ
    assert "WATCHDOG_USEC" not in os.environ
