"""Recording with a robot: what is in the episode, and what survives."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import psutil
import pytest
from agent_site import (
    TASK,
    Person,
    Robot,
    Site,
    at_rest,
    lead_away,
    prepare,
    record_one,
    seen,
    torque,
    wait_for,
    wait_ready,
)

from agent.client import AgentClient
from agent.errors import RequestFailed
from agent.recording.journal import EpisodeReader

pytestmark = pytest.mark.system


@pytest.fixture
def robot(calibrated: tuple[Site, Person]) -> Iterator[Robot]:
    """The calibrated robot, at rest, nothing recorded yet, with an agent that is ready."""
    site, person = calibrated
    prepare(site, person)
    with site.start_agent() as client:
        wait_ready(client)
        yield site, person, client


def test_a_demonstration_is_recorded_as_it_was_sent(
    robot: Robot,
) -> None:
    site, person, client = robot
    client.record_start(TASK)
    assert client.status()["recording"]["active"]
    outcome = person.ask("demonstrate", skill="pick_lift")
    reply = client.record_finish()
    assert outcome["lifted"]
    assert client.status()["state"] == "teleop"
    client.teleop_stop()

    assert torque(person) == [False] * 6
    assert at_rest(site, person)
    status = client.status()
    assert status["state"] == "idle"
    assert status["recording"]["episodes"] == 1
    assert status["recording"]["frames"] == reply["frames"]
    assert status["rate_hz"] == pytest.approx(30.0, abs=0.5)

    reader = EpisodeReader(site.state_dir / "journal" / reply["episode"])
    assert reader.meta.task == TASK
    assert reader.meta.environment_names == ("cube.x_m", "cube.y_m")
    assert reader.end is not None and reader.end.frames == reply["frames"]
    rows = list(reader.samples())
    assert len(rows) == reply["frames"] >= 90
    ticks = [sample.tick for sample, _ in rows]
    assert ticks == sorted(set(ticks))
    left_out = ticks[-1] - ticks[0] + 1 - len(ticks)
    assert left_out <= status["control"]["missed_reads"]  # a tick that could not be read
    for sample, jpegs in rows:
        assert sample.t_sent_s > sample.t_observed_s
        assert jpegs["overhead"].startswith(b"\xff\xd8")
        assert np.isfinite(sample.environment).all()
    first = rows[0][0]
    assert first.environment == pytest.approx([0.2, 0.04], abs=0.01)
    sequences = [sample.camera_sequence["overhead"] for sample, _ in rows]
    assert sequences == sorted(sequences) and len(set(sequences)) > len(sequences) / 2


def test_a_kill_loses_no_finished_episode_and_the_arm_is_held_until_reset(
    robot: Robot,
) -> None:
    site, person, client = robot
    finished = [record_one(client)["episode"] for _ in range(2)]
    client.record_start(TASK)
    lead_away(person)
    assert site.agent is not None
    control = psutil.Process(client.status()["processes"]["control"]["pid"])
    control.send_signal(signal.SIGKILL)
    site.agent.kill()
    site.agent.wait()
    assert torque(person) == [True] * 6  # nobody let it drop

    with site.start_agent() as again:
        wait_for("the fault", lambda: again.status()["state"] == "fault")
        status = again.status()
        assert "found energised" in status["faults"][0]
        assert status["recording"]["episodes"] == 2
        assert torque(person) == [True] * 6
        journal = site.state_dir / "journal"
        for name in finished:
            assert EpisodeReader(journal / name).end is not None
        assert not list(journal.glob("*.part"))
        left = list((journal / "unfinished").glob("*.mcap.part"))
        assert len(left) == 1
        assert len(list(EpisodeReader(left[0]).samples())) > 10

        assert again.reset()["parked"] is True
        assert again.status()["state"] == "idle"
        assert torque(person) == [False] * 6
        assert at_rest(site, person)


def test_the_trainers_cpu_is_free_within_100_ms_of_the_call(
    calibrated: tuple[Site, Person],
) -> None:
    site, person = calibrated
    prepare(site, person)
    site.write_config(training=True)
    with site.start_agent("control,trainer", trainer="busy_trainer") as client:
        wait_for("readiness", lambda: client.status()["ready"])
        wait_for("sight of the cube", lambda: seen(client))
        pid = wait_for("the trainer", lambda: client.status()["processes"]["trainer"]["pid"])
        group = wait_for("its child", lambda: two_processes(pid))
        busy_before = cpu_s(group)
        wait_for("work", lambda: cpu_s(group) > busy_before + 0.2)  # idle: it uses its CPU

        with AgentClient(site.state_dir / "run" / "agent.sock") as operator:
            operator.status()  # the connection is there; what is timed is the call
            caller = threading.Thread(target=operator.record_start, args=(TASK,))
            began_s = time.monotonic()
            caller.start()
            while not all(process.status() == psutil.STATUS_STOPPED for process in group):
                assert time.monotonic() - began_s < 0.1
                time.sleep(0.002)
            stopped_cpu_s = cpu_s(group)
            caller.join()
            time.sleep(0.5)
            assert cpu_s(group) == stopped_cpu_s  # not one tick of the kernel's account since
        assert client.status()["processes"]["trainer"]["state"] == "stopped"
        assert client.status()["freeze_ms"] < 100.0
        assert not client.status()["training_allowed"]

        client.record_finish()
        client.teleop_stop()
        thawed = cpu_s(group)
        wait_for("training again", lambda: cpu_s(group) > thawed + 0.1)
        assert client.status()["training_allowed"]
    assert site.stop_agent() == 0
    assert not any(lives(process) for process in group)


def lives(process: psutil.Process) -> bool:
    """False for one that is only waiting to be buried by its parent, too."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def two_processes(pid: int) -> list[psutil.Process] | None:
    parent = psutil.Process(pid)
    children = parent.children(recursive=True)
    return [parent, *children] if children else None


