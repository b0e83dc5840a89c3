"""The emergency stop without its command line: one request, and next to nothing imported.

It does what `armada estop` does in the plain case. In any other (an option that it does not know,
a configuration that it cannot read at a glance, no answer, a refusal) it says so by None, and the
whole command takes its turn, which is slower and explains. To stop twice does no harm.
"""

from __future__ import annotations

import _socket  # `socket` itself imports enum and selectors: a fifth of the time there is
import os

from agent.places import AGENT_SOCKET, CONFIG_VARIABLE, DEFAULT_CONFIG, STATE_DIR_VARIABLE

STOPPED = "stopped; `armada reset` lifts the stop and parks the arm"
ANSWER_S = 2.0
MAX_REPLY_BYTES = 1 << 16


def stop(arguments: list[str]) -> str | None:
    """Stop by `[--config FILE] [--release]`; the line to print, or None where it did not."""
    config, release = os.environ.get(CONFIG_VARIABLE, DEFAULT_CONFIG), False
    rest = list(arguments)
    while rest:
        option = rest.pop(0)
        if option == "--release":
            release = True
        elif option == "--config" and rest:
            config = rest.pop(0)
        else:
            return None
    state_dir = _state_dir(config)
    if state_dir is None or not _asked(os.path.join(state_dir, AGENT_SOCKET), release):  # noqa: PTH118
        return None
    return STOPPED


def _asked(path: str, release: bool) -> bool:
    """Whether the agent at this socket said that it has stopped."""
    body = b'{"release": true}' if release else b""
    fields = f"Host: agent\r\nConnection: close\r\nContent-Length: {len(body)}"
    caller = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        caller.settimeout(ANSWER_S)
        caller.connect(path)
        caller.sendall(f"POST /v1/estop HTTP/1.1\r\n{fields}\r\n\r\n".encode() + body)
        return caller.recv(MAX_REPLY_BYTES).startswith(b"HTTP/1.1 200 ")
    except OSError:
        return False
    finally:
        caller.close()


def _state_dir(config: str) -> str | None:
    """`paths.state_dir`, if it stands there plainly; None leaves it to who reads TOML."""
    for name, value in os.environ.items():
        if name.upper() == STATE_DIR_VARIABLE:
            return value if os.path.isabs(value) else None  # noqa: PTH117
    table = ""
    try:
        with open(config, encoding="utf-8") as file:  # noqa: PTH123
            for line in file:
                text = line.strip()
                if text.startswith("["):
                    table = text
                key, equals, value = text.partition("=")
                if table == "[paths]" and equals and key.strip() == "state_dir":
                    return _beside(config, value.strip())
    except (OSError, UnicodeDecodeError):
        return None
    return None


def _beside(config: str, value: str) -> str | None:
    """A plain quoted path, made absolute as `host.settings` does."""
    inner = value[1:-1]
    if (
        len(value) < 3
        or value[0] != value[-1]
        or value[0] not in "\"'"
        or set(inner) & set("\\\"'~")
    ):
        return None
    folder = os.path.dirname(os.path.realpath(config))  # noqa: PTH120
    return os.path.join(folder, inner)  # noqa: PTH118
