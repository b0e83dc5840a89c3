"""The daemon on a host without a robot: it keeps running and says what is wrong."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from agent_site import Site, wait_for

from agent.client import AgentClient
from agent.errors import AgentUnreachable, RequestFailed

pytestmark = pytest.mark.system

ARMADA = [sys.executable, "-m", "deploy.command"]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.close()


def write_config(site: Site, port: str, extra: str = "") -> None:
    text = f'[robot]\nport = "{port}"\n[training]\nenabled = false\n[paths]\nstate_dir = "state"\n'
    site.config_path.write_text(text + extra)


def armada(site: Site, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ARMADA, *arguments, "--config", str(site.config_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def first_fault(client: AgentClient, words: str) -> str:
    def probe() -> str | None:
        faults = client.status()["faults"]
        return faults[0] if faults and words in faults[0] else None

    return wait_for(f"a fault with {words!r}", probe)


def test_a_missing_port_is_one_line_and_the_daemon_runs_on(site: Site) -> None:
    write_config(site, "/dev/nothing-here")
    with site.start_agent() as client:
        line = first_fault(client, "/dev/nothing-here")
        assert "\n" not in line
        status = client.status()
        assert status["state"] == "idle" and not status["ready"]
        assert status["training_allowed"]  # a robot that is away may still learn
        with pytest.raises(RequestFailed, match=r"not ready: follower: .*nothing-here"):
            client.record_start("task")
        with pytest.raises(RequestFailed, match="no teleoperation: no leader is configured"):
            client.teleop_start()
        assert client.status()["state"] == "idle"
        shown = armada(site, "status")
        assert shown.returncode == 0
        assert "NOT READY" in shown.stdout and "/dev/nothing-here" in shown.stdout
        assert json.loads(armada(site, "status", "--json").stdout)["ready"] is False
    assert site.stop_agent() == 0
    assert not (site.state_dir / "run" / "agent.sock").exists()


def test_a_port_that_another_process_holds_is_named(site: Site) -> None:
    master, slave = pty.openpty()
    try:
        fcntl.flock(slave, fcntl.LOCK_EX)
        write_config(site, os.ttyname(slave))
        with site.start_agent() as client:
            line = first_fault(client, os.ttyname(slave))
            assert "process" in line or "use" in line
        assert site.stop_agent() == 0
    finally:
        os.close(slave)
        os.close(master)


def test_a_port_without_servos_says_how_many_were_found(site: Site) -> None:
    master, slave = pty.openpty()
    try:
        write_config(site, os.ttyname(slave))
        with site.start_agent() as client:
            line = first_fault(client, "servos")
            assert "0 of the 6 servos" in line
            with pytest.raises(RequestFailed, match="0 of the 6 servos"):
                client.reset()
            with pytest.raises(RequestFailed, match="0 of the 6 servos"):
                client.calibrate("follower", "homing")
            assert client.status()["state"] == "idle"
        assert site.stop_agent() == 0
    finally:
        os.close(slave)
        os.close(master)


def test_an_uncalibrated_arm_allows_only_calibration(site: Site) -> None:
    person = site.start_twin()
    site.write_config()
    with site.start_agent() as client:
        line = first_fault(client, "not calibrated")
        assert line.startswith("follower is not calibrated") and "armada setup calibrate" in line
        for refused in (client.teleop_start, client.park, lambda: client.record_start("task")):
            with pytest.raises(RequestFailed, match="not calibrated"):
                refused()
            assert client.status()["state"] == "idle"
        with pytest.raises(RequestFailed, match="begins with the step homing"):
            client.calibrate("follower", "range_start")
        assert set(client.calibrate("follower", "homing")["homing_offsets"]) >= {"elbow_flex"}
        with pytest.raises(RequestFailed, match="the follower is being calibrated"):
            client.calibrate("leader", "homing")
        client.calibrate("follower", "range_start")
        with pytest.raises(RequestFailed, match=r"hardly moved: move every joint"):
            client.calibrate("follower", "range_finish")
        assert client.status()["control"]["calibration"]["arm"] == "follower"
        assert not (site.state_dir / "calibration").exists()
    person.close()
    assert site.stop_agent() == 0


def test_an_unknown_key_is_one_line_and_exit_2(site: Site) -> None:
    write_config(site, "/dev/x", extra="[control]\nfsp = 30\n")
    for arguments in (["agent", "run"], ["status"], ["doctor"]):
        done = armada(site, *arguments)
        assert done.returncode == (1 if arguments == ["doctor"] else 2)
        said = (done.stderr or done.stdout).strip()
        assert said.count("\n") == 0
        assert "unknown key control.fsp" in said


def test_no_agent_is_one_line_that_says_how_to_start_it(site: Site) -> None:
    write_config(site, "/dev/x")
    done = armada(site, "status")
    assert done.returncode == 1
    assert "no agent answers" in done.stderr and "armada agent run" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_control_process_that_is_killed_comes_back(site: Site) -> None:
    write_config(site, "/dev/nothing-here")
    with site.start_agent() as client:
        pid = client.status()["processes"]["control"]["pid"]
        os.kill(pid, signal.SIGKILL)

        def another() -> bool:
            row = client.status()["processes"]["control"]
            return row["pid"] not in (None, pid) and row["restarts"] == 1

        wait_for("another control process", another)
        assert client.status()["processes"]["control"]["last_exit"] == "SIGKILL"
        assert client.status()["state"] == "idle"


def test_a_silent_control_process_is_killed_and_started_again(site: Site) -> None:
    write_config(site, "/dev/nothing-here")
    with site.start_agent() as client:
        pid = client.status()["processes"]["control"]["pid"]
        wait_for("a heartbeat", lambda: client.status()["control"])
        time.sleep(1.0)
        os.kill(pid, signal.SIGSTOP)

        def another() -> bool:
            return client.status()["processes"]["control"]["pid"] not in (None, pid)

        wait_for("another control process", another)


def test_a_killed_agent_leaves_no_process(site: Site) -> None:
    write_config(site, "/dev/nothing-here", extra="")
    site.config_path.write_text(site.config_path.read_text().replace("false", "true"))
    with site.start_agent("control,trainer", trainer="busy_trainer") as client:
        rows = client.status()["processes"]
        trainer = wait_for("the trainer", lambda: client.status()["processes"]["trainer"]["pid"])
        children = [psutil.Process(pid) for pid in (rows["control"]["pid"], trainer)]
    assert site.agent is not None
    time.sleep(1.0)  # the launcher has asked the kernel by now
    site.agent.kill()
    site.agent.wait()
    _, alive = psutil.wait_procs(children, timeout=15.0)
    assert not alive


def test_systemd_is_told_ready_alive_and_stopping(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(address))
        listener.settimeout(20.0)
        monkeypatch.setenv("NOTIFY_SOCKET", str(address))
        monkeypatch.setenv("WATCHDOG_USEC", "400000")
        write_config(site, "/dev/nothing-here")
        with site.start_agent():
            first = listener.recv(1024)
            assert first.startswith(b"READY=1\n")
            assert listener.recv(1024).startswith(b"WATCHDOG=1\n")
            began_s = time.monotonic()
            for _ in range(5):
                assert listener.recv(1024).startswith(b"WATCHDOG=1\n")
            assert time.monotonic() - began_s < 2.0
        assert site.stop_agent() == 0
        said = b""
        while not said.startswith(b"STOPPING=1"):
            said = listener.recv(1024)


def test_the_socket_is_for_owner_and_group_alone(site: Site) -> None:
    write_config(site, "/dev/nothing-here")
    with site.start_agent():
        mode = (site.state_dir / "run" / "agent.sock").stat().st_mode
        assert mode & 0o007 == 0
    site.stop_agent()
    with (
        AgentClient(site.state_dir / "run" / "agent.sock") as client,
        pytest.raises(AgentUnreachable),
    ):
        client.status()


def test_doctor_names_each_thing_on_its_own_line(site: Site, tmp_path: Path) -> None:
    write_config(
        site,
        "/dev/nothing-here",
        extra='[cameras.top]\nsource = "http://127.0.0.1:9/top.mjpg"\n'
        '[federation]\nbundle = "no-bundle"\n',
    )
    done = armada(site, "doctor")
    assert done.returncode == 1
    lines: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        verdict, what = line[:4].strip(), line[5:].split(": ")[0]
        lines[what] = verdict
    assert lines["config"] == "ok"
    assert lines["follower"] == "BAD"
    assert lines["camera top"] == "BAD"
    assert lines["bundle"] == "BAD"
    assert lines["disk"] in ("ok", "BAD")
