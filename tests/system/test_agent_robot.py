"""The agent with a robot: two arms and a camera on the twin's wire."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from agent_site import Person, Site, wait_for

from agent.client import AgentClient
from agent.errors import RequestFailed
from agent.recording.journal import EpisodeReader

pytestmark = pytest.mark.system

TASK = "Pick up the red cube"
REST_TOLERANCE_RAD = 0.15


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Person]]:
    """A twin whose arms an agent has calibrated; that agent is gone."""
    site = Site(tmp_path_factory.mktemp("robot"))
    try:
        person = site.start_twin()
        site.write_config()
        with site.start_agent() as client:
            status = client.status()
            assert not status["ready"]
            wait_for("the reason", lambda: "not calibrated" in str(client.status()["faults"]))
            with pytest.raises(RequestFailed, match=r"not calibrated.*setup calibrate"):
                client.record_start(TASK)
            assert client.status()["state"] == "idle"
            with pytest.raises(RequestFailed, match="begins with the step homing"):
                client.calibrate("follower", "range_start")
            site.calibrate(person, client)
            assert client.status()["faults"] == []
        assert site.stop_agent() == 0
        yield site, person
        person.close()
    finally:
        site.close()


@pytest.fixture(autouse=True)
def no_agent_left(calibrated: tuple[Site, Person]) -> Iterator[None]:
    """A test that failed leaves no agent to the next one."""
    yield
    calibrated[0].end_agent()


@pytest.fixture
def robot(calibrated: tuple[Site, Person]) -> Iterator[tuple[Site, Person, AgentClient]]:
    """The calibrated robot, at rest, nothing recorded yet, with an agent that is ready."""
    site, person = calibrated
    prepare(site, person)
    site.write_config()
    with site.start_agent() as client:
        wait_for("readiness", lambda: client.status()["ready"])
        wait_for("sight of the cube", lambda: seen(client))
        yield site, person, client
    if site.agent is not None and site.agent.poll() is None:
        assert site.stop_agent() == 0


def prepare(site: Site, person: Person) -> None:
    """No faults, both arms at rest, the cube on the table, an empty state folder."""
    person.ask("clear_faults")
    person.ask("fault", arm="follower", kind="replug")
    person.ask("rest")
    person.ask("place", object="cube", x_m=0.2, y_m=0.04, yaw_rad=0.0)
    for name in ("journal", "log", "run"):
        shutil.rmtree(site.state_dir / name, ignore_errors=True)


def seen(client: AgentClient) -> bool:
    return client.status()["control"]["environment"].get("cube.x_m") is not None


def torque(person: Person) -> list[bool]:
    return list(person.ask("truth")["torque"]["follower"])


def at_rest(site: Site, person: Person) -> bool:
    joints = person.ask("truth")["joints_rad"]["follower"]
    return bool(
        np.abs(np.subtract(joints, site.twin["rest_joints_rad"])).max() < REST_TOLERANCE_RAD
    )


def lead_away(person: Person) -> None:
    """The person takes the leader out of the rest pose; the follower follows."""
    pose = [0.3, -1.2, 1.0, 1.2, 0.2, 0.6]
    person.ask("hand", arm="leader", joints_rad=pose)


def record_one(person: Person, client: AgentClient, seconds: float = 0.6) -> dict[str, Any]:
    client.record_start(TASK)
    time.sleep(seconds)
    return client.record_finish()


def test_a_demonstration_is_recorded_as_it_was_sent(
    robot: tuple[Site, Person, AgentClient],
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
    assert ticks == list(range(ticks[0], ticks[0] + len(ticks)))
    for sample, jpegs in rows:
        assert sample.t_sent_s > sample.t_observed_s
        assert jpegs["overhead"].startswith(b"\xff\xd8")
        assert np.isfinite(sample.environment).all()
    first = rows[0][0]
    assert first.environment == pytest.approx([0.2, 0.04], abs=0.01)
    sequences = [sample.camera_sequence["overhead"] for sample, _ in rows]
    assert sequences == sorted(sequences) and len(set(sequences)) > len(sequences) / 2


def test_a_kill_loses_no_finished_episode_and_the_arm_is_held_until_reset(
    robot: tuple[Site, Person, AgentClient],
) -> None:
    site, person, client = robot
    finished = [record_one(person, client)["episode"] for _ in range(2)]
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ending_the_agent_in_motion_parks_before_release(
    robot: tuple[Site, Person, AgentClient], number: signal.Signals
) -> None:
    site, person, client = robot
    client.teleop_start()
    lead_away(person)
    assert not at_rest(site, person)
    began_s = time.monotonic()
    assert site.stop_agent(number) == 0
    assert time.monotonic() - began_s < 12.0
    assert torque(person) == [False] * 6
    assert at_rest(site, person)


def test_a_dead_supervisor_leaves_a_parked_arm(robot: tuple[Site, Person, AgentClient]) -> None:
    site, person, client = robot
    client.teleop_start()
    lead_away(person)
    assert site.agent is not None
    control = psutil.Process(client.status()["processes"]["control"]["pid"])
    site.agent.kill()
    site.agent.wait()
    control.wait(15.0)
    assert torque(person) == [False] * 6
    assert at_rest(site, person)


def test_a_dead_control_process_is_a_fault_and_the_next_one_parks(
    robot: tuple[Site, Person, AgentClient],
) -> None:
    site, person, client = robot
    client.teleop_start()
    lead_away(person)
    pid = client.status()["processes"]["control"]["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_for("the fault", lambda: client.status()["state"] == "fault")
    assert "control process died" in client.status()["faults"][0]
    assert torque(person) == [True] * 6

    def held() -> bool:
        return client.status()["control"].get("phase") == "holding"

    wait_for("the next control process", held)
    assert client.reset()["parked"] is True
    assert torque(person) == [False] * 6
    assert at_rest(site, person)


def test_unplugged_in_motion_is_a_fault_and_reset_waits_for_the_port(
    robot: tuple[Site, Person, AgentClient],
) -> None:
    site, person, client = robot
    client.record_start(TASK)
    person.ask("fault", arm="follower", kind="unplug")
    wait_for("the fault", lambda: client.status()["state"] == "fault")
    status = client.status()
    assert status["faults"][0].startswith("follower unplugged: ")
    assert not status["ready"]
    with pytest.raises(RequestFailed, match="not saved: a fault ended it"):
        client.record_finish()
    with pytest.raises(RequestFailed, match=r"in fault.*armada reset"):
        client.teleop_start()
    with pytest.raises(RequestFailed, match="not ready: follower"):
        client.reset()
    assert client.status()["state"] == "fault"

    person.ask("fault", arm="follower", kind="replug")
    wait_for("the reset", lambda: try_reset(client))
    assert client.status()["state"] == "idle"
    assert client.status()["ready"]
    assert torque(person) == [False] * 6
    assert list((site.state_dir / "journal" / "unfinished").glob("*.part"))
    record_one(person, client)
    client.teleop_stop()


def try_reset(client: AgentClient) -> bool:
    try:
        client.reset()
    except RequestFailed:
        return False
    return True


def test_unplugged_while_idle_is_a_fault_too(robot: tuple[Site, Person, AgentClient]) -> None:
    _, person, client = robot
    person.ask("fault", arm="follower", kind="unplug")
    wait_for("the fault", lambda: client.status()["state"] == "fault")
    assert client.status()["faults"][0].startswith("follower unplugged: ")
    person.ask("fault", arm="follower", kind="replug")
    wait_for("the reset", lambda: try_reset(client))
    assert client.status()["ready"]


@pytest.mark.parametrize("kind", ["mute", "bad_checksum", "late"])
def test_three_bad_answers_are_held_through(
    robot: tuple[Site, Person, AgentClient], kind: str
) -> None:
    _, person, client = robot
    client.teleop_start()
    person.ask("fault", arm="follower", kind=kind, servo=2, count=3)
    wait_for("missed reads", lambda: client.status()["control"]["missed_reads"] >= 3)
    time.sleep(0.5)
    assert client.status()["state"] == "teleop"
    client.teleop_stop()


def test_a_mute_servo_is_a_fault_that_names_it_and_holds_the_pose(
    robot: tuple[Site, Person, AgentClient],
) -> None:
    site, person, client = robot
    client.teleop_start()
    lead_away(person)
    before = person.ask("truth")["joints_rad"]["follower"]
    person.ask("fault", arm="follower", kind="mute", servo=3)
    wait_for("the fault", lambda: client.status()["state"] == "fault")
    assert "elbow_flex" in client.status()["faults"][0]
    time.sleep(1.0)
    assert torque(person) == [True] * 6
    after = person.ask("truth")["joints_rad"]["follower"]
    assert np.abs(np.subtract(before, after)).max() < 0.1
    with pytest.raises(RequestFailed):
        client.reset()
    assert torque(person) == [True] * 6

    person.ask("clear_faults")
    wait_for("the reset", lambda: try_reset(client))
    assert torque(person) == [False] * 6
    assert at_rest(site, person)


def test_an_end_with_a_mute_servo_releases_all_that_can_be_reached(
    robot: tuple[Site, Person, AgentClient],
) -> None:
    site, person, client = robot
    client.teleop_start()
    person.ask("fault", arm="follower", kind="mute", servo=2)
    wait_for("the fault", lambda: client.status()["state"] == "fault")
    site.stop_agent()
    assert [on for i, on in enumerate(torque(person)) if i != 1] == [False] * 5


def test_an_overheated_servo_is_a_fault_that_holds(
    robot: tuple[Site, Person, AgentClient],
) -> None:
    _, person, client = robot
    client.teleop_start()
    person.ask("fault", arm="follower", kind="overheat", servo=2)
    wait_for("the fault", lambda: client.status()["state"] == "fault")
    assert "shoulder_lift" in client.status()["faults"][0]
    person.ask("clear_faults")
    wait_for("the reset", lambda: try_reset(client))


def test_a_leader_far_from_the_follower_is_refused_and_nothing_moves(
    robot: tuple[Site, Person, AgentClient],
) -> None:
    _, person, client = robot
    before = person.ask("truth")["joints_rad"]["follower"]
    person.ask("hand", arm="leader", joints_rad=[1.8, -0.1, 0.0, 0.0, 0.0, 0.6])
    with pytest.raises(RequestFailed, match=r"too far.*shoulder_pan by .*leader near"):
        client.teleop_start()
    after = person.ask("truth")["joints_rad"]["follower"]
    assert np.abs(np.subtract(before, after)).max() < REST_TOLERANCE_RAD
    assert client.status()["state"] == "idle"
    assert torque(person) == [False] * 6


def test_a_leader_at_some_distance_is_approached_slowly(
    robot: tuple[Site, Person, AgentClient],
) -> None:
    _, person, client = robot
    person.ask("hand", arm="leader", joints_rad=[1.0, -1.7, 1.4, 1.6, 0.0, 0.3])
    began_s = time.monotonic()
    client.teleop_start()
    assert time.monotonic() - began_s > 0.9  # 57 degrees at no more than 60 a second
    assert person.ask("truth")["joints_rad"]["follower"][0] == pytest.approx(1.0, abs=0.15)
    client.teleop_stop()


def test_emergency_stop_holds_until_reset_parks(robot: tuple[Site, Person, AgentClient]) -> None:
    site, person, client = robot
    client.teleop_start()
    lead_away(person)
    client.estop()
    before = person.ask("truth")["joints_rad"]["follower"]
    person.ask("rest")  # the leader goes, the follower must not
    after = person.ask("truth")["joints_rad"]["follower"]
    assert np.abs(np.subtract(before, after)).max() < 0.1
    assert client.status()["state"] == "estop"
    with pytest.raises(RequestFailed, match="emergency stop is on"):
        client.teleop_start()
    assert client.reset()["parked"] is True
    assert client.status()["state"] == "idle"
    assert at_rest(site, person)


def test_park_from_idle_brings_a_lying_arm_to_rest(
    robot: tuple[Site, Person, AgentClient],
) -> None:
    site, person, client = robot
    person.ask("hand", arm="follower", joints_rad=[0.4, -1.5, 1.2, 1.4, 0.3, 0.5])
    person.ask("hand", arm="follower", joints_rad=None)
    assert not at_rest(site, person)
    client.park()
    assert at_rest(site, person)
    assert torque(person) == [False] * 6
    assert client.status()["state"] == "idle"


def test_a_lost_leader_in_teleop_holds_the_follower(
    robot: tuple[Site, Person, AgentClient],
) -> None:
    _, person, client = robot
    client.teleop_start()
    person.ask("fault", arm="leader", kind="unplug")
    wait_for("the fault", lambda: client.status()["state"] == "fault")
    assert client.status()["faults"][0].startswith("leader unplugged: ")
    assert torque(person) == [True] * 6
    person.ask("fault", arm="leader", kind="replug")
    assert client.reset()["parked"] is True

    def leader_is_back() -> bool:
        return client.status()["faults"] == []

    wait_for("the leader", leader_is_back)
    client.teleop_start()
    client.teleop_stop()


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
        record_one(person, client)
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
    robot: tuple[Site, Person, AgentClient],
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
    record_one(person, client)
    client.teleop_stop()


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
    assert not any(psutil.pid_exists(process.pid) for process in group)


def two_processes(pid: int) -> list[psutil.Process] | None:
    parent = psutil.Process(pid)
    children = parent.children(recursive=True)
    return [parent, *children] if children else None


def cpu_s(group: list[psutil.Process]) -> float:
    """User and system time of the whole group, by the kernel's account."""
    return sum(p.cpu_times().user + p.cpu_times().system for p in group)


