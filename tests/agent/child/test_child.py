"""One child of the supervisor: real processes, the test's own clock."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from agent.child.child import Child
from agent.operations.state_machine import Permissions, State, permissions
from agent.supervisor.process_table import (
    CONTROL_BACKOFF,
    ProcessRow,
    always,
    idle,
    process_table,
)
from host.restarts import Backoff

# What a child is here: it says hello, answers, then lives until it is told otherwise.
CHILD = """
import os, signal, sys, time
from agent.child.link import ChildLink
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
link = ChildLink.from_environment()
link.send("status", group=os.getpgrp(), parent=os.getppid())
if "silent" not in sys.argv and "die" not in sys.argv:
    link.heartbeat()
if "die" in sys.argv:
    sys.exit(3)
while True:
    time.sleep(0.01)
"""


class Clock:
    """Time that the test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Row(ProcessRow):
    """A row whose process is CHILD."""

    def command(self, config_path: Path) -> list[str]:
        return [sys.executable, "-c", CHILD, self.module]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(tmp_path: Path, clock: Clock) -> Iterator[Callable[..., Child]]:
    made: list[Child] = []

    def build(mode: str = "", **fields: object) -> Child:
        row = Row(name="child", module=mode, runs=idle, **fields)  # type: ignore[arg-type]
        made.append(Child(row, tmp_path / "agent.toml", tmp_path / "log", clock))
        return made[-1]

    yield build
    for child in made:
        child.kill()
        until_s = time.monotonic() + 10.0
        while child.pid is not None and time.monotonic() < until_s:
            child.poll()
            time.sleep(0.01)


def wait(condition: Callable[[], bool]) -> None:
    until_s = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < until_s, "it did not happen"
        time.sleep(0.01)


def hello(child: Child) -> dict[str, object]:
    said: list[dict[str, object]] = []

    def heard() -> bool:
        said.extend(child.receive())
        return bool(said)

    wait(heard)
    return said[0]


def status_of(child: Child) -> str:
    assert child.pid is not None
    return str(psutil.Process(child.pid).status())


def test_a_child_leads_its_own_process_group(make: Callable[..., Child]) -> None:
    child = make()
    child.want(True)
    message = hello(child)
    assert message == {"kind": "status", "group": child.pid, "parent": os.getpid()}
    assert child.describe()["state"] == "running"


def test_a_row_to_freeze_stops_and_goes_on(make: Callable[..., Child]) -> None:
    child = make(otherwise="freeze")
    child.want(True)
    hello(child)
    pid = child.pid
    child.want(False)
    wait(lambda: status_of(child) == psutil.STATUS_STOPPED)
    assert child.describe()["state"] == "stopped"
    child.want(True)
    wait(lambda: status_of(child) != psutil.STATUS_STOPPED)
    assert child.pid == pid


def test_a_row_to_stop_ends_and_that_is_no_death(make: Callable[..., Child]) -> None:
    child = make(otherwise="stop")
    child.want(True)
    hello(child)
    child.want(False)
    wait(child.poll)
    assert child.pid is None and child.restarts == 0
    assert child.describe()["state"] == "off"
    child.want(True)  # at once, without backoff
    assert child.pid is not None


def test_a_deaf_child_is_killed_when_its_grace_is_over(
    make: Callable[..., Child], clock: Clock
) -> None:
    child = make("deaf", stop_grace_s=3.0)
    child.want(True)
    hello(child)
    child.stop()
    time.sleep(0.2)
    assert child.poll() is False
    clock.now_s += 3.1
    wait(child.poll)
    assert child.last_exit == "SIGKILL"


def test_a_frozen_child_can_be_stopped(make: Callable[..., Child]) -> None:
    child = make(otherwise="freeze")
    child.want(True)
    hello(child)
    child.freeze()
    child.stop()
    wait(child.poll)
    assert child.last_exit == "SIGTERM"


