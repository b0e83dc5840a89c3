"""Every operation in every state, against the real state machine and a scripted control process."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from fake_robot import FIELDS, FakeRobot, small_config

from agent.config import load_config
from agent.errors import AgentError, OperationFailed, ProcessUnavailable, Refused
from agent.operations.runner import OperationRunner
from agent.operations.state_machine import Event, State
from agent.operations.table import OPERATIONS, control_commands, operation_of

IDLE, TELEOP, ROLLOUT, FAULT, ESTOP = State
CALIBRATE = "control:calibrate(arm=follower,step=homing)"
RECORD = "control:record_start(task=lift)"
LOAD = "control:rollout_arm(folder=policies/7,policy=7,limits=1.0)"
START = "control:rollout_start(seconds=2.0,task=None,record=False)"
PARK, PARK_UP = "control:park(energise=False)", "control:park(energise=True)"
BEAT = "control:rollout_beat(lease=a1)"
STOP = "control:estop(release=False)"

# What each operation tells whom, in order, and the state after it. Written out, not derived;
# a state that is not here refuses it, and nobody is told anything.
DONE: dict[str, dict[State, tuple[list[str], State]]] = {
    "calibrate": {IDLE: (["calibrate", CALIBRATE], IDLE)},
    "teleop_start": {IDLE: (["teleop_start", "control:teleop_start()"], TELEOP)},
    "teleop_stop": {TELEOP: (["teleop_stop", PARK, "released"], IDLE)},
    "record_start": {IDLE: (["teleop_start", RECORD], TELEOP), TELEOP: ([RECORD], TELEOP)},
    "record_finish": {state: (["control:record_finish(success=None)"], state) for state in State},
    "record_discard": {state: (["control:record_discard()"], state) for state in State},
    "rollout_arm": {
        IDLE: (["rollout_arm", LOAD, "armed 7"], ROLLOUT),
        ROLLOUT: (["rollout_arm", LOAD, "armed 7"], ROLLOUT),
    },
    "rollout_beat": {ROLLOUT: ([BEAT], ROLLOUT)},
    "rollout_start": {ROLLOUT: (["drive_begins", START], ROLLOUT)},
    "rollout_takeover": {ROLLOUT: (["control:rollout_takeover()"], ROLLOUT)},
    "rollout_handback": {ROLLOUT: (["control:rollout_handback()"], ROLLOUT)},
    "rollout_success": {ROLLOUT: (["control:rollout_success()"], ROLLOUT)},
    "rollout_failure": {ROLLOUT: (["control:rollout_failure()"], ROLLOUT)},
    "rollout_stop": {ROLLOUT: (["control:rollout_stop()"], ROLLOUT)},
    "rollout_disarm": {ROLLOUT: (["control:rollout_disarm()", "rollout_disarm"], IDLE)},
    "policy_list": {state: ([], state) for state in State},
    "policy_use": {state: (["use 7"], state) for state in State},
    "policy_rollback": {state: (["roll_back"], state) for state in State},
    "train_local": {state: (["train_local(None,False)"], state) for state in State},
    "park": {
        IDLE: (["park", PARK_UP, "released"], IDLE),
        TELEOP: (["park", PARK, "released"], IDLE),
        ROLLOUT: (["control:rollout_disarm()", "rollout_disarm"], IDLE),
    },
    "estop": {state: (["estop", STOP], ESTOP) for state in State},
    "reset": {state: (["control:reset()", "reset"], IDLE) for state in (IDLE, FAULT, ESTOP)},
}

# The same when the control process refuses its first command: how far back each goes.
REFUSED: dict[str, dict[State, tuple[list[str], State]]] = {
    "calibrate": {IDLE: (["calibrate", CALIBRATE], IDLE)},
    "teleop_start": {
        IDLE: (["teleop_start", "control:teleop_start()", PARK, "released"], IDLE),
    },
    "teleop_stop": {TELEOP: (["teleop_stop", PARK, "not_started"], IDLE)},
    "record_start": {
        IDLE: (["teleop_start", RECORD, PARK, "released"], IDLE),
        TELEOP: ([RECORD], TELEOP),
    },
    "record_finish": {TELEOP: (["control:record_finish(success=None)"], TELEOP)},
    "record_discard": {TELEOP: (["control:record_discard()"], TELEOP)},
    "rollout_arm": {
        IDLE: (["rollout_arm", LOAD, "not_started"], IDLE),
        ROLLOUT: (["rollout_arm", LOAD], ROLLOUT),
    },
    "rollout_beat": {ROLLOUT: ([BEAT], ROLLOUT)},
    "rollout_start": {ROLLOUT: (["drive_begins", START, "drive_called_off"], ROLLOUT)},
    "rollout_takeover": {ROLLOUT: (["control:rollout_takeover()"], ROLLOUT)},
    "rollout_handback": {ROLLOUT: (["control:rollout_handback()"], ROLLOUT)},
    "rollout_success": {ROLLOUT: (["control:rollout_success()"], ROLLOUT)},
    "rollout_failure": {ROLLOUT: (["control:rollout_failure()"], ROLLOUT)},
    "rollout_stop": {ROLLOUT: (["control:rollout_stop()"], ROLLOUT)},
    "rollout_disarm": {ROLLOUT: (["control:rollout_disarm()"], ROLLOUT)},
    "policy_list": {},  # control has no part in them
    "policy_use": {},
    "policy_rollback": {},
    "train_local": {},  # control has no part in it
    "park": {
        IDLE: (["park", PARK_UP, "not_started"], IDLE),
        TELEOP: (["park", PARK, "not_started"], IDLE),
        ROLLOUT: (["control:rollout_disarm()"], ROLLOUT),
    },
    "estop": {state: (["estop", STOP], ESTOP) for state in State},
    "reset": {state: (["control:reset()"], state) for state in (IDLE, FAULT, ESTOP)},
}
VERBS = [operation.verb for operation in OPERATIONS]
PAIRS = [(verb, state) for verb in VERBS for state in State]


def robot_in(folder: Path, state: State) -> FakeRobot:
    return FakeRobot(load_config(small_config(folder)), state)


async def do(runner: OperationRunner, verb: str, **fields: Any) -> dict[str, Any]:
    operation = operation_of(verb)
    return await runner.run(operation, operation.arguments.parse(fields or FIELDS.get(verb, {})))


def run(robot: FakeRobot, verb: str, **fields: Any) -> dict[str, Any]:
    return asyncio.run(do(OperationRunner(robot), verb, **fields))


def test_the_tables_of_this_test_have_every_operation() -> None:
    assert list(DONE) == list(REFUSED) == VERBS


@pytest.mark.parametrize(("verb", "state"), PAIRS)
def test_every_operation_in_every_state(tmp_path: Path, verb: str, state: State) -> None:
    robot = robot_in(tmp_path, state)
    if state in DONE[verb]:
        run(robot, verb)
        assert (robot.told, robot.state) == DONE[verb][state]
    else:
        with pytest.raises(Refused, match=r"is not possible: |no rollout is armed"):
            run(robot, verb)
        assert (robot.told, robot.state) == ([], state)


@pytest.mark.parametrize(
    ("verb", "state"), [(verb, state) for verb in VERBS for state in REFUSED[verb]]
)
def test_what_control_refuses_goes_back(tmp_path: Path, verb: str, state: State) -> None:
    robot = robot_in(tmp_path, state)
    first = next(line for line in REFUSED[verb][state][0] if line.startswith("control:"))
    robot.refuse(first.removeprefix("control:").split("(")[0])
    with pytest.raises(Refused, match="control says no"):
        run(robot, verb)
    assert (robot.told, robot.state) == REFUSED[verb][state]


@pytest.mark.parametrize(
    ("verb", "state"),
    [(row.verb, state) for row in OPERATIONS if row.commands_control for state in DONE[row.verb]],
)
def test_control_that_dies_under_a_command_leaves_the_fault(
    tmp_path: Path, verb: str, state: State
) -> None:
    robot = robot_in(tmp_path, state)

    async def die() -> dict[str, Any]:
        robot.event(Event.CONTROL_DIED)
        raise ProcessUnavailable("the control process died (SIGKILL)")

    robot.scripts = dict.fromkeys(control_commands(), die)
    in_motion = DONE[verb][state][0][0] in ("teleop_start", "rollout_arm", "park")
    with pytest.raises(ProcessUnavailable, match="died"):
        run(robot, verb)
    if verb == "estop" or state is ESTOP:
        assert robot.state is ESTOP
    elif state in (TELEOP, ROLLOUT, FAULT) or in_motion:
        assert robot.state is FAULT
    else:
        assert robot.state is IDLE  # nothing was energised


def test_a_park_that_answers_late_is_not_taken_for_parked(tmp_path: Path) -> None:
    robot = robot_in(tmp_path, TELEOP)
    robot.refuse("park", ProcessUnavailable("did not answer park within 40 s"))
    with pytest.raises(ProcessUnavailable):
        run(robot, "teleop_stop")
    assert robot.state is TELEOP  # it may be moving still


def test_a_fault_while_teleoperation_begins_is_not_parked_away(tmp_path: Path) -> None:
    robot = robot_in(tmp_path, IDLE)

    async def fault() -> dict[str, Any]:
        robot.event(Event.FAULT)
        raise Refused("the bus is gone")

    robot.scripts["teleop_start"] = fault
    with pytest.raises(Refused, match="the bus is gone"):
        run(robot, "teleop_start")
    assert robot.state is FAULT
    assert PARK not in robot.told


def test_a_policy_that_is_not_there_is_refused_before_idle_is_left(tmp_path: Path) -> None:
    robot = robot_in(tmp_path, IDLE)
    with pytest.raises(AgentError, match="no policy '8'"):
        run(robot, "rollout_arm", policy="8")
    assert (robot.told, robot.state) == ([], IDLE)


@pytest.mark.parametrize("seconds", [0.0, -1.0, 120.1, float("nan"), float("inf")])
def test_an_episode_is_no_longer_than_the_configuration_says(
    tmp_path: Path, seconds: float
) -> None:
    robot = robot_in(tmp_path, ROLLOUT)
    with pytest.raises(Refused, match="seconds must be above 0 and at most 120"):
        run(robot, "rollout_start", seconds=seconds)
    assert robot.told == []


def test_the_time_out_of_a_command_is_the_rows(tmp_path: Path) -> None:
    robot = robot_in(tmp_path, TELEOP)
    run(robot, "record_finish")
    run(robot, "teleop_stop")
    run(robot, "rollout_arm")
    load_s = robot.config.rollout.load_timeout_s
    assert robot.timeouts_s == {"record_finish": 30.0, "park": 40.0, "rollout_arm": load_s + 20.0}


# One at a time, but for the emergency stop.


def gated(robot: FakeRobot, name: str) -> tuple[asyncio.Event, asyncio.Event]:
    """A command that says that it has begun and waits to be let go on."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def script() -> dict[str, Any]:
        begun.set()
        await go_on.wait()
        return {}

    robot.scripts[name] = script
    return begun, go_on