def test_bad_requests_are_one_clear_line(robot: tuple[Site, Person, AgentClient]) -> None:
    _, _, client = robot
    with pytest.raises(RequestFailed, match="no episode is being recorded"):
        client.record_finish()
    with pytest.raises(RequestFailed, match="task"):
        client.post("record/start")
    with pytest.raises(RequestFailed, match=r"bogus.*fields: arm, step"):
        client.post("calibrate", arm="follower", step="homing", bogus=1)
    with pytest.raises(RequestFailed, match="no such call"):
        client.post("dance")
    with pytest.raises(RequestFailed, match="no policy is active yet"):
        client.rollout_arm("active")
    with pytest.raises(RequestFailed, match="no rollout is armed"):
        client.rollout_start(5.0)
    assert client.status()["state"] == "idle"


def test_a_full_disk_refuses_the_episode(calibrated: tuple[Site, Person]) -> None:
    site, person = calibrated
    prepare(site, person)
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


def test_a_second_agent_on_the_same_folder_is_refused(
    robot: tuple[Site, Person, AgentClient],
) -> None:
    site, _, client = robot
    second = subprocess.run(
        [sys.executable, "-m", "agent", "agent", "run", "--config", str(site.config_path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert second.returncode == 1
    assert "another agent (pid" in second.stderr
    assert client.status()["ready"]
