"""The one list of operations. The agent's API, its client, the command line and the commands of
the control process are made from it: one more operation is one more row, and what does it.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.errors import UnknownOperation
from agent.operations.arguments import (
    Arguments,
    Calibrate,
    Estop,
    LoadPolicy,
    Park,
    PolicyUse,
    RecordFinish,
    RecordStart,
    RolloutArm,
    RolloutBeat,
    RolloutStart,
    TrainLocal,
)
from agent.operations.operation import Operation
from agent.operations.sequences import (
    BUS_S,
    PARK_S,
    QUICK_S,
    RAMP_S,
    arm_rollout,
    ask,
    begin_teleop,
    end_teleop,
    park,
    policy_list,
    policy_roll_back,
    policy_use,
    start_rollout,
    train_local,
    within_teleop,
)
from agent.operations.state_machine import Event
from agent.quick_stop import STOPPED

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "calibrate",
        "One step of calibrating one arm; the person moves it between the steps.",
        BUS_S,
        ask,
        arguments=Calibrate,
        event=Event.CALIBRATE,
    ),
    Operation(
        "teleop_start",
        "The leader takes command; returns when the follower follows it.",
        RAMP_S,
        begin_teleop,
        event=Event.TELEOP_START,
    ),
    Operation(
        "teleop_stop",
        "Park, release, go idle.",
        PARK_S,
        end_teleop,
        event=Event.TELEOP_STOP,
        as_command="park",
        sent=Park,
    ),
    Operation(
        "record_start",
        "Begin an episode, starting teleoperation first if the arm is idle.",
        RAMP_S,
        within_teleop,
        arguments=RecordStart,
        event=Event.TELEOP_START,
    ),
    Operation(
        "record_finish",
        "Save the episode: it is on the disk when this returns.",
        RAMP_S,
        ask,
        arguments=RecordFinish,
    ),
    Operation("record_discard", "Throw the running episode away.", QUICK_S, ask),
    Operation(
        "rollout_arm",
        "Load a policy and warm it up; returns when it is ready.",
        BUS_S,  # beside the time that the configuration gives a policy to load
        arm_rollout,
        arguments=RolloutArm,
        event=Event.ROLLOUT_ARM,
        sent=LoadPolicy,
    ),
    Operation(
        "rollout_beat",
        "The operator is there still; without it for a second the arm holds, then parks.",
        QUICK_S,
        ask,
        arguments=RolloutBeat,
        needs_rollout=True,
        alone=False,
    ),
    Operation(
        "rollout_start",
        "Run one episode in the background; returns when the policy has taken command.",
        RAMP_S,
        start_rollout,
        arguments=RolloutStart,
        needs_rollout=True,
    ),
    Operation(
        "rollout_takeover",
        "The leader takes the arm from the policy: it holds until the leader is near.",
        QUICK_S,
        ask,
        needs_rollout=True,
        said=lambda _: "the arm is held; it follows the leader once that is near its pose",
    ),
    Operation(
        "rollout_handback",
        "The policy has the arm again.",
        QUICK_S,
        ask,
        needs_rollout=True,
        said=lambda _: "the policy drives again",
    ),
    Operation(
        "rollout_success",
        "End the running episode: the task is done.",
        PARK_S,
        ask,
        needs_rollout=True,
        said=lambda _: "success; parked",
    ),
    Operation(
        "rollout_failure",
        "End the running episode: the task was not done.",
        PARK_S,
        ask,
        needs_rollout=True,
        said=lambda _: "failure; parked",
    ),
    Operation(
        "rollout_stop",
        "End the running episode; nobody says whether the task was done.",
        PARK_S,
        ask,
        needs_rollout=True,
        said=lambda _: "stopped; parked",
    ),
    Operation(
        "rollout_disarm",
        "End the episode if one runs, stop inference, go idle.",
        PARK_S,
        ask,
        needs_rollout=True,
        then=Event.ROLLOUT_DISARM,
    ),
    Operation(
        "policy_list",
        "What policies there are, where each is on its way, and which one drives.",
        QUICK_S,
        policy_list,
        commands_control=False,
        alone=False,
    ),
    Operation(
        "policy_use",
        "Make an installed policy active from the next arming on, and pin it.",
        QUICK_S,
        policy_use,
        arguments=PolicyUse,
        commands_control=False,
    ),
    Operation(
        "policy_rollback",
        "Take away the version on trial, else go back from the active one to the one before.",
        QUICK_S,
        policy_roll_back,
        commands_control=False,
    ),
    Operation(
        "train_local",
        "Order a policy of this robot's own episodes; the trainer works on it whenever idle.",
        QUICK_S,
        train_local,
        arguments=TrainLocal,
        commands_control=False,
    ),
    Operation(
        "park",
        "Park the arm and take its torque away, from wherever it is.",
        PARK_S,
        park,
        event=Event.PARK,
        sent=Park,
        said=lambda _: "parked, torque off",
    ),
    Operation(
        "estop",
        "Stop now and hold.",
        QUICK_S,
        ask,
        arguments=Estop,
        event=Event.ESTOP,
        alone=False,
        said=lambda _: STOPPED,
    ),
    Operation(
        "reset",
        "Leave fault or emergency stop; parks an arm that is energised.",
        PARK_S,
        ask,
        then=Event.RESET,
        said=lambda reply: "parked, torque off" if reply.get("parked") else "ready",
    ),
)


def operation_of(verb: str, operations: Iterable[Operation] = OPERATIONS) -> Operation:
    """The row of a verb. Raises UnknownOperation, which names those that there are."""
    known = {operation.verb: operation for operation in operations}
    if verb not in known:
        raise UnknownOperation(
            f"the agent has no operation {verb!r}; there are: {', '.join(known)}"
        )
    return known[verb]


def control_commands(operations: Iterable[Operation] = OPERATIONS) -> dict[str, type[Arguments]]:
    """What the control process must be able to do, and what comes with each command."""
    return {row.command: row.sent or row.arguments for row in operations if row.commands_control}
