"""The supervisor with real, tiny child processes at the far end of its links."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from fake_robot import small_config
from tiny_policy import install_policy

from agent.child.process_row import ProcessRow
from agent.config import load_config
from agent.errors import ProcessUnavailable, Refused
from agent.operations.state_machine import Event, State
from agent.policies.errors import NoSuchPolicy
from agent.policies.release_book import RobotRelease
from agent.policies.release_states import ReleaseState
from agent.policies.store import PolicyStore
from agent.supervisor.process_table import always, idle, rollout_armed
from agent.supervisor.supervisor import Supervisor

# A control process that does as the name of the command says, without an arm.
CONTROL = """
import os, signal, sys, time
from agent.child.link import ChildLink
link = ChildLink.from_environment()

def park(number, frame):
    time.sleep(0.3)  # the others have ended by then
    link.send("event", name="released", reason=None)
    time.sleep(0.3)
    sys.exit(0)

signal.signal(signal.SIGTERM, park)
status = {"ready": True, "problems": ["camera top: gone"], "recording": {"episodes": 2}}
link.heartbeat()
link.send("status", **status)
state, waiting = {}, []
while True:
    message = link.receive(0.02)
    if message is None:
        continue
    if message["kind"] == "state":
        state = message
        continue
    name, number, arguments = message["name"], message["id"], message["arguments"]
    if name == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif name == "refuse":
        link.send("reply", id=number, ok=False, error="no")
    elif name == "hang":
        waiting.append(number)
    elif name == "garble":
        os.write(link.fileno(), b"this is no JSON\\n")
    elif name == "fault":
        link.send("event", name="fault", reason=arguments["reason"])
        link.send("reply", id=number, ok=False, error=arguments["reason"])
    elif name == "release":
        link.send("event", name="released", reason=None)
        link.send("event", name="unheard_of")
        link.send("unheard_of")
        link.send("reply", id=number, ok=True, result={})
    elif name == "state":
        link.send("reply", id=number, ok=True, result=state)
    else:
        for late in waiting:
            link.send("reply", id=late, ok=True, result={"late": True})
        link.send("reply", id=12345, ok=True, result={"nobody": "asked"})
        link.send("reply", id=number, ok=True, result={"name": name, **arguments})
"""
WORKER = """
from agent.child.link import ChildLink
link = ChildLink.from_environment()
link.heartbeat()
link.send("status", steps=1)
while True:
    link.receive(1.0)
