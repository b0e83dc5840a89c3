"""The whole fleet, small: every walk completes, and Ctrl-C leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

DEMO = [sys.executable, "-m", "deploy.command", "demo"]

# Four episodes and two rounds make no policy that the gate would let near an arm; it is told
# to let this one through, and half of the episodes are held out so that it can be judged at all.
LENIENT = {
    "ARMADA_AGENT_TRAINING__HELD_OUT_EVERY": "2",
    "ARMADA_COORDINATOR_RELEASE_GATE__HOLD_STILL": "100",
    "ARMADA_COORDINATOR_RELEASE_GATE__NEAREST": "100",
}


def processes_of(folder):
    """Processes whose command line names the demo's folder."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(str(folder) in part for part in process.info["cmdline"] or ())
    ]


def demo(folder, *options, environment=None):
    return subprocess.Popen(
        [*DEMO, "--dir", str(folder), *options],
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fleet")


def test_three_robots_go_through_all_three_walks(folder):
    report_file, page_file = folder.parent / "report.json", folder.parent / "report.html"
    running = demo(
        folder, "--episodes", "4", "--rounds", "2", "--steps-per-round", "60", "--trials", "1",
        "--json", str(report_file), "--report", str(page_file),
        environment=LENIENT,
    )  # fmt: skip
    output, _ = running.communicate(timeout=840)
    assert running.returncode == 0, output
    report = json.loads(report_file.read_text())
    assert report["walks"] == {"demonstration": True, "contribution": True, "release": True}
    assert report["rounds"] == 2
    page = page_file.read_text()
    assert page.count("data:video/mp4;base64,") == 3 * 2
    assert all(span in page for span in ("calibrate", "demonstrate", "train alone", "release 1"))
    assert report["windows"] >= 2
    assert report["releases"] >= 1
    assert len(report["trials"]) == 3 * 3 * 2
    for robot in report["robots"]:
        assert robot["frames"] > 100
        assert robot["steps"] > 0
        assert robot["bytes_up"] > 0
        assert robot["held_out_after"] < robot["held_out_before"]
    assert processes_of(folder) == []


def test_ctrl_c_parks_the_arms_and_ends_every_process(folder):
    running = demo(folder, "--episodes", "20")
    deadline_s = time.monotonic() + 120
    while not list(folder.glob("arm-*/state/journal/*.part")):  # the arms are moving
        assert running.poll() is None and time.monotonic() < deadline_s
        time.sleep(0.2)
    os.kill(running.pid, signal.SIGINT)
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 130, output
    assert processes_of(folder) == []
    for log in sorted(Path(folder).glob("arm-*/state/log/control.log")):
        assert "released" in log.read_text()
