"""A release on trial, on the twin's arm, with the real processes."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator

import pytest
from agent_site import Person, Robot, Site, prepare, try_reset, wait_for, wait_ready
from tiny_policy import install_policy

from agent.client import AgentClient
from agent.policies.release_book import RobotRelease
from agent.policies.release_states import ReleaseState
from agent.policies.store import PolicyStore
from agent.rollout_operator import RolloutOperator
from policy.release.folder import read_manifest

pytestmark = pytest.mark.system

ROWS = "control,inference,shadow"


@pytest.fixture
def robot(calibrated: tuple[Site, Person]) -> Iterator[Robot]:
    """Version 1 is active, version 2 a canary."""
    site, person = calibrated
    prepare(site, person)
    shutil.rmtree(site.state_dir / "policies", ignore_errors=True)
    store = PolicyStore(site.state_dir / "policies")
    install_policy(store, 1)
    store.use(1)
    manifest, _ = read_manifest(install_policy(store, 2))
    with store.change() as book:
        book.follow()
        book.releases = {manifest.digest(): RobotRelease(version=2, state=ReleaseState.CANARY)}
    try:
        with site.start_agent(ROWS) as client:
            wait_ready(client)
            yield site, person, client
    finally:
        site.end_agent()


@pytest.fixture
def operator(robot: Robot) -> Iterator[RolloutOperator]:
    """Whoever started the rollout, and is there until the test's end."""
    with RolloutOperator(robot[2]) as made:
        yield made


def on_trial(site: Site) -> RobotRelease:
    (record,) = PolicyStore(site.state_dir / "policies").book().releases.values()
    return record


def drive(client: AgentClient, seconds: float) -> None:
    client.rollout_start(seconds)
    wait_for("the end of the episode", lambda: not client.status()["rollout"]["running"], 60.0)


def test_a_canary_drives_with_half_of_the_limits_and_then_is_active(
    robot: Robot, operator: RolloutOperator
) -> None:
    site, _, client = robot
    assert operator.arm("active")["version"] == 2
    assert client.status()["rollout"]["limits"] == 0.5
    client.rollout_start(0.6)
    assert on_trial(site).state is ReleaseState.DRIVING
    wait_for("the end", lambda: not client.status()["rollout"]["running"], 60.0)
    wait_for("the verdict", lambda: on_trial(site).state is ReleaseState.CANARY)
    for _ in range(2):
        drive(client, 0.6)
    wait_for("the end of the trial", lambda: on_trial(site).state is ReleaseState.ACTIVE)
    table = client.policy_list()
    assert (table["active"], table["previous"]) == ("2", "1")
    client.park()


def test_a_canary_whose_process_hangs_is_rolled_back_and_the_former_drives(
    robot: Robot, operator: RolloutOperator
) -> None:
    site, _, client = robot
    operator.arm("active")
    client.rollout_start(30.0)
    wait_for("ticks", lambda: client.status()["rollout"]["ticks"] > 10)
    os.kill(client.status()["processes"]["inference"]["pid"], signal.SIGSTOP)
    wait_for("the fault", lambda: client.status()["state"] == "fault")
    wait_for("the rollback", lambda: on_trial(site).state is ReleaseState.ROLLED_BACK)
    assert "no action from the policy" in on_trial(site).reason
    wait_for("the reset", lambda: try_reset(client))
    assert operator.arm("active")["version"] == 1
    client.park()


def test_an_agent_that_is_killed_under_a_canary_comes_back_with_the_former(
    robot: Robot, operator: RolloutOperator
) -> None:
    site, _, client = robot
    operator.arm("active")
    client.rollout_start(30.0)
    wait_for("ticks", lambda: client.status()["rollout"]["ticks"] > 10)
    assert site.agent is not None
    site.agent.kill()
    site.agent.wait(20.0)
    with site.start_agent(ROWS) as again:
        assert on_trial(site).state is ReleaseState.ROLLED_BACK
        assert again.status()["policy"] == 1
        (row, *_) = again.policy_list()["policies"]
        assert (row["version"], row["state"]) == ("2", "rolled_back")
        assert "went down while this version had the arm" in row["why"]


def test_a_shadow_predicts_beside_the_policy_that_drives_and_then_is_a_canary(
    robot: Robot, operator: RolloutOperator
) -> None:
    site, _, client = robot
    with PolicyStore(site.state_dir / "policies").change() as book:
        for record in book.releases.values():
            record.state = ReleaseState.SHADOW
    assert operator.arm("active")["version"] == 1
    wait_for("the shadow", lambda: client.status()["processes"]["shadow"]["pid"] is not None)
    drive(client, 15.0)
    assert client.status()["rollout"]["policy"] == "1"
    wait_for("the end of the shadow", lambda: on_trial(site).state is ReleaseState.CANARY)
    assert on_trial(site).difference is not None and on_trial(site).shadow_s > 4.0
    client.park()
    wait_for("its end", lambda: client.status()["processes"]["shadow"]["pid"] is None)