"""


@dataclass(frozen=True)
class Row(ProcessRow):
    """A row whose process is a program of this file."""

    program: str = WORKER

    def command(self, config_path: Path) -> list[str]:
        return [sys.executable, "-c", self.program]


ROWS = (
    Row("trainer", "", idle, otherwise="freeze", gives_memory_back=True),
    Row("control", "", always, program=CONTROL),
    Row("inference", "", rollout_armed),
)
Scene = Callable[[Supervisor], Awaitable[None]]
DIGEST = "ab" * 32


def put_on_trial(supervisor: Supervisor, state: ReleaseState) -> None:
    """Version 2 is on trial beside version 1, which is active."""
    store = PolicyStore(supervisor.config.policies_dir)
    install_policy(store, 2)
    with store.change() as book:
        book.active = "1"
        book.releases = {DIGEST: RobotRelease(version=2, state=state)}


def on_trial(supervisor: Supervisor) -> RobotRelease:
    return PolicyStore(supervisor.config.policies_dir).book().releases[DIGEST]


def play(folder: Path, scene: Scene, available: Callable[[], int | None] = lambda: None) -> None:
    """Run a scene beside a running supervisor; afterwards no process of it may be left."""
    path = small_config(folder)
    pids: set[int] = set()

    async def run() -> None:
        supervisor = Supervisor(load_config(path), path, ROWS, available=available)
        running = asyncio.create_task(supervisor.run())
        try:
            await until(lambda: supervisor.status()["control"].get("ready"))
            await asyncio.wait_for(scene(supervisor), 30.0)
        finally:
            pids.update(pid for name in pids_of(supervisor) if (pid := pid_of(supervisor, name)))
            supervisor.request_stop()
            await asyncio.wait_for(running, 20.0)
        assert pids_of(supervisor) == {}

    asyncio.run(run())
    assert not any(psutil.pid_exists(pid) for pid in pids)


async def until(condition: Callable[[], Any]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")


def pid_of(supervisor: Supervisor, name: str) -> int | None:
    pid: int | None = supervisor.status()["processes"][name]["pid"]
    return pid


def pids_of(supervisor: Supervisor) -> dict[str, int]:
    rows = supervisor.status()["processes"]
    return {name: row["pid"] for name, row in rows.items() if row["pid"] is not None}


def linux_state(supervisor: Supervisor, name: str) -> str:
    pid = pid_of(supervisor, name)
    assert pid is not None
    return str(psutil.Process(pid).status())


# Commands.


def test_a_command_gets_its_own_reply(tmp_path: Path) -> None:
    async def scene(supervisor: Supervisor) -> None:
        replies = await asyncio.gather(
            *(supervisor.command("echo", 5.0, number=number) for number in range(20))
        )
        assert [reply["number"] for reply in replies] == list(range(20))

    play(tmp_path, scene)


def test_a_refusal_comes_with_controls_own_line(tmp_path: Path) -> None:
    async def scene(supervisor: Supervisor) -> None:
        with pytest.raises(Refused, match=r"^no$"):
            await supervisor.command("refuse", 5.0)

    play(tmp_path, scene)


def test_a_late_reply_is_never_taken_for_the_next_commands(tmp_path: Path) -> None:
    async def scene(supervisor: Supervisor) -> None:
        with pytest.raises(ProcessUnavailable, match="did not answer hang within 0 s"):
            await supervisor.command("hang", 0.1)
        assert await supervisor.command("echo", 5.0, a=1) == {"name": "echo", "a": 1}
        assert supervisor.state is State.IDLE

    play(tmp_path, scene)


def test_a_command_to_a_process_that_is_not_there_says_where_its_log_is(tmp_path: Path) -> None:
    async def run() -> None:
        path = small_config(tmp_path)
        supervisor = Supervisor(load_config(path), path, ROWS)
        with pytest.raises(ProcessUnavailable, match=r"not running \(starting\); see .*log"):
            await supervisor.command("echo", 5.0)

    asyncio.run(run())


@pytest.mark.parametrize("how", ["die", "garble"])
def test_control_that_dies_under_a_command_answers_it_at_once(tmp_path: Path, how: str) -> None:
    async def scene(supervisor: Supervisor) -> None:
        waiting = asyncio.create_task(supervisor.command("hang", 25.0))
        await asyncio.sleep(0.05)
        before = pid_of(supervisor, "control")
        began_s = time.monotonic()
        with pytest.raises(ProcessUnavailable, match=r"the control process died \(SIGKILL\)"):
            await supervisor.command(how, 25.0)
        with pytest.raises(ProcessUnavailable, match="died"):
            await waiting
        assert time.monotonic() - began_s < 5.0
        await until(lambda: pid_of(supervisor, "control") not in (None, before))
        await until(lambda: supervisor.status()["control"])
        assert (await supervisor.command("echo", 5.0))["name"] == "echo"

    play(tmp_path, scene)


# Faults.


def test_control_that_dies_when_idle_is_no_fault(tmp_path: Path) -> None:
    async def scene(supervisor: Supervisor) -> None:
        with pytest.raises(ProcessUnavailable):
            await supervisor.command("die", 5.0)
        assert supervisor.state is State.IDLE
        status = supervisor.status()
        assert status["processes"]["control"]["restarts"] == 1
        assert status["events"][-1]["reason"] == "the control process died (SIGKILL)"
        assert status["faults"] == [] and not status["ready"]

    play(tmp_path, scene)


def test_control_that_dies_in_motion_is_a_fault_that_says_how_to_go_on(tmp_path: Path) -> None:
    async def scene(supervisor: Supervisor) -> None:
        supervisor.event(Event.TELEOP_START)
        with pytest.raises(ProcessUnavailable):
            await supervisor.command("die", 5.0)
        assert supervisor.state is State.FAULT
        assert supervisor.status()["faults"][0] == (
            "the control process died (SIGKILL); it is started again; `armada reset` parks the arm"
        )
        supervisor.event(Event.RESET)
        assert "the control process died" not in str(supervisor.status()["faults"])

    play(tmp_path, scene)


def test_the_first_fault_is_the_one_that_is_shown_until_a_reset(tmp_path: Path) -> None:
    async def scene(supervisor: Supervisor) -> None:
        supervisor.event(Event.TELEOP_START)
        for reason in ("the bus is gone", "something that came of it"):
            with pytest.raises(Refused, match=reason):
                await supervisor.command("fault", 5.0, reason=reason)
        assert supervisor.state is State.FAULT
        status = supervisor.status()
        assert status["faults"] == ["the bus is gone", "camera top: gone"]
        assert not status["ready"]
        supervisor.event(Event.RESET)
        assert supervisor.status()["faults"] == ["camera top: gone"]

    play(tmp_path, scene)


def test_a_fault_never_lifts_an_emergency_stop(tmp_path: Path) -> None:
    async def scene(supervisor: Supervisor) -> None:
        supervisor.event(Event.ESTOP)
        supervisor.fault("park failed: KeyError")
        assert supervisor.state is State.ESTOP
        assert "park failed: KeyError" in supervisor.status()["faults"]

    play(tmp_path, scene)


# What a state permits.


def test_the_trainer_is_frozen_when_the_event_that_leaves_idle_returns(tmp_path: Path) -> None:
    async def scene(supervisor: Supervisor) -> None:
        await until(lambda: supervisor.status().get("trainer"))
        before = pid_of(supervisor, "trainer")
        supervisor.event(Event.TELEOP_START)
        # The signal is sent; the kernel stops the process as soon as it is scheduled.
        assert supervisor.status()["processes"]["trainer"]["state"] == "stopped"
        await until(lambda: linux_state(supervisor, "trainer") == psutil.STATUS_STOPPED)
        assert not supervisor.status()["training_allowed"]
        assert supervisor.status()["freeze_ms"] < 100.0
        await supervisor.command("release", 5.0)  # control says that the arm is parked
        assert supervisor.state is State.IDLE
        await until(lambda: linux_state(supervisor, "trainer") != psutil.STATUS_STOPPED)
        assert pid_of(supervisor, "trainer") == before

    play(tmp_path, scene)


def test_inference_lives_from_arming_to_disarming(tmp_path: Path) -> None:
    async def scene(supervisor: Supervisor) -> None:
        assert pid_of(supervisor, "inference") is None
        supervisor.event(Event.ROLLOUT_ARM)
        assert pid_of(supervisor, "inference") is not None
        supervisor.event(Event.ROLLOUT_DISARM)
        await until(lambda: pid_of(supervisor, "inference") is None)
        assert supervisor.status()["processes"]["inference"]["restarts"] == 0

    play(tmp_path, scene)


def test_a_refused_event_changes_nothing(tmp_path: Path) -> None:
    async def scene(supervisor: Supervisor) -> None:
        with pytest.raises(Refused, match="teleop stop is not possible"):
            supervisor.event(Event.TELEOP_STOP)
        assert supervisor.state is State.IDLE
        assert supervisor.status()["processes"]["trainer"]["state"] == "running"

    play(tmp_path, scene)


def test_the_children_are_told_of_every_state(tmp_path: Path) -> None:
    async def scene(supervisor: Supervisor) -> None:
        for event, state in ((Event.TELEOP_START, "teleop"), (Event.ESTOP, "estop")):
            supervisor.event(event)
            told = await supervisor.command("state", 5.0)
            assert told["state"] == state
            assert told["training_allowed"] is False
            assert told["episodes"] == 2
            assert told["session"] == supervisor.session

    play(tmp_path, scene)


def test_nothing_is_started_again_once_the_agent_is_to_end(tmp_path: Path) -> None:
    async def scene(supervisor: Supervisor) -> None:
        await until(lambda: supervisor.status().get("trainer"))
        supervisor.event(Event.TELEOP_START)
        supervisor.request_stop()
        await until(lambda: pids_of(supervisor).keys() == {"control"})
        while pid_of(supervisor, "control") is not None:  # it parks; then the state is idle
            assert pid_of(supervisor, "trainer") is None
            await asyncio.sleep(0.01)
        assert supervisor.state is State.IDLE
        assert pids_of(supervisor) == {}

    play(tmp_path, scene)


# The status.


def test_the_status_has_each_childs_own_and_is_json(tmp_path: Path) -> None:
    async def scene(supervisor: Supervisor) -> None:
        await until(lambda: supervisor.status().get("trainer"))
        status = json.loads(json.dumps(supervisor.status(), allow_nan=False))
        assert status["trainer"] == {"steps": 1}
        assert status["recording"] == {"episodes": 2}
        assert status["control"] == {"ready": True, "problems": ["camera top: gone"]}
        assert status["ready"] and status["state"] == "idle"
        assert status["faults"] == ["camera top: gone"]
        assert status["policy"] is None

    play(tmp_path, scene)


def test_the_status_of_a_dead_process_is_not_shown(tmp_path: Path) -> None:
    async def scene(supervisor: Supervisor) -> None:
        with pytest.raises(ProcessUnavailable):
            await supervisor.command("die", 5.0)
        assert supervisor.status()["control"] == {}
        assert supervisor.status()["recording"]["active"] is False

    play(tmp_path, scene)


def test_a_policy_that_is_not_there_is_named_and_a_damaged_store_is_no_crash(
    tmp_path: Path,
) -> None:
    async def scene(supervisor: Supervisor) -> None:
        with pytest.raises(NoSuchPolicy, match="no policy '8'"):
            supervisor.policies.to_drive("8")
        supervisor.config.policies_dir.mkdir()
        (supervisor.config.policies_dir / "active.json").write_text("{")
        assert supervisor.status()["policy"] is None
        assert supervisor.state is State.IDLE

    play(tmp_path, scene)


# Memory.


def test_a_frozen_trainer_gives_its_memory_back_and_returns_when_there_is_room(
    tmp_path: Path,
) -> None:
    left = [8 << 30]

    def row_of(supervisor: Supervisor) -> dict[str, Any]:
        return dict(supervisor.status()["processes"]["trainer"])

    async def scene(supervisor: Supervisor) -> None:
        await until(lambda: supervisor.status().get("trainer"))
        left[0] = 100 << 20
        await asyncio.sleep(0.8)
        first = pid_of(supervisor, "trainer")
        assert first is not None, "at work it is left alone"
        supervisor.event(Event.TELEOP_START)
        await until(lambda: pid_of(supervisor, "trainer") is None)
        assert not psutil.pid_exists(first)
        row = row_of(supervisor)
        assert row["restarts"] == 0, "it is no fault"
        await until(lambda: "waits for" in row_of(supervisor)["reason"])
        assert "100 MB are left" in row_of(supervisor)["reason"]
        names = [event["name"] for event in supervisor.status()["events"]]
        assert "gave_memory_back" in names
        assert "died" not in names
        supervisor.event(Event.RELEASED)
        assert supervisor.state is State.IDLE
        await asyncio.sleep(0.8)
        assert pid_of(supervisor, "trainer") is None, "idle, but there is no room"
        left[0] = 8 << 30
        await until(lambda: pid_of(supervisor, "trainer"))
        assert row_of(supervisor)["reason"] is None

    play(tmp_path, scene, lambda: left[0])


def test_a_frozen_trainer_stays_while_the_host_has_memory(tmp_path: Path) -> None:
    async def scene(supervisor: Supervisor) -> None:
        await until(lambda: pid_of(supervisor, "trainer"))
        supervisor.event(Event.TELEOP_START)
        await asyncio.sleep(0.8)
        assert linux_state(supervisor, "trainer") == psutil.STATUS_STOPPED

    play(tmp_path, scene, lambda: 8 << 30)


def test_a_daemon_that_finds_the_trial_marker_rolls_the_version_back(tmp_path: Path) -> None:
    path = small_config(tmp_path)
    supervisor = Supervisor(load_config(path), path, ())
    put_on_trial(supervisor, ReleaseState.DRIVING)

    async def up_and_down() -> None:
        supervisor.request_stop()
        await supervisor.run()

    asyncio.run(up_and_down())
    assert on_trial(supervisor).state is ReleaseState.ROLLED_BACK
    assert supervisor.status()["policy"] == 1


def test_how_a_canarys_episode_ended_is_heard_from_control(tmp_path: Path) -> None:
    path = small_config(tmp_path)
    supervisor = Supervisor(load_config(path), path, ())
    put_on_trial(supervisor, ReleaseState.CANARY)
    assert supervisor.status()["policy"] == 2, "the canary drives the next episode"
    supervisor.policies.armed(supervisor.policies.to_drive("active"))
    supervisor.policies.drive_begins()
    fault = {"running": False, "outcome": "fault: x", "inference": {"fault": "it hangs"}}
    supervisor._heard_rollout({"running": False}, fault)
    assert on_trial(supervisor).state is ReleaseState.DRIVING, "it did not run before"
    supervisor._heard_rollout({"running": True}, fault)
    assert (on_trial(supervisor).state, on_trial(supervisor).reason) == (
        ReleaseState.ROLLED_BACK,
        "it hangs",
    )


def test_a_control_process_that_dies_under_a_canary_rolls_it_back(tmp_path: Path) -> None:
    async def scene(supervisor: Supervisor) -> None:
        put_on_trial(supervisor, ReleaseState.CANARY)
        supervisor.policies.armed(supervisor.policies.to_drive("active"))
        supervisor.policies.drive_begins()
        with pytest.raises(ProcessUnavailable):
            await supervisor.command("die", 5.0)
        assert on_trial(supervisor).state is ReleaseState.ROLLED_BACK
        assert "the control process died" in on_trial(supervisor).reason

    play(tmp_path, scene)


def test_a_shadow_runs_only_while_somebody_commands_and_is_told_where_its_policy_lies(
    tmp_path: Path,
) -> None:
    path = small_config(tmp_path)
    supervisor = Supervisor(load_config(path), path, ())
    put_on_trial(supervisor, ReleaseState.SHADOW)
    supervisor._look_for_shadow()
    assert supervisor._state_message()["shadow"] is None
    supervisor._machine.state = State.TELEOP
    assert supervisor._machine.permissions.shadow
    folder = supervisor.config.policies_dir / "2"
    assert supervisor._state_message()["shadow"] == str(folder)
    fault = {"number": 1, "policy": "2", "seconds": 0.0, "fault": "it hangs"}
    for _ in range(2):  # the same report is told again and again
        supervisor._heard_shadow(fault)
    assert on_trial(supervisor).state is ReleaseState.ROLLED_BACK
    supervisor._look_for_shadow()
    assert supervisor._state_message()["shadow"] is None
