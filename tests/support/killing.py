"""Runs a store's operation in a forked child that kills itself (SIGKILL) at its n-th step to disk.

A process of its own, because a test run has threads and must not fork. One JSON request a line on
stdin: {"folder", "operation", "argument", "step"}; one reply a line: true when it was killed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from agent.policies.store import PolicyStore

# sys.audit's events of what changes the disk; fsync has none and is counted by hand.
EVENTS = {"open", "os.open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod"}


def run(folder: str, operation: str, argument: list[object], step: int) -> None:
    steps = 0

    def count(event: str, _arguments: object = None) -> None:
        nonlocal steps
        if event in EVENTS:
            steps += 1
            if steps == step:
                os.kill(os.getpid(), signal.SIGKILL)

    fsync = os.fsync

    def counted_fsync(descriptor: int) -> None:
        count("open")
        fsync(descriptor)

    os.fsync = counted_fsync  # type: ignore[assignment]
    sys.addaudithook(count)
    store = PolicyStore(Path(folder))
    if operation == "install":
        store.install(Path(str(argument[0])), 3)
    else:
        getattr(store, operation)(*argument)


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                run(**request)
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
            sys.exit(f"{request} failed")
        sys.stdout.write(json.dumps(os.WIFSIGNALED(status)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
