"""Work with torch, done in child processes: building base 0, exporting a release.

Keeps the coordinator itself small, and lets a crash or a hang of an exporter be a line in the audit
log. A job reads one JSON request from stdin and leaves one JSON result in a file; its last line on
stderr, which goes to a log beside the result, is the reason why it left none.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from coordinator.errors import ExportFailed
from host.children import ChildProcess, module_command, spawn

BUILD_MODULE = "coordinator.jobs.build_base"
EXPORT_MODULE = "coordinator.jobs.export_release"
JOB_LIMIT_S = 600.0
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


class JobRunner:
    """Runs one job at a time from any thread; `close` ends what runs."""

    def __init__(self, folder: Path, limit_s: float = JOB_LIMIT_S) -> None:
        self._folder = folder
        self._limit_s = limit_s
        self._lock = threading.Lock()
        self._process: ChildProcess | None = None
        self._closed = False

    def run(self, module: str, request: dict[str, Any]) -> dict[str, Any]:
        """The job's result; raises ExportFailed with the job's last line."""
        self._folder.mkdir(parents=True, exist_ok=True)
        name = module.rsplit(".", 1)[-1]
        result = self._folder / f"{name}.result.json"
        result.unlink(missing_ok=True)
        # A file and not a pipe: a job that does not read cannot hold up who asks for it.
        with tempfile.TemporaryFile() as stdin:
            stdin.write(json.dumps({**request, "result": str(result)}, allow_nan=False).encode())
            stdin.seek(0)
            with self._lock:
                if self._closed:
                    raise ExportFailed("the coordinator is being stopped")
                self._process = process = spawn(
                    module_command(module),
                    log=self._folder / f"{name}.log",
                    environment=ENVIRONMENT,
                    stdin=stdin,
                    stdout=subprocess.DEVNULL,
                )
        try:
            status = process.wait(self._limit_s)
        except TimeoutError as error:
            raise ExportFailed(f"{module} took more than {self._limit_s:.0f} s") from error
        finally:
            process.kill()
            process.wait()
            with self._lock:
                self._process = None
        if status != 0:
            last = _last_words(process.log_tail()) or f"ended with {process.exit_words}"
            raise ExportFailed(f"{module}: {last[:300]}")
        try:
            loaded = json.loads(result.read_bytes())
        except (OSError, ValueError) as error:
            raise ExportFailed(f"{module} left no result: {error}") from error
        return dict(loaded)

    def close(self) -> None:
        """End the job that runs; later ones are refused."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.kill()


def _last_words(errors: str) -> str:
    """The last line of stderr that is not a continuation of one before, which is indented."""
    lines = [line for line in errors.splitlines() if line.strip() and not line.startswith(" ")]
    return lines[-1].strip() if lines else ""


def read_request() -> dict[str, Any]:
    """In the child: the request from stdin."""
    return dict(json.load(sys.stdin))
