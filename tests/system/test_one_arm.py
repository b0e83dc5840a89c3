"""README, "One arm alone": its commands, run on the twin by a person who demonstrates."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_site import Person, Robot, Site, at_rest, prepare, wait_for, wait_ready

from agent.client import AgentClient
from policy.release.folder import read_policy_folder

pytestmark = [pytest.mark.system, pytest.mark.timeout(480)]

README = Path(__file__).parents[2] / "README.md"
# As the README has it but shorter: what is promised here is the way, not the skill.
SHORTER = {"--episodes": "3", "--steps": "40", "--seconds": "2", "--reset-time-s": "0.5"}
PLACES = [(0.18, 0.03), (0.19, 0.0), (0.18, -0.03)]


def commands() -> list[list[str]]:
    """The command lines of the section, in order."""
    section = README.read_text().split("## One arm alone")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("armada ")]
    return [shlex.split(line)[1:] for line in lines]


def shortened(words: list[str]) -> list[str]:
    before = ["", *words[:-1]]
    return [SHORTER.get(option, word) for option, word in zip(before, words, strict=True)]


@pytest.fixture
def robot(calibrated: tuple[Site, Person]) -> Iterator[Robot]:
    """A robot in no fleet that trains; its agent has all its processes."""
    site, person = calibrated
    prepare(site, person)
    site.write_config(training=True)
    try:
        with site.start_agent("trainer,ingest,control,inference,federation") as client:
            wait_ready(client)
            yield site, person, client
    finally:
        site.end_agent()


def armada(site: Site, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"ARMADA_CONFIG": str(site.config_path)}
    command = [sys.executable, "-m", "deploy.command", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@contextlib.contextmanager
def somebody_demonstrates(site: Site, client: AgentClient) -> Iterator[None]:
    """Whenever an episode is being recorded, the expert leads; the cube is placed before."""
    over = threading.Event()
    hands = Person(site.twin["control"])

    def demonstrate() -> None:
        with AgentClient(site.state_dir / "run" / "agent.sock") as eyes:
            for x_m, y_m in PLACES:
                hands.ask("rest")
                hands.ask("place", object="cube", x_m=x_m, y_m=y_m, yaw_rad=0.0)
                while not eyes.status()["recording"]["active"]:
                    if over.wait(0.02):
                        return
                hands.ask("demonstrate", skill="pick_lift")
                while eyes.status()["recording"]["active"]:
                    if over.wait(0.02):
                        return

    person = threading.Thread(target=demonstrate)
    person.start()
    try:
        yield
    finally:
        over.set()
        person.join(60.0)
        hands.close()


def test_the_walk_of_one_arm_as_the_readme_has_it(robot: Robot) -> None:
    site, person, client = robot
    record, train, rollout = (shortened(words) for words in commands())
    assert [record[0], train[:2], rollout[:3]] == [
        "record", ["train", "--local"], ["rollout", "--policy", "local"],
    ]  # fmt: skip

    refused = armada(site, *rollout)
    assert refused.returncode == 1 and "no policy 'local'" in refused.stderr
    idle = [each["text"] for each in client.status()["waiting"]]
    wait_for("the trainer", lambda: client.status().get("trainer"), 120.0)
    assert any("armada train --local" in each["text"] for each in client.status()["waiting"]), idle

    with somebody_demonstrates(site, client):
        recorded = armada(site, *record)
    assert recorded.returncode == 0, recorded.stderr
    assert recorded.stdout.count("saved") == 3

    trained = armada(site, *train)
    assert trained.returncode == 0, (trained.stdout, trained.stderr, site.log("trainer"))
    assert re.search(r"step \d+ of 40", trained.stdout)
    assert "ready after 40 steps" in trained.stdout.splitlines()[-1]
    folder = read_policy_folder(site.state_dir / "policies" / "local")
    assert folder.manifest.contributors == ("arm",)

    driven = armada(site, *rollout)
    assert driven.returncode == 0, driven.stderr
    assert driven.stdout.count("ran its time") == 3
    wait_for("rest", lambda: at_rest(site, person) or None, 20.0)
