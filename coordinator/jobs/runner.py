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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coordinator.errors import ExportFailed
from host.children import ChildProcess, module_command, spawn

BUILD_MODULE = "coordinator.jobs.build_base"
EXPORT_MODULE = "coordinator.jobs.export_release"
READ_MODULE = "coordinator.jobs.read_release"
JOB_LIMIT_S = 600.0
MAX_RESULT_BYTES = 64 * 1024 * 1024
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
        result = self._folder / f"{module.rsplit('.', 1)[-1]}.result.json"
        content = self.run_command(
            module_command(module),
            module,
            result,
            request={**request, "result": str(result)},
            limit_s=self._limit_s,
        )
        try:
            return dict(json.loads(content))
        except ValueError as error:
            raise ExportFailed(f"{module} left no result: {error}") from error

    def run_command(
        self,
        command: Sequence[str],
        name: str,
        result: Path,
        *,
        limit_s: float,
        request: Mapping[str, Any] | None = None,
        most_bytes: int = MAX_RESULT_BYTES,
    ) -> bytes:
        """What a command left in the file `result`; `request` is its stdin.

        Raises ExportFailed with the command's last line on stderr.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        result.unlink(missing_ok=True)
        # A file and not a pipe: a job that does not read cannot hold up who asks for it.
        with tempfile.TemporaryFile() as stdin:
            stdin.write(json.dumps(request, allow_nan=False).encode())
            stdin.seek(0)
            with self._lock:
                if self._closed:
                    raise ExportFailed("the coordinator is being stopped")
                try:
                    self._process = process = spawn(
                        command,
                        log=self._folder / f"{name.rsplit('.', 1)[-1]}.log",
                        environment=ENVIRONMENT,
                        stdin=stdin,
                        stdout=subprocess.DEVNULL,
                    )
                except OSError as error:
                    raise ExportFailed(f"{name} cannot be started: {error}") from error
        try:
            status = process.wait(limit_s)
        except TimeoutError as error:
            raise ExportFailed(f"{name} took more than {limit_s:.0f} s") from error
        finally:
            process.kill()
            process.wait()
            with self._lock:
                self._process = None
        if status != 0:
            last = _last_words(process.log_tail()) or f"ended with {process.exit_words}"
            raise ExportFailed(f"{name}: {last[:300]}")
        try:
            with result.open("rb") as stream:
                content = stream.read(most_bytes + 1)
        except OSError as error:
            raise ExportFailed(f"{name} left no result: {error}") from error
        if len(content) > most_bytes:
            raise ExportFailed(f"{name} left more than {most_bytes} bytes")
        return content

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
