"""Jobs are real processes: their result, their last words, their limit, their end."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import psutil
import pytest

from coordinator.errors import ExportFailed
from coordinator.jobs.runner import JobRunner

HEAD = "import json, os, signal, sys, time\n"
READ = "from coordinator.jobs.runner import read_request\nrequest = read_request()\n"
ANSWER = READ + "json.dump({'got': request['text']}, open(request['result'], 'w'))\n"


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a module of that program for a job's process to find; its name."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[3]}")

    def write(program: str) -> str:
        (tmp_path / "some_job.py").write_text(HEAD + program)
        return "some_job"

    return write


def test_a_request_of_any_size_gets_its_result(job, tmp_path: Path) -> None:
    text = "x" * 1_000_000  # far more than a pipe holds
    assert JobRunner(tmp_path / "jobs").run(job(ANSWER), {"text": text}) == {"got": text}


def test_the_reason_is_the_last_line_that_is_no_continuation(job, tmp_path: Path) -> None:
    program = READ + "print('chatter'); sys.exit('on the way\\nthe reason\\n  and its details')"
    with pytest.raises(ExportFailed, match=r"^some_job: the reason$"):
        JobRunner(tmp_path / "jobs").run(job(program), {})
    # All of it stays to be read, below what earlier jobs said; nothing of them is taken for it.
    with pytest.raises(ExportFailed, match=r"^some_job: ended with exit 3$"):
        JobRunner(tmp_path / "jobs").run(job("sys.exit(3)"), {})
    log = (tmp_path / "jobs" / "some_job.log").read_text()
    assert log == "on the way\nthe reason\n  and its details\n"


def test_a_crash_is_named(job, tmp_path: Path) -> None:
    with pytest.raises(ExportFailed, match=r"some_job: ended with SIGSEGV"):
        JobRunner(tmp_path / "jobs").run(job("os.kill(os.getpid(), signal.SIGSEGV)"), {})


def test_an_earlier_jobs_result_is_never_taken_for_this_ones(job, tmp_path: Path) -> None:
    runner = JobRunner(tmp_path / "jobs")
    runner.run(job(ANSWER), {"text": "first"})
    with pytest.raises(ExportFailed, match="some_job left no result"):
        runner.run(job("pass"), {"text": "second"})


def test_a_job_past_its_limit_is_ended_with_all_that_it_started(job, tmp_path: Path) -> None:
    # The job reads nothing: the large request must not hold up the limit.
    program = f"pid = os.fork()\nif pid: open({str(tmp_path / 'pid')!r}, 'w').write(str(pid))\n"
    program += "time.sleep(60)"
    began_s = time.monotonic()
    with pytest.raises(ExportFailed, match="some_job took more than 2 s"):
        JobRunner(tmp_path / "jobs", limit_s=2.0).run(job(program), {"text": "x" * 1_000_000})
    assert time.monotonic() - began_s < 20.0
    forked = int((tmp_path / "pid").read_text())
    until_s = time.monotonic() + 10.0
    while psutil.pid_exists(forked) and psutil.Process(forked).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until_s, "what the job forked lives on"
        time.sleep(0.01)


def test_close_ends_the_job_that_runs_and_refuses_later_ones(job, tmp_path: Path) -> None:
    runner = JobRunner(tmp_path / "jobs")
    threading.Timer(0.5, runner.close).start()
    with pytest.raises(ExportFailed, match="some_job: ended with SIGKILL"):
        runner.run(job("time.sleep(60)"), {})
    with pytest.raises(ExportFailed, match="the coordinator is being stopped"):
        runner.run(job(ANSWER), {"text": ""})
