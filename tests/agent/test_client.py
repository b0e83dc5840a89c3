"""The client refuses what is wrong before it sends; what it sends is what the agent takes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_robot import FIELDS, FakeRobot, served

from agent.client import AgentClient
from agent.errors import (
    AgentUnreachable,
    BadArguments,
    RequestFailed,
    UnknownOperation,
)
from agent.operations.state_machine import State
from agent.operations.table import OPERATIONS


@pytest.fixture
def nobody(tmp_path: Path) -> Iterator[AgentClient]:
    """A client of no agent: whatever is sent raises AgentUnreachable."""
    with AgentClient(tmp_path / "agent.sock") as client:
        yield client


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[tuple[FakeRobot, AgentClient]]:
    with served(tmp_path) as (robot, _), AgentClient(robot.config.agent_socket) as client:
        yield robot, client


def test_an_unknown_verb_is_refused_before_anything_is_sent(nobody: AgentClient) -> None:
    with pytest.raises(UnknownOperation, match="no operation 'record_strat'"):
        nobody.record_strat("lift")
    assert not hasattr(nobody, "dance")


@pytest.mark.parametrize(
    ("verb", "positional", "named", "line"),
    [
        ("record_start", (), {}, "task: Field required"),
        ("record_start", ("",), {}, "task"),
        ("record_start", ("a", "b"), {}, r"record_start: 2 are too many \(fields: task\)"),
        ("record_start", ("a",), {"task": "b"}, "record_start: task is given twice"),
        ("teleop_start", (1,), {}, r"too many \(fields: none\)"),
        ("calibrate", ("third", "homing"), {}, "arm"),
        ("estop", (), {"hold": True}, r"hold: .*\(fields: release\)"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_sent(
    nobody: AgentClient, verb: str, positional: tuple[Any, ...], named: dict[str, Any], line: str
) -> None:
    with pytest.raises(BadArguments, match=line):
        getattr(nobody, verb)(*positional, **named)


def test_no_agent_is_a_line_that_says_how_to_start_it(nobody: AgentClient) -> None:
    with pytest.raises(AgentUnreachable, match=r"no agent answers at .*armada agent run"):
        nobody.park()


@pytest.mark.parametrize("verb", [row.verb for row in OPERATIONS])
def test_every_verb_arrives(agent: tuple[FakeRobot, AgentClient], verb: str) -> None:
    robot, client = agent
    robot.machine.state = {"teleop_stop": State.TELEOP}.get(
        verb, State.ROLLOUT if verb.startswith("rollout") else State.IDLE
    )
    reply = getattr(client, verb)(**FIELDS.get(verb, {}))
    assert reply["ok"] is True
    assert reply["state"] == robot.state.value
    assert robot.told or reply["policies"], "what touches nothing shows by its answer"


def test_fields_may_be_given_in_order_or_by_name(agent: tuple[FakeRobot, AgentClient]) -> None:
    robot, client = agent
    client.calibrate("leader", "homing")
    client.calibrate(step="homing", arm="leader")
    client.calibrate("leader", step="homing")
    assert robot.told[1::2] == ["control:calibrate(arm=leader,step=homing)"] * 3


def test_a_refusal_comes_with_the_agents_own_line(agent: tuple[FakeRobot, AgentClient]) -> None:
    robot, client = agent
    robot.refuse("record_finish")
    with pytest.raises(RequestFailed, match=r"^control says no$"):
        client.record_finish()
    with pytest.raises(RequestFailed, match=r"POST /v1/dance: no such call"):
        client.post("/v1/dance")


def test_an_agent_that_takes_too_long_is_named(agent: tuple[FakeRobot, AgentClient]) -> None:
    robot, _ = agent

    async def late() -> dict[str, Any]:
        await asyncio.sleep(0.5)
        return {}

    robot.scripts["record_finish"] = late
    with (
        AgentClient(robot.config.agent_socket, timeout_s=0.1) as impatient,
        pytest.raises(AgentUnreachable, match="did not answer /v1/record/finish in time"),
    ):
        impatient.record_finish()
