"""A policy drives the twin's arm through the agent: armed, run, stopped, faulted."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from agent_site import (
    TASK,
    Person,
    Robot,
    Site,
    at_rest,
    prepare,
    torque,
    try_reset,
    wait_for,
    wait_ready,
)
from tiny_policy import install_policy

from agent.client import AgentClient
from agent.errors import RequestFailed
from agent.policies.store import PolicyStore
from agent.recording.journal import EpisodeReader
from agent.rollout_operator import RolloutOperator

pytestmark = pytest.mark.system


@pytest.fixture
def robot(calibrated: tuple[Site, Person]) -> Iterator[Robot]:
    """An agent with inference, and release 1 active: a policy that drifts slowly."""
    site, person = calibrated
    prepare(site, person)
    policies = site.state_dir / "policies"
    shutil.rmtree(policies, ignore_errors=True)
    store = PolicyStore(policies)
    install_policy(store)
    store.use(1)
    try:
        with site.start_agent("control,inference") as client:
            wait_ready(client)
            yield site, person, client
    finally:
        site.end_agent()


@pytest.fixture
def operator(robot: Robot) -> Iterator[RolloutOperator]:
    """Whoever started the rollout, and is there until the test's end."""
    with RolloutOperator(robot[2]) as made:
        yield made


def wait_over(client: AgentClient) -> dict[str, object]:
    wait_for("the end of the episode", lambda: not client.status()["rollout"]["running"], 60.0)
    rollout: dict[str, object] = client.status()["rollout"]
    return rollout


def test_an_episode_runs_its_time_and_ends_parked(robot: Robot, operator: RolloutOperator) -> None:
    site, person, client = robot
    armed = operator.arm("active")
    assert (armed["version"], armed["chunk_size"], armed["fps"]) == (1, 20, 30)
    status = client.status()
    assert status["state"] == "rollout" and status["policy"] == 1
    assert torque(person) == [False] * 6  # armed is not yet energised
    client.rollout_start(1.5, TASK)
    wait_for("torque", lambda: torque(person) == [True] * 6)
    with pytest.raises(RequestFailed, match="already running"):
        client.rollout_start(1.0)
    with pytest.raises(RequestFailed, match="swapped between episodes"):
        operator.arm("active")
    rollout = wait_over(client)
    assert rollout["outcome"] == "ran its time"
    assert 30 <= int(str(rollout["ticks"])) <= 47
    assert client.status()["state"] == "rollout"
    assert torque(person) == [False] * 6
    assert at_rest(site, person)
    assert not list((site.state_dir / "journal").glob("*.mcap"))  # not asked for

    client.rollout_start(0.5)  # a second episode of the same policy
    wait_over(client)
    client.rollout_disarm()
    status = client.status()
    assert status["state"] == "idle"
    wait_for("inference to end", lambda: client.status()["processes"]["inference"]["pid"] is None)


def test_a_rollout_is_stopped_by_the_operator_and_may_be_recorded(
    robot: Robot, operator: RolloutOperator
) -> None:
    site, person, client = robot
    operator.arm("1")
    client.rollout_start(30.0, TASK, record=True)
    time.sleep(1.0)
    client.rollout_stop()
    assert client.status()["rollout"]["outcome"] == "stopped by the operator"
    assert at_rest(site, person)
    wait_for("the episode", lambda: client.status()["recording"]["episodes"] == 1)
    [path] = (site.state_dir / "journal").glob("*.mcap")
    reader = EpisodeReader(path)
    assert reader.meta.task == TASK
    assert reader.end is not None and reader.end.frames > 10
    client.park()  # disarms
    assert client.status()["state"] == "idle"


def test_inference_that_dies_is_held_then_a_fault_and_reset_parks(
    robot: Robot, operator: RolloutOperator
) -> None:
    site, person, client = robot
    operator.arm("active")
    client.rollout_start(30.0)
    wait_for("ticks", lambda: client.status()["rollout"]["ticks"] > 10)
    pid = client.status()["processes"]["inference"]["pid"]
    os.kill(pid, signal.SIGSTOP)  # it hangs: worse than dead
    wait_for("the fault", lambda: client.status()["state"] == "fault")
    with contextlib.suppress(ProcessLookupError):  # the fault has it ended, too
        os.kill(pid, signal.SIGKILL)
    status = client.status()
    assert "no action from the policy" in status["faults"][0]
    assert status["rollout"]["outcome"].startswith("fault: ")
    assert not status["rollout"]["running"]
    assert torque(person) == [True] * 6
    with pytest.raises(RequestFailed, match="in fault"):
        client.rollout_start(1.0)
    assert try_reset(client)
    assert at_rest(site, person)
    operator.arm("active")  # with another inference process
    client.rollout_start(0.3)
    assert wait_over(client)["outcome"] == "ran its time"