def test_operations_wait_for_each_other(tmp_path: Path) -> None:
    async def scene() -> None:
        robot = robot_in(tmp_path, IDLE)
        runner = OperationRunner(robot)
        begun, go_on = gated(robot, "teleop_start")
        first = asyncio.create_task(do(runner, "teleop_start"))
        await begun.wait()
        second = asyncio.create_task(do(runner, "teleop_stop"))
        await asyncio.sleep(0.01)
        assert robot.told == ["teleop_start", "control:teleop_start()"]
        go_on.set()
        await asyncio.gather(first, second)
        assert robot.told[2:] == ["teleop_stop", PARK, "released"]

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("verb", "state", "command"),
    [
        ("teleop_start", IDLE, "teleop_start"),
        ("park", TELEOP, "park"),
        ("reset", FAULT, "reset"),
        ("rollout_disarm", ROLLOUT, "rollout_disarm"),
    ],
)
def test_the_emergency_stop_waits_for_nobody_and_stays(
    tmp_path: Path, verb: str, state: State, command: str
) -> None:
    async def scene() -> None:
        robot = robot_in(tmp_path, state)
        runner = OperationRunner(robot)
        begun, go_on = gated(robot, command)
        long = asyncio.create_task(do(runner, verb))
        await begun.wait()
        await do(runner, "estop")
        assert robot.state is ESTOP and robot.told[-1] == STOP
        go_on.set()  # the long command comes to its end after the stop
        await long
        assert robot.state is ESTOP

    asyncio.run(scene())


