"""Serial ports of this machine: names that stay, who holds them, and which adapter it is."""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from serial.tools import list_ports as pyserial_ports

_BY_ID = Path("/dev/serial/by-id")


@dataclass(frozen=True, slots=True)
class Port:
    """A serial adapter.

    ``stable`` is a name that survives unplugging and rebooting (``/dev/serial/by-id/...``) where
    udev made one, else ``device``. ``fingerprint`` is 12 hex digits of the USB identity, empty
    when the adapter has no serial number by which two of a kind could be told apart.
    """

    device: str
    stable: str
    description: str
    fingerprint: str


def list_ports(by_id: Path = _BY_ID) -> list[Port]:
    """USB serial adapters that are plugged in, by stable name."""
    links = _stable_names(by_id)
    found = [
        Port(
            device=info.device,
            stable=links.get(str(Path(info.device).resolve()), info.device),
            description=info.description or "",
            fingerprint=fingerprint(info.vid, info.pid, info.serial_number),
        )
        for info in pyserial_ports.comports()
        if info.vid is not None
    ]
    return sorted(found, key=lambda port: port.stable)


def fingerprint(vendor: int | None, product: int | None, serial_number: str | None) -> str:
    """12 hex digits that name one adapter wherever it is plugged in, or empty."""
    if vendor is None or product is None or not serial_number:
        return ""
    identity = f"{vendor:04x}:{product:04x}:{serial_number}"
    return hashlib.sha256(identity.encode()).hexdigest()[:12]


def _stable_names(by_id: Path) -> dict[str, str]:
    if not by_id.is_dir():
        return {}
    return {str(link.resolve()): str(link) for link in sorted(by_id.iterdir())}


def is_pseudo_terminal(port: str) -> bool:
    """True for the twin's ports; a real adapter lives directly under /dev."""
    return os.path.realpath(port).startswith("/dev/pts/")


def holders_of(port: str, proc: Path = Path("/proc")) -> list[tuple[int, str]]:
    """(pid, name) of every other process that has ``port`` open, as far as this user may see."""
    device = os.path.realpath(port)
    found = []
    for entry in proc.iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        # Other users' processes hide their files, and any process may end while it is looked at.
        with contextlib.suppress(OSError):
            if any(str(link.readlink()) == device for link in (entry / "fd").iterdir()):
                found.append((int(entry.name), (entry / "comm").read_text().strip()))
    return sorted(found)
