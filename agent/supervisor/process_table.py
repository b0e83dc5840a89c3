"""The process table: what runs beside the supervisor, when, and what happens otherwise."""

from __future__ import annotations

import signal

from agent.child.process_row import ProcessRow
from agent.config import AgentConfig
from agent.operations.state_machine import Permissions
from host.restarts import Backoff

# An arm may hold torque with nobody at its bus: control is started again at once. What dies for the
# fourth time in a row, each time younger than its slowest start takes, is not mended by haste: from
# then on a pause leaves the processor to those who stop it or ask it why.
CONTROL_BACKOFF = Backoff(at_once=3, first_s=0.5, last_s=0.5, steady_s=10.0)


def always(permissions: Permissions) -> bool:
    """Whatever the state."""
    return permissions.always


def idle(permissions: Permissions) -> bool:
    """Nobody wants the robot."""
    return permissions.idle


def rollout_armed(permissions: Permissions) -> bool:
    """From arming a policy to disarming it."""
    return permissions.rollout_armed


def shadowing(permissions: Permissions) -> bool:
    """Somebody commands the arm while a policy is in its shadow."""
    return permissions.shadow


def never(permissions: Permissions) -> bool:
    """Not configured."""
    return False


def process_table(config: AgentConfig) -> tuple[ProcessRow, ...]:
    """The rows for this configuration, in the order in which they are frozen and started."""
    return (
        ProcessRow(
            name="trainer",
            module="agent.training.trainer",
            runs=idle if config.training.enabled else never,
            otherwise="freeze",
            nice=config.training.nice,
            silence_s=600.0,  # exporting the baseline to ONNX takes minutes on a small host
            gives_memory_back=True,
        ),
        ProcessRow(
            name="ingest",
            module="agent.dataset.ingest",
            runs=idle,
            otherwise="freeze",
            nice=5,
            silence_s=300.0,  # one long episode's video
        ),
        ProcessRow(
            name="tuner",
            module="agent.training.tuner",
            runs=idle if config.training.enabled else never,
            otherwise="freeze",
            nice=config.training.nice,
        ),
        ProcessRow(
            name="control",
            module="agent.control.process",
            runs=always,
            silence_s=5.0,
            stop_grace_s=15.0,  # it parks the arm first
            # If the supervisor dies the arm must still be parked: a word, not an axe.
            parent_death_signal=signal.SIGTERM,
            backoff=CONTROL_BACKOFF,
        ),
        ProcessRow(
            name="inference",
            module="agent.inference.process",
            runs=rollout_armed,
            silence_s=30.0,
            stop_grace_s=1.0,
        ),
        ProcessRow(
            name="shadow",
            module="agent.inference.shadow",
            runs=shadowing,
            nice=5,  # the policy that drives comes first
            silence_s=30.0,
            stop_grace_s=1.0,
        ),
        ProcessRow(
            name="federation",
            module="agent.federation.process",
            runs=always if config.federation is not None else never,
            nice=5,
            silence_s=120.0,
            stop_grace_s=6.0,  # it ends its SuperNode and says goodbye to the broker
            parent_death_signal=signal.SIGTERM,
        ),
    )