def test_a_policy_that_is_not_there_or_damaged_is_refused_and_idle_again(
    robot: Robot, operator: RolloutOperator
) -> None:
    site, _, client = robot
    with pytest.raises(RequestFailed, match="no policy '7'"):
        operator.arm("7")
    assert client.status()["state"] == "idle"
    onnx = site.state_dir / "policies" / "1" / "policy.onnx"
    onnx.write_bytes(onnx.read_bytes()[:-1] + b"x")
    with pytest.raises(RequestFailed, match=r"policy\.onnx"):
        operator.arm("active")
    assert client.status()["state"] == "idle"
    assert client.status()["training_allowed"]


def test_armada_rollout_runs_its_episodes_and_parks(robot: Robot) -> None:
    site, person, client = robot
    command = [sys.executable, "-m", "deploy.command", "rollout", "--config", str(site.config_path)]
    done = subprocess.run(
        [*command, "--policy", "active", "--episodes", "2", "--seconds", "0.5"],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    assert "policy 1 is loaded" in done.stdout
    assert done.stdout.count("ran its time") == 2
    assert client.status()["state"] == "idle"
    assert torque(person) == [False] * 6
    shown = subprocess.run(
        [sys.executable, "-m", "deploy.command", "status", "--config", str(site.config_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "ready" in shown.stdout and "Hz held" in shown.stdout


def test_a_command_that_is_killed_takes_its_rollout_with_it(robot: Robot) -> None:
    """SIGKILL: no handler runs, nothing is said. The arm holds within the lease, then parks."""
    site, person, client = robot
    command = [sys.executable, "-m", "deploy.command", "rollout", "--config", str(site.config_path)]
    process = subprocess.Popen([*command, "--seconds", "60", "--record"])
    try:
        wait_for("ticks", lambda: client.status()["rollout"]["ticks"] > 15, 60.0)
        process.kill()
        killed_s = time.monotonic()
        process.wait()
        phases: list[str] = []
        held = False

        def at_rest_again() -> bool:
            nonlocal held
            phase = client.status()["control"]["phase"]
            if phase not in phases[-1:]:
                phases.append(phase)
                if phase == "abandoned":
                    held = time.monotonic() - killed_s < 2.0
            return phase == "idle"

        wait_for("the arm at rest", at_rest_again)
    finally:
        process.kill()
        process.wait()
    assert phases == ["rollout", "abandoned", "parking", "idle"]
    assert held
    assert torque(person) == [False] * 6
    assert at_rest(site, person)
    wait_for("idle", lambda: client.status()["state"] == "idle")
    status = client.status()
    assert status["rollout"]["outcome"] == "the rollout's operator is gone"
    assert status["training_allowed"] and not status["rollout"]["armed"]
    assert not list((site.state_dir / "journal").glob("*.mcap"))


def test_the_leader_takes_over_and_gives_back_and_success_is_recorded(
    robot: Robot, operator: RolloutOperator
) -> None:
    site, _, client = robot
    operator.arm("active")
    client.rollout_start(60.0, TASK, record=True)
    wait_for("ticks", lambda: client.status()["rollout"]["ticks"] > 10)
    client.rollout_takeover()
    corrected = lambda: client.status()["rollout"]["intervention_ticks"] > 10  # noqa: E731
    wait_for("the leader in command", corrected)
    client.rollout_handback()
    before = client.status()["rollout"]["ticks"]
    wait_for("the policy again", lambda: client.status()["rollout"]["ticks"] > before + 10)
    client.rollout_success()
    wait_for("the episode", lambda: client.status()["recording"]["episodes"] == 1)
    [path] = (site.state_dir / "journal").glob("*.mcap")
    reader = EpisodeReader(path)
    assert (reader.meta.source, reader.meta.policy) == ("rollout", "1")
    assert reader.end is not None
    assert reader.end.success is True and reader.end.intervention_frames > 10
    client.park()
