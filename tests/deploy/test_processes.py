"""The demo's processes end by pid, and a death is reported with its last words."""

from __future__ import annotations

import os
import sys
import time
import tomllib

import pytest

from deploy.local_fleet.coordinator_site import with_settings
from deploy.local_fleet.errors import ProcessDied, StepTimeout
from deploy.local_fleet.processes import ProcessGroup

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True);"
    " time.sleep(60)",
]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for_output(process):
    deadline_s = time.monotonic() + 10
    while not process.log_path.read_bytes():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_every_process_is_ended_and_the_stubborn_ones_are_named(tmp_path):
    group = ProcessGroup(tmp_path)
    started = [group.start("sleeper", SLEEPER), group.start("stubborn", STUBBORN)]
    for process in started:
        wait_for_output(process)
    assert group.stop_all(grace_s=0.5) == ["stubborn"]
    assert not any(alive(process.child.pid) for process in started)


def test_a_death_is_reported_with_the_end_of_its_log(tmp_path):
    group = ProcessGroup(tmp_path)
    group.start("brief", [sys.executable, "-c", "raise SystemExit('no such port')"])
    with pytest.raises(ProcessDied, match=r"brief ended with status 1(.|\n)*no such port"):
        group.wait_until("it", lambda: None, timeout_s=10, period_s=0.02)
    group.stop_all(1)


def test_a_step_that_never_comes_is_given_up(tmp_path):
    with pytest.raises(StepTimeout, match="the moon: not there after 0 s"):
        ProcessGroup(tmp_path).wait_until("the moon", lambda: None, timeout_s=0, period_s=0.02)


def test_settings_replace_values_in_their_own_table_only():
    toml = "[a]\nrounds = 1\n\n[b]\nrounds = 2\n"
    changed = tomllib.loads(with_settings(toml, {"b": {"rounds": 9, "every": 4}}))
    assert changed == {"a": {"rounds": 1}, "b": {"rounds": 9, "every": 4}}
