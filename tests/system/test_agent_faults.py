"""Faults on the wire and in the processes: the pose is held, the reason is said, reset mends."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest
from agent_site import (
    TASK,
    Robot,
    at_rest,
    follower_rad,
    lead_away,
    record_one,
    torque,
    try_reset,
    wait_for,
)

from agent.errors import RequestFailed

pytestmark = pytest.mark.system


def test_a_dead_control_process_is_a_fault_and_the_next_one_parks(
    robot: Robot,
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
    robot: Robot,
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
    record_one(client)
    client.teleop_stop()


def test_unplugged_while_idle_is_a_fault_too(robot: Robot) -> None:
    _, person, client = robot
    person.ask("fault", arm="follower", kind="unplug")
    wait_for("the fault", lambda: client.status()["state"] == "fault")
    assert client.status()["faults"][0].startswith("follower unplugged: ")
    person.ask("fault", arm="follower", kind="replug")
    wait_for("the reset", lambda: try_reset(client))
    assert client.status()["ready"]


@pytest.mark.parametrize("kind", ["mute", "bad_checksum", "late"])
def test_three_bad_answers_are_held_through(robot: Robot, kind: str) -> None:
    _, person, client = robot
    client.teleop_start()
    person.ask("fault", arm="follower", kind=kind, servo=2, count=3)
    wait_for("missed reads", lambda: client.status()["control"]["missed_reads"] >= 3)
    time.sleep(0.5)
    assert client.status()["state"] == "teleop"
    client.teleop_stop()


def test_a_mute_servo_is_a_fault_that_names_it_and_holds_the_pose(
    robot: Robot,
) -> None:
    site, person, client = robot
    client.teleop_start()
    lead_away(person)
    person.ask("fault", arm="follower", kind="mute", servo=3)
    wait_for("the fault", lambda: client.status()["state"] == "fault")
    assert "elbow_flex" in client.status()["faults"][0]
    time.sleep(0.5)  # the last goal that was sent is reached
    held = follower_rad(person)
    person.ask("rest")  # the leader goes, the follower must not
    assert torque(person) == [True] * 6
    assert np.abs(follower_rad(person) - held).max() < 0.05
    with pytest.raises(RequestFailed):
        client.reset()
    assert torque(person) == [True] * 6

    person.ask("clear_faults")
    wait_for("the reset", lambda: try_reset(client))
    assert torque(person) == [False] * 6
    assert at_rest(site, person)


def test_an_end_with_a_mute_servo_releases_all_that_can_be_reached(
    robot: Robot,
) -> None:
    site, person, client = robot
    client.teleop_start()
    person.ask("fault", arm="follower", kind="mute", servo=2)
    wait_for("the fault", lambda: client.status()["state"] == "fault")
    site.stop_agent()
    assert [on for i, on in enumerate(torque(person)) if i != 1] == [False] * 5


def test_an_overheated_servo_is_a_fault_that_holds(
    robot: Robot,
) -> None:
    _, person, client = robot
    client.teleop_start()
    person.ask("fault", arm="follower", kind="overheat", servo=2)
    wait_for("the fault", lambda: client.status()["state"] == "fault")
    assert "shoulder_lift" in client.status()["faults"][0]
    person.ask("clear_faults")
    wait_for("the reset", lambda: try_reset(client))


def test_a_lost_leader_in_teleop_holds_the_follower(
    robot: Robot,
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