# What nobody foresaw.


@pytest.mark.parametrize(
    ("verb", "state"),
    [(row.verb, state) for row in OPERATIONS if row.commands_control for state in DONE[row.verb]],
)
def test_what_nobody_foresaw_is_a_named_fault_and_a_held_arm(
    tmp_path: Path, verb: str, state: State
) -> None:
    robot = robot_in(tmp_path, state)
    first = next(line for line in DONE[verb][state][0] if line.startswith("control:"))
    robot.refuse(first.removeprefix("control:").split("(")[0], ZeroDivisionError("one\nby nought"))
    if verb == "estop":
        with pytest.raises(OperationFailed):
            run(robot, verb)
        assert robot.state is ESTOP
        return
    with pytest.raises(OperationFailed, match=rf"^{verb} failed: ZeroDivisionError: .*see .* log$"):
        run(robot, verb)
    assert robot.state is (ESTOP if state is ESTOP else FAULT)
    assert robot.faults == [f"{verb} failed: ZeroDivisionError: one by nought"]
    assert robot.told[-1] == STOP


def test_after_what_nobody_foresaw_the_next_operation_is_taken(tmp_path: Path) -> None:
    async def scene() -> None:
        robot = robot_in(tmp_path, IDLE)
        runner = OperationRunner(robot)
        robot.refuse("teleop_start", KeyError("x"))
        robot.refuse("estop")  # not even that
        with pytest.raises(OperationFailed):
            await do(runner, "teleop_start")
        await do(runner, "reset")
        assert robot.state is IDLE

    asyncio.run(scene())
