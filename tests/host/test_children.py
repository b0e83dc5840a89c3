"""Child processes as the system runs them: real ones, with real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from host.children import ChildProcess, end_all, exit_words, module_command, spawn

HEAD = "import json, os, signal, sys, time\n"
SLEEP = "\nwhile True: time.sleep(0.01)"
DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf')" + SLEEP


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., ChildProcess]]:
    started: list[ChildProcess] = []

    def run(program: str, **options: Any) -> ChildProcess:
        options = {"log": tmp_path / "log" / "child.log"} | options
        started.append(spawn([sys.executable, "-c", HEAD + program], **options))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


def wait_for(condition: Callable[[], Any]) -> None:
    until_s = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < until_s, "it did not happen"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_what_a_child_says_goes_to_its_log_at_once_and_behind_what_is_there(
    start: Callable[..., ChildProcess], tmp_path: Path
) -> None:
    log = tmp_path / "log" / "child.log"
    log.parent.mkdir()
    log.write_text("of an earlier life\n")
    child = start("print('out'); sys.stderr.write('err\\n')" + SLEEP)
    wait_for(lambda: log.read_text() == "of an earlier life\nout\nerr\n")
    assert child.log_tail() == "out\nerr\n"
    assert child.log_tail(4) == "err\n"


def test_a_long_log_is_put_aside_before_the_next_start(
    start: Callable[..., ChildProcess], tmp_path: Path
) -> None:
    log = tmp_path / "log" / "child.log"
    log.parent.mkdir()
    log.write_bytes(b"x" * ((8 << 20) + 1))
    child = start("print('new')")
    child.wait(20.0)
    assert child.log_tail() == log.read_text() == "new\n"
    assert log.with_name("child.log.1").stat().st_size == (8 << 20) + 1


def test_one_half_of_the_output_can_go_elsewhere(start: Callable[..., ChildProcess]) -> None:
    child = start("print('chatter'); sys.exit('the reason')", stdout=subprocess.DEVNULL)
    assert child.wait(20.0) == 1
    assert child.log_tail() == "the reason\n"


def test_the_environment_is_ours_and_what_is_added(
    start: Callable[..., ChildProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARMADA_A", "inherited")
    monkeypatch.setenv("ARMADA_B", "inherited")
    child = start(
        "print(os.environ['ARMADA_A'], os.environ['ARMADA_B'])", environment={"ARMADA_B": "added"}
    )
    child.wait(20.0)
    assert child.log_tail() == "inherited added\n"


def test_a_child_has_a_session_of_its_own_no_input_and_the_descriptors_it_is_given(
    start: Callable[..., ChildProcess],
) -> None:
    reading, writing = os.pipe()
    facts = "[os.getpgrp(), os.getsid(0), sys.stdin.read()]"
    child = start(f"os.write({writing}, json.dumps({facts}).encode())", pass_fds=(writing,))
    os.close(writing)
    with os.fdopen(reading) as stream:
        assert json.loads(stream.read()) == [child.pid, child.pid, ""]


def test_a_file_can_be_its_input(start: Callable[..., ChildProcess], tmp_path: Path) -> None:
    (tmp_path / "request").write_text("from a file")
    with (tmp_path / "request").open("rb") as request:
        child = start("print(sys.stdin.read())", stdin=request)
    child.wait(20.0)
    assert child.log_tail() == "from a file\n"


def test_a_program_that_is_not_there_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        spawn([str(tmp_path / "none")], log=tmp_path / "log")
    with pytest.raises(FileExistsError):
        spawn([sys.executable, "-c", ""], log=tmp_path / "log" / "below-a-file")


def test_how_it_ended_is_told_in_words(start: Callable[..., ChildProcess]) -> None:
    child = start("sys.exit(3)")
    assert child.wait(20.0) == 3
    assert child.exit_words == "exit 3"
    child = start(SLEEP)
    assert child.exit_words == "running" and child.poll() is None
    child.kill()
    assert child.wait(20.0) == -signal.SIGKILL
    assert child.exit_words == "SIGKILL"
    assert exit_words(-200) == "signal 200"


def test_a_wait_has_a_limit(start: Callable[..., ChildProcess]) -> None:
    child = start(SLEEP)
    began_s = time.monotonic()
    with pytest.raises(TimeoutError, match=f"process {child.pid} did not end within 0.2 s"):
        child.wait(0.2)
    assert 0.2 <= time.monotonic() - began_s < 2.0


def test_what_a_dead_child_leaves_behind_is_ended(start: Callable[..., ChildProcess]) -> None:
    child = start("pid = os.fork()\nif pid: print(pid); sys.exit(3)" + SLEEP)
    assert child.wait(20.0) == 3
    left = int(child.log_tail())
    wait_for(lambda: not alive(left))


def test_a_kill_and_a_freeze_reach_the_whole_group(start: Callable[..., ChildProcess]) -> None:
    child = start("pid = os.fork()\nif pid: print(pid)" + SLEEP)
    wait_for(child.log_tail)
    pids = [child.pid, int(child.log_tail())]
    child.signal_group(signal.SIGSTOP)
    for pid in pids:
        wait_for(lambda pid=pid: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    child.kill()
    child.wait(20.0)
    for pid in pids:
        wait_for(lambda pid=pid: not alive(pid))


def test_nothing_is_signalled_once_it_has_ended(
    start: Callable[..., ChildProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    child = start("")
    child.wait(20.0)
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *call: sent.append(call))
    monkeypatch.setattr(os, "killpg", lambda *call: sent.append(call))
    child.ask_to_end()
    child.signal_group(signal.SIGSTOP)
    child.kill()
    assert sent == []  # its number may be somebody else's by now


def test_all_are_asked_before_any_is_waited_for_and_the_deaf_are_killed(
    start: Callable[..., ChildProcess], tmp_path: Path
) -> None:
    slow = "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), sys.exit(0))); print('ok')"
    processes = [
        start(slow + SLEEP, log=tmp_path / "a"),
        start(slow + SLEEP, log=tmp_path / "b"),
        start(DEAF, log=tmp_path / "deaf"),
    ]
    for process in processes:
        wait_for(process.log_tail)
    began_s = time.monotonic()
    killed = end_all(processes, 2.0)
    took_s = time.monotonic() - began_s
    assert killed == processes[2:]
    assert [process.exit_words for process in processes] == ["exit 0", "exit 0", "SIGKILL"]
    assert 2.0 <= took_s < 4.0


def test_a_frozen_child_can_be_asked_to_end(start: Callable[..., ChildProcess]) -> None:
    child = start("print('ok')" + SLEEP)
    wait_for(child.log_tail)
    child.signal_group(signal.SIGSTOP)
    assert end_all([child], 20.0) == []
    assert child.exit_words == "SIGTERM"


def test_one_thread_may_kill_what_another_waits_for(start: Callable[..., ChildProcess]) -> None:
    child = start(SLEEP)
    threading.Timer(0.1, child.kill).start()
    assert child.wait(20.0) == -signal.SIGKILL


PROBE = "import os, signal, sys, time\nprint(sys.argv[1:], os.getpid(), os.nice(0), flush=True)"
PARENT = """
import os, sys, time
from pathlib import Path
from host.children import module_command, spawn
folder = Path(sys.argv[1])
child = spawn(module_command("probe", "a b", nice=3), log=folder / "probe.log")
while not (folder / "probe.log").read_text():
    time.sleep(0.01)
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_module_runs_with_its_arguments_and_priority_and_ends_with_its_parent(
    tmp_path: Path,
) -> None:
    (tmp_path / "probe.py").write_text(PROBE + SLEEP)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        niceness = os.nice(0) + 3
        assert (tmp_path / "probe.log").read_text() == f"['a b'] {pid} {niceness}\n"
        parent.kill()
    wait_for(lambda: not alive(pid))


def test_a_child_of_a_parent_that_is_dead_already_never_runs(tmp_path: Path) -> None:
    (tmp_path / "probe.py").write_text(PROBE)
    command = module_command("probe")
    command[command.index(str(os.getpid()))] = str(2**22 + 1)  # no process has this number
    child = spawn(
        command,
        log=tmp_path / "log",
        environment={"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )
    assert child.wait(20.0) == 1
    assert child.log_tail() == ""
