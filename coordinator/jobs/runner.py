"""Work with torch, done in child processes: building base 0, exporting a release.

Keeps the coordinator itself small, and lets a crash or a hang of an exporter be a line in the audit
log. A job reads one JSON request from stdin and leaves one JSON result in a file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from coordinator.errors import ExportFailed

BUILD_MODULE = "coordinator.jobs.build_base"
EXPORT_MODULE = "coordinator.jobs.export_release"
JOB_LIMIT_S = 600.0


class JobRunner:
    """Runs one job at a time from any thread; `close` ends what runs."""

    def __init__(self, folder: Path, limit_s: float = JOB_LIMIT_S) -> None:
        self._folder = folder
        self._limit_s = limit_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def run(self, module: str, request: dict[str, Any]) -> dict[str, Any]:
        """The job's result; raises ExportFailed with the job's last line."""
        self._folder.mkdir(parents=True, exist_ok=True)
        result = self._folder / f"{module.rsplit('.', 1)[-1]}.result.json"
        result.unlink(missing_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        with self._lock:
            if self._closed:
                raise ExportFailed("the coordinator is being stopped")
            self._process = process = subprocess.Popen(
                [sys.executable, "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=environment,
                start_new_session=True,
            )
        text = json.dumps({**request, "result": str(result)}, allow_nan=False).encode()
        try:
            _, errors = process.communicate(text, timeout=self._limit_s)
        except subprocess.TimeoutExpired as error:
            raise ExportFailed(f"{module} took more than {self._limit_s:.0f} s") from error
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            with self._lock:
                self._process = None
        if process.returncode != 0:
            text_lines = errors.decode(errors="replace").strip().splitlines()
            # The continuation lines of an exception's text are indented.
            lines = [line for line in text_lines if line.strip() and not line.startswith(" ")]
            last = lines[-1] if lines else f"ended with {process.returncode}"
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


def read_request() -> dict[str, Any]:
    """In the child: the request from stdin."""
    return dict(json.load(sys.stdin))
