"""What is done for an operation: state events and control commands, one after the other.

The order is everywhere the same: ask the state machine (which freezes the trainer at once when
idle is left), then the control process; if that refuses, go back.
"""

from __future__ import annotations

import asyncio
from typing import Any

from agent.errors import ProcessUnavailable, Refused
from agent.operations.arguments import Arguments, PolicyUse, RolloutArm, TrainLocal
from agent.operations.operation import Operation, Reply, Robot
from agent.operations.state_machine import MEND, Event, State, next_state

# The control process answers at once, after talking to servos, after a ramp, or after the way to
# the park pose.
QUICK_S = 5.0
BUS_S = 20.0
RAMP_S = 30.0
PARK_S = 40.0


async def ask(operation: Operation, robot: Robot, arguments: Arguments) -> Reply:
    """All that the row's columns say: needs, event, command, then."""
    _require_rollout(operation, robot)
    arguments.check(robot.config)
    _enter(operation, robot)
    if operation.then is not None:
        next_state(robot.state, operation.then)  # refuses before anything is done
    fields = arguments.model_dump()
    return await _command(robot, operation.command, operation.timeout_s, operation.then, fields)


async def begin_teleop(operation: Operation, robot: Robot, arguments: Arguments) -> Reply:
    """Leave idle for teleoperation; an arm that was not let in is parked again."""
    _enter(operation, robot)
    try:
        return await robot.command(operation.command, operation.timeout_s, **arguments.model_dump())
    except Refused:
        # The arm may be energised by now: park it. A fault stays a fault.
        if robot.state is State.TELEOP:
            await _release(robot, energise=False)
        raise


async def within_teleop(operation: Operation, robot: Robot, arguments: Arguments) -> Reply:
    """In teleoperation, which is begun first if it is not on."""
    if robot.state is State.TELEOP:
        fields = arguments.model_dump()
        return await robot.command(operation.command, operation.timeout_s, **fields)
    return await begin_teleop(operation, robot, arguments)


async def end_teleop(operation: Operation, robot: Robot, arguments: Arguments) -> Reply:
    """Park, release, go idle."""
    _enter(operation, robot)
    return await _release(robot, energise=False)


async def park(operation: Operation, robot: Robot, arguments: Arguments) -> Reply:
    """Park and release from wherever the arm is; ends teleoperation or a rollout."""
    if robot.state is State.ROLLOUT:
        return await _command(robot, "rollout_disarm", PARK_S, Event.ROLLOUT_DISARM, {})
    energise = robot.state is State.IDLE
    _enter(operation, robot)
    return await _release(robot, energise=energise)


async def arm_rollout(operation: Operation, robot: Robot, arguments: RolloutArm) -> Reply:
    """Start inference, load a policy and warm it up; idle again if that fails."""
    chosen = robot.policies.to_drive(arguments.policy)
    rearm = robot.state is State.ROLLOUT
    _enter(operation, robot)
    timeout_s = operation.timeout_s + robot.config.rollout.load_timeout_s
    try:
        reply = await robot.command(
            operation.command,
            timeout_s,
            folder=str(chosen.folder),
            policy=arguments.policy,
            limits=chosen.limits,
        )
    except Refused as error:
        if isinstance(error, ProcessUnavailable):
            robot.policies.armed(chosen)  # it may have been loaded all the same
        if not rearm:
            robot.event(Event.NOT_STARTED)
        raise
    robot.policies.armed(chosen)
    return reply


async def start_rollout(operation: Operation, robot: Robot, arguments: Arguments) -> Reply:
    """Write the trial marker of a canary, then give it the arm; refused, the marker is lifted."""
    _require_rollout(operation, robot)
    arguments.check(robot.config)
    robot.policies.drive_begins()
    try:
        return await ask(operation, robot, arguments)
    except ProcessUnavailable:
        raise  # it may have the arm
    except Refused:
        robot.policies.drive_called_off()
        raise


async def policy_list(operation: Operation, robot: Robot, arguments: Arguments) -> Reply:
    """Touches no arm and changes nothing."""
    return await asyncio.to_thread(robot.policies.table)


async def policy_use(operation: Operation, robot: Robot, arguments: PolicyUse) -> Reply:
    """From the next arming on; one that is armed stays as it is."""
    return await asyncio.to_thread(robot.policies.use, arguments.policy)


async def policy_roll_back(operation: Operation, robot: Robot, arguments: Arguments) -> Reply:
    """From the next arming on; one that is armed stays as it is."""
    return await asyncio.to_thread(robot.policies.roll_back)


def _require_rollout(operation: Operation, robot: Robot) -> None:
    if operation.needs_rollout and robot.state is not State.ROLLOUT:
        if robot.state is State.IDLE:
            raise Refused("no rollout is armed; arm a policy first (rollout/arm)")
        raise Refused(f"a rollout is not possible: {MEND[robot.state]}")


async def train_local(operation: Operation, robot: Robot, arguments: TrainLocal) -> Reply:
    """Whatever the state: the trainer takes the order up when the robot is idle."""
    return robot.order_local_training(arguments.steps, again=arguments.again)


def _enter(operation: Operation, robot: Robot) -> None:
    if operation.event is not None:
        robot.event(operation.event)


async def _command(
    robot: Robot, name: str, timeout_s: float, then: Event | None, fields: dict[str, Any]
) -> Reply:
    """A command, and the event after it; a fault or a stop that came meanwhile stays."""
    before = robot.state
    reply = await robot.command(name, timeout_s, **fields)
    if then is not None and robot.state is before:
        robot.event(then)
    return reply


async def _release(robot: Robot, *, energise: bool) -> Reply:
    """Have the arm parked and released; idle is reached when this returns."""
    try:
        reply = await robot.command("park", PARK_S, energise=energise)
    except ProcessUnavailable:
        raise  # if it died the state is fault by now; if it is late it may still be moving
    except Refused:
        robot.event(Event.NOT_STARTED)  # a fault that came first stays
        raise
    robot.event(Event.RELEASED)
    return reply