def test_a_death_is_counted_and_the_next_start_waits(
    make: Callable[..., Child], clock: Clock
) -> None:
    child = make("die")
    for deaths in (1, 2, 3):
        child.want(True)
        assert child.pid is not None
        wait(child.poll)
        assert (child.restarts, child.last_exit) == (deaths, "exit 3")
        child.want(True)
        assert child.pid is None
        assert child.describe()["state"] == "waiting"
        clock.now_s += Backoff().pause_s(deaths) + 0.01


def test_a_control_process_that_is_killed_is_back_in_the_same_look_every_time(
    make: Callable[..., Child], clock: Clock
) -> None:
    child = make(backoff=CONTROL_BACKOFF)
    for _ in range(6):
        child.want(True)
        pid = child.pid
        assert pid is not None
        hello(child)
        clock.now_s += CONTROL_BACKOFF.steady_s
        os.kill(pid, signal.SIGKILL)
        wait(child.poll)
    assert child.restarts == 6


def test_a_control_process_that_dies_at_every_start_does_not_spin(
    make: Callable[..., Child], clock: Clock
) -> None:
    child = make("die", backoff=CONTROL_BACKOFF)
    for deaths in range(1, 7):
        child.want(True)
        assert child.pid is not None
        wait(child.poll)
        child.want(True)
        if deaths <= 3:
            assert child.pid is not None, "the first deaths are followed by a start at once"
            continue
        assert child.describe()["state"] == "waiting"
        clock.now_s += 0.5
    assert child.last_exit == "exit 3"


def test_silence_after_the_first_heartbeat_is_death(
    make: Callable[..., Child], clock: Clock
) -> None:
    child = make(silence_s=5.0)
    child.want(True)
    hello(child)
    child.receive()
    clock.now_s += 4.9
    assert child.poll() is False
    clock.now_s += 0.2
    wait(child.poll)
    assert child.last_exit == "SIGKILL"
    assert child.restarts == 1


def test_silence_while_frozen_is_no_silence(make: Callable[..., Child], clock: Clock) -> None:
    child = make(otherwise="freeze", silence_s=5.0)
    child.want(True)
    hello(child)
    child.freeze()
    clock.now_s += 3600.0
    child.poll()
    child.want(True)
    child.poll()
    time.sleep(0.2)
    assert child.poll() is False


def test_a_program_that_cannot_be_started_is_tried_again_later(
    tmp_path: Path, clock: Clock
) -> None:
    (tmp_path / "log").write_text("a file where a folder should be")
    row = ProcessRow(name="child", module="none", runs=always)
    child = Child(row, tmp_path / "agent.toml", tmp_path / "log", clock)
    child.want(True)
    assert child.pid is None
    assert child.last_exit is not None and child.last_exit.startswith("cannot start")


@pytest.mark.parametrize(
    ("state", "running"),
    [
        (State.IDLE, {"trainer", "ingest", "tuner", "control"}),
        (State.TELEOP, {"control"}),
        (State.ROLLOUT, {"control", "inference"}),
        (State.FAULT, {"control"}),
        (State.ESTOP, {"control"}),
    ],
)
def test_the_table_says_what_runs_in_each_state(
    tmp_path: Path, state: State, running: set[str]
) -> None:
    from agent.config import load_config

    path = tmp_path / "agent.toml"
    path.write_text('[robot]\nport = "/dev/x"\n[paths]\nstate_dir = "state"\n')
    rows = process_table(load_config(path))
    permitted: Permissions = permissions(state)
    assert {row.name for row in rows if row.runs(permitted)} == running
    frozen = [row.name for row in rows if row.otherwise == "freeze"]
    assert frozen == ["trainer", "ingest", "tuner"] == [row.name for row in rows[:3]]
    # If the supervisor dies, control gets the word on which it parks.
    [control] = [row for row in rows if row.name == "control"]
    assert control.parent_death_signal == signal.SIGTERM
    assert [row.name for row in rows if row.backoff.pause_s(1) == 0.0] == ["control"]
