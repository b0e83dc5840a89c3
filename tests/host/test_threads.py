"""No thread ends in silence."""

from __future__ import annotations

import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from host.threads import CRASHED, guarded, spawn


def test_a_thread_that_dies_is_told_by_name_and_logged_with_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lines: list[str] = []

    def work() -> None:
        raise TypeError("no such thing")

    spawn("journal", work, lines.append).join(5.0)
    assert lines == ["thread journal died: TypeError: no such thing"]
    [record] = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert record.message == lines[0]
    assert record.exc_info is not None and record.exc_info[0] is TypeError


def test_a_thread_that_asks_python_to_exit_is_told_too() -> None:
    """Python itself ends such a thread without a word."""
    lines: list[str] = []
    spawn("https", sys.exit, lines.append).join(5.0)
    assert lines == ["thread https died: SystemExit: "]


def test_a_thread_that_ends_well_says_nothing() -> None:
    lines: list[str] = []
    spawn("quiet", lambda: None, lines.append).join(5.0)
    assert lines == []


def test_work_in_an_executor_is_told_with_its_arguments_passed_on() -> None:
    lines: list[str] = []
    done: list[tuple[int, str]] = []

    def work(number: int, *, word: str) -> None:
        done.append((number, word))
        raise KeyError("x")

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(guarded("job", work, lines.append), 3, word="a")
    assert future.exception() is None
    assert (done, lines) == ([(3, "a")], ["job died: KeyError: 'x'"])


def test_what_the_callback_raises_goes_to_the_caller() -> None:
    def stop(line: str) -> None:
        raise RuntimeError(line)

    def work() -> None:
        raise ValueError("odd")

    with pytest.raises(RuntimeError, match="subscriber died: ValueError: odd"):
        guarded("subscriber", work, stop)()


def test_every_thread_of_the_product_is_started_by_the_rule() -> None:
    root = Path(__file__).parents[2]
    rule, twin = root / "host" / "threads.py", root / "robot_io" / "twin"
    found = []
    for package in ("agent", "coordinator", "host", "policy", "protocol", "robot_io"):
        for path in (root / package).rglob("*.py"):
            if path == rule or twin in path.parents:
                continue
            if "threading.Thread(" in path.read_text():
                found.append(str(path))
    assert found == []


def test_a_process_that_is_of_no_use_without_the_thread_ends() -> None:
    program = (
        "import time; from host.threads import spawn, exit_process\n"
        "spawn('loop', lambda: 1 / 0, exit_process)\ntime.sleep(30)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False
    )
    assert ended.returncode == CRASHED
    assert "thread loop died: ZeroDivisionError" in ended.stderr
