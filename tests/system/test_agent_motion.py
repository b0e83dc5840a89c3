"""Who may move the arm, how it begins and how it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from agent_site import (
    Robot,
    at_rest,
    follower_rad,
    lead_away,
    torque,
)

from agent.errors import RequestFailed

pytestmark = pytest.mark.system


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ending_the_agent_in_motion_parks_before_release(
    robot: Robot, number: signal.Signals
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


def test_a_dead_supervisor_leaves_a_parked_arm(robot: Robot) -> None:
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


def test_a_leader_far_from_the_follower_is_refused_and_nothing_moves(
    robot: Robot,
) -> None:
    _, person, client = robot
    before = person.ask("truth")["joints_rad"]["follower"]
    person.ask("hand", arm="leader", joints_rad=[1.8, -0.1, 0.0, 0.0, 0.0, 0.6])
    with pytest.raises(RequestFailed, match=r"too far.*shoulder_pan by .*leader near"):
        client.teleop_start()
    after = person.ask("truth")["joints_rad"]["follower"]
    assert np.abs(np.subtract(before, after)).max() < 0.15
    assert client.status()["state"] == "idle"
    assert torque(person) == [False] * 6


def test_a_leader_at_some_distance_is_approached_slowly(
    robot: Robot,
) -> None:
    _, person, client = robot
    person.ask("hand", arm="leader", joints_rad=[1.0, -1.7, 1.4, 1.6, 0.0, 0.3])
    began_s = time.monotonic()
    client.teleop_start()
    assert time.monotonic() - began_s > 0.9  # 57 degrees at no more than 60 a second
    assert person.ask("truth")["joints_rad"]["follower"][0] == pytest.approx(1.0, abs=0.15)
    client.teleop_stop()


def test_emergency_stop_holds_until_reset_parks(robot: Robot) -> None:
    site, person, client = robot
    client.teleop_start()
    lead_away(person)
    client.estop()
    held = follower_rad(person)
    person.ask("rest")  # the leader goes, the follower must not
    assert np.abs(follower_rad(person) - held).max() < 0.1
    assert client.status()["state"] == "estop"
    with pytest.raises(RequestFailed, match="emergency stop is on"):
        client.teleop_start()
    assert client.reset()["parked"] is True
    assert client.status()["state"] == "idle"
    assert at_rest(site, person)


def test_park_from_idle_brings_a_lying_arm_to_rest(
    robot: Robot,
) -> None:
    site, person, client = robot
    person.ask("hand", arm="follower", joints_rad=[0.4, -1.5, 1.2, 1.4, 0.3, 0.5])
    person.ask("hand", arm="follower", joints_rad=None)
    assert not at_rest(site, person)
    client.park()
    assert at_rest(site, person)
    assert torque(person) == [False] * 6
    assert client.status()["state"] == "idle"


def test_bad_requests_are_one_clear_line(robot: Robot) -> None:
    _, _, client = robot
    with pytest.raises(RequestFailed, match="no episode is being recorded"):
        client.record_finish()
    with pytest.raises(RequestFailed, match="task"):
        client.post("/v1/record/start")
    with pytest.raises(RequestFailed, match=r"bogus.*fields: arm, step"):
        client.post("/v1/calibrate", arm="follower", step="homing", bogus=1)
    with pytest.raises(RequestFailed, match="no such call"):
        client.post("/v1/dance")
    with pytest.raises(RequestFailed, match="no policy is active yet"):
        client.rollout_arm("active")
    with pytest.raises(RequestFailed, match="no rollout is armed"):
        client.rollout_start(5.0)
    assert client.status()["state"] == "idle"


def test_a_second_agent_on_the_same_folder_is_refused(
    robot: Robot,
) -> None:
    site, _, client = robot
    second = subprocess.run(
        [sys.executable, "-m", "deploy.command", "agent", "run", "--config", str(site.config_path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert second.returncode == 1
    assert "another agent (pid" in second.stderr
    assert client.status()["ready"]
