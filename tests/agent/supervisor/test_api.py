"""The HTTP side of the agent: codes, lines and bounds. In process; the robot is a stand-in."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_robot import FIELDS, FakeRobot, served, small_config

from agent.config import load_config
from agent.errors import ProcessUnavailable
from agent.operations.state_machine import State
from agent.operations.table import OPERATIONS
from agent.supervisor.api import MAX_BODY_BYTES, bind_socket, build_app

Scene = Callable[[FakeRobot, httpx.AsyncClient], Awaitable[None]]


@pytest.fixture
def robot(tmp_path: Path) -> FakeRobot:
    return FakeRobot(load_config(small_config(tmp_path)))


def play(robot: FakeRobot, scene: Scene) -> None:
    async def run() -> None:
        transport = httpx.ASGITransport(build_app(robot), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://agent") as http:
            await scene(robot, http)

    asyncio.run(run())


def post(robot: FakeRobot, path: str, **request: Any) -> httpx.Response:
    found: list[httpx.Response] = []

    async def scene(_: FakeRobot, http: httpx.AsyncClient) -> None:
        found.append(await http.post(path, **request))

    play(robot, scene)
    return found[0]


def refusal(response: httpx.Response) -> str:
    """The line of a refusal, which is all that there is in it."""
    body = response.json()
    assert body.keys() == {"ok", "error"} and body["ok"] is False
    assert "\n" not in body["error"]
    return str(body["error"])


# The paths as they have always been, written out: pages and scripts know them.
PATHS = [
    "/v1/calibrate",
    "/v1/teleop/start",
    "/v1/teleop/stop",
    "/v1/record/start",
    "/v1/record/finish",
    "/v1/record/discard",
    "/v1/rollout/arm",
    "/v1/rollout/beat",
    "/v1/rollout/start",
    "/v1/rollout/takeover",
    "/v1/rollout/handback",
    "/v1/rollout/success",
    "/v1/rollout/failure",
    "/v1/rollout/stop",
    "/v1/rollout/disarm",
    "/v1/policy/list",
    "/v1/policy/use",
    "/v1/policy/rollback",
    "/v1/train/local",
    "/v1/park",
    "/v1/estop",
    "/v1/reset",
]


def test_the_paths_are_these() -> None:
    assert [row.path for row in OPERATIONS] == PATHS


@pytest.mark.parametrize("row", OPERATIONS, ids=lambda row: row.verb)
def test_every_path_takes_a_right_request(robot: FakeRobot, row: Any) -> None:
    robot.machine.state = {"teleop_stop": State.TELEOP}.get(
        row.verb, State.ROLLOUT if row.verb.startswith("rollout") else State.IDLE
    )
    robot.answer(row.command, extra=5)
    response = post(robot, row.path, json=FIELDS.get(row.verb, {}))
    assert response.status_code == 200
    without_control = {**robot.policies.said, "train_local": {"order_id": "0" * 32, "steps": 1200}}
    said = {"extra": 5} if row.commands_control else without_control[row.verb]
    assert response.json() == {"ok": True, "state": robot.state.value, **said}


@pytest.mark.parametrize("row", OPERATIONS, ids=lambda row: row.verb)
def test_every_path_refuses_a_field_that_it_does_not_know(robot: FakeRobot, row: Any) -> None:
    response = post(robot, row.path, json={**FIELDS.get(row.verb, {}), "bogus": 1})
    assert response.status_code == 400
    assert refusal(response).startswith("bogus: ")
    assert robot.told == []


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "Invalid JSON"),
        (b"null", "body: "),
        (b"[]", "body: "),
        (b"\xff\xff", "Invalid JSON"),
        (b"[" * 60_000, "Invalid JSON"),
        (b'{"task": ' + b"[" * 30_000, "Invalid JSON"),
        (json.dumps({"task": "x" * 501}).encode(), "task: "),
        (b"", "task: Field required (fields: task)"),
    ],
)
def test_a_malformed_body_is_400_and_one_line(robot: FakeRobot, body: bytes, words: str) -> None:
    response = post(robot, "/v1/record/start", content=body)
    assert response.status_code == 400
    assert words in refusal(response)
    assert robot.told == []


def test_a_body_that_is_too_long_is_not_read_to_its_end(robot: FakeRobot) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 100 * MAX_BODY_BYTES:
            sent += 4096
            yield b" " * 4096

    response = post(robot, "/v1/park", content=endless())
    assert response.status_code == 400
    assert refusal(response) == f"the request is longer than {MAX_BODY_BYTES} bytes"
    assert sent <= MAX_BODY_BYTES + 2 * 4096
    assert robot.told == []


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("POST", "/v1/dance", 404),
        ("GET", "/", 404),
        ("GET", "/v1/park", 405),
        ("POST", "/v1/status", 405),
        ("POST", "/v1/teleop_start", 404),
    ],
)
def test_what_is_no_call_is_one_line(robot: FakeRobot, method: str, path: str, code: int) -> None:
    async def scene(_: FakeRobot, http: httpx.AsyncClient) -> None:
        response = await http.request(method, path)
        assert response.status_code == code
        assert refusal(response) == f"{method} {path}: no such call"

    play(robot, scene)


def test_what_does_not_fit_the_state_is_409_with_what_to_do(robot: FakeRobot) -> None:
    robot.machine.state = State.ESTOP
    response = post(robot, "/v1/teleop/start")
    assert response.status_code == 409
    assert refusal(response) == (
        "teleop start is not possible: "
        "the emergency stop is on; `armada reset` lifts it and parks the arm"
    )


def test_control_that_is_away_is_409_with_its_line(robot: FakeRobot) -> None:
    robot.refuse("record_finish", ProcessUnavailable("the control process is not running"))
    response = post(robot, "/v1/record/finish")
    assert (response.status_code, refusal(response)) == (409, "the control process is not running")


def test_what_nobody_foresaw_is_500_and_a_fault_and_the_server_lives_on(
    robot: FakeRobot, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(robot: FakeRobot, http: httpx.AsyncClient) -> None:
        robot.refuse("teleop_start", KeyError("gripper"))
        response = await http.post("/v1/teleop/start")
        assert response.status_code == 500
        line = "teleop_start failed: KeyError: 'gripper'"
        assert refusal(response) == f"{line}; see the agent's log"
        status = (await http.get("/v1/status")).json()
        assert (status["state"], status["faults"]) == ("fault", [line])
        assert robot.told[-1] == "control:estop(release=False)"
        assert (await http.post("/v1/reset")).status_code == 200
        assert robot.state is State.IDLE

    with caplog.at_level(logging.ERROR):
        play(robot, scene)
    assert "Traceback" in caplog.text and "KeyError: 'gripper'" in caplog.text


def test_a_status_that_fails_is_500_in_one_line(
    robot: FakeRobot, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(robot: FakeRobot, http: httpx.AsyncClient) -> None:
        monkeypatch.setattr(robot, "status", lambda: {}["state"])
        response = await http.get("/v1/status")
        assert response.status_code == 500
        assert refusal(response) == "/v1/status failed: KeyError: 'state'; see the agent's log"
        monkeypatch.undo()
        assert (await http.get("/v1/status")).status_code == 200

    play(robot, scene)


def test_the_emergency_stop_is_answered_during_a_long_command(robot: FakeRobot) -> None:
    async def scene(robot: FakeRobot, http: httpx.AsyncClient) -> None:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def long() -> dict[str, Any]:
            begun.set()
            await go_on.wait()
            return {}

        robot.scripts["record_start"] = long
        recording = asyncio.create_task(http.post("/v1/record/start", json={"task": "lift"}))
        await begun.wait()
        waiting = asyncio.create_task(http.post("/v1/park"))
        stopped = await asyncio.wait_for(http.post("/v1/estop", json={"release": True}), 1.0)
        assert stopped.json() == {"ok": True, "state": "estop"}
        assert not recording.done() and not waiting.done()
        go_on.set()
        assert (await recording).json()["state"] == "estop"
        assert (await waiting).status_code == 409  # it had waited, and the stop is on

    play(robot, scene)


# The real server on a real socket.


def test_a_caller_that_hangs_up_does_no_harm(tmp_path: Path) -> None:
    with served(tmp_path) as (robot, _):
        path = str(robot.config.agent_socket)
        for said in (
            b"",
            b"garbage\r\n\r\n",
            b"POST /v1/park HTTP/1.1\r\ncontent-length: 9\r\n\r\n{",
        ):
            with socket.socket(socket.AF_UNIX) as caller:
                caller.connect(path)
                caller.sendall(said)
        with httpx.Client(transport=httpx.HTTPTransport(uds=path), base_url="http://a") as http:
            assert http.get("/v1/status").status_code == 200
        assert robot.told == []


def test_the_socket_is_for_owner_and_group_and_an_old_one_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "run" / "agent.sock"
    bind_socket(path).close()
    listener = bind_socket(path)
    try:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(path))
    finally:
        listener.close()


def test_a_socket_that_cannot_be_made_is_an_os_error(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match=r"too long|No such"):
        bind_socket(tmp_path / ("x" * 120))
    assert len(os.listdir("/proc/self/fd")) == before