def cpu_s(group: list[psutil.Process]) -> float:
    """User and system time of the whole group, by the kernel's account."""
    return sum(p.cpu_times().user + p.cpu_times().system for p in group)


def test_an_unseen_cube_refuses_the_episode_with_a_clear_line(
    calibrated: tuple[Site, Person],
) -> None:
    site, person = calibrated
    prepare(site, person)
    person.ask("place", object="cube", x_m=0.45, y_m=0.4, yaw_rad=0.0)
    with site.start_agent() as client:
        wait_for("readiness", lambda: client.status()["ready"])
        wait_for("the camera", lambda: client.status()["control"]["cameras"]["overhead"]["open"])
        with pytest.raises(RequestFailed, match="cube was not seen yet by camera overhead"):
            client.record_start(TASK)
        assert client.status()["state"] == "idle"
        assert torque(person) == [False] * 6
        person.ask("place", object="cube", x_m=0.2, y_m=0.0, yaw_rad=0.0)
        wait_for("sight of the cube", lambda: seen(client))
        record_one(client)
        client.teleop_stop()
    assert site.stop_agent() == 0


def test_a_missing_camera_refuses_the_episode_and_not_teleoperation(
    calibrated: tuple[Site, Person],
) -> None:
    site, person = calibrated
    prepare(site, person)
    site.write_config(extra='[cameras.wrist]\nsource = "http://127.0.0.1:9/wrist.mjpg"\n')
    with site.start_agent() as client:
        wait_for("readiness", lambda: client.status()["ready"])
        wait_for("the line", lambda: "camera wrist" in str(client.status()["faults"]))
        with pytest.raises(RequestFailed, match="camera wrist"):
            client.record_start(TASK)
        client.teleop_start()
        client.teleop_stop()
    assert site.stop_agent() == 0
    site.write_config()


def test_a_camera_lost_while_recording_ends_the_episode_and_not_the_motion(
    robot: Robot,
) -> None:
    site, person, client = robot
    client.record_start(TASK)
    time.sleep(0.5)
    person.ask("fault", camera="overhead", kind="freeze", duration_s=3.0)
    wait_for("the failure", lambda: client.status()["recording"]["failure"])
    assert client.status()["state"] == "teleop"
    with pytest.raises(RequestFailed, match="not saved: camera overhead"):
        client.record_finish()
    assert list((site.state_dir / "journal" / "unfinished").glob("*.part"))
    person.ask("clear_faults")
    wait_for("the camera", lambda: client.status()["faults"] == [])
    record_one(client)
    client.teleop_stop()


def test_a_full_disk_refuses_the_episode(calibrated: tuple[Site, Person]) -> None:
    site, person = calibrated
    prepare(site, person)
    site.write_config()
    text = site.config_path.read_text()
    site.config_path.write_text(text.replace("min_free_mb = 1", "min_free_mb = 999999999"))
    with site.start_agent() as client:
        wait_for("readiness", lambda: client.status()["ready"])
        wait_for("sight of the cube", lambda: seen(client))
        with pytest.raises(RequestFailed, match=r"MB are free.*min_free_mb"):
            client.record_start(TASK)
        assert client.status()["state"] == "idle"
        assert torque(person) == [False] * 6
    assert site.stop_agent() == 0
    site.write_config()


def test_armada_record_saves_its_episodes_and_parks(robot: Robot) -> None:
    site, person, client = robot
    command = [sys.executable, "-m", "deploy.command", "record", "--config", str(site.config_path)]
    times = ["--episode-time-s", "0.7", "--reset-time-s", "0.1"]
    done = subprocess.run(
        [*command, "--task", TASK, "--episodes", "2", *times],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.count("saved ") == 2
    assert client.status()["recording"]["episodes"] == 2
    assert client.status()["state"] == "idle"
    assert torque(person) == [False] * 6

    asked = subprocess.run(
        [*command, "--task", TASK],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert asked.returncode == 1
    assert "nobody is there to answer" in asked.stderr
    assert client.status()["recording"]["episodes"] == 2
    assert client.status()["state"] == "idle"
