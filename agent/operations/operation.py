"""What one row of the operations table is, and what it works on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from agent.config import AgentConfig
from agent.operations.arguments import Arguments, Nothing
from agent.operations.state_machine import Event, State

Reply = dict[str, Any]


RAN_ITS_TIME = "ran its time"  # the outcome of an episode that nothing cut short


@dataclass(frozen=True)
class PolicyToDrive:
    """A policy's folder, the share of the arm's limits that it gets, and which release it is."""

    folder: Path
    limits: float = 1.0
    digest: str | None = None  # of its manifest; None for what is no release


class Policies(Protocol):
    """The policies on this robot, and what is known of them; `agent.policies.trials`."""

    def to_drive(self, policy: str) -> PolicyToDrive:
        """What a name means for the next episode. Raises AgentError with one line."""

    def armed(self, policy: PolicyToDrive) -> None:
        """The control process has loaded it, or may have."""

    def drive_begins(self) -> None:
        """Durable before the policy that is armed gets the arm. Raises AgentError, OSError."""

    def drive_called_off(self) -> None:
        """It did not get the arm."""

    def use(self, name: str) -> Reply:
        """Make it active and pin it. Raises AgentError."""

    def roll_back(self) -> Reply:
        """Go back one step. Raises AgentError."""

    def table(self) -> Reply:
        """What there is. Raises AgentError."""


class Robot(Protocol):
    """The state and the control process of one robot; the supervisor, or a test's stand-in."""

    @property
    def config(self) -> AgentConfig:
        """What the operator has set."""

    @property
    def state(self) -> State:
        """The present state."""

    def event(self, event: Event) -> None:
        """Ask the state machine; leaving idle freezes the trainer at once. Raises Refused."""

    async def command(self, name: str, timeout_s: float, **arguments: Any) -> Reply:
        """Have the control process do it. Raises Refused, ProcessUnavailable."""

    @property
    def policies(self) -> Policies:
        """What may drive the arm."""

    def order_local_training(self, steps: int | None, *, again: bool) -> Reply:
        """Have the trainer make a policy of this robot alone. Raises Refused."""

    def fault(self, reason: str) -> None:
        """Name a fault in the status, and go to the state of that name."""


@dataclass(frozen=True)
class Operation:
    """One thing that an operator may ask for.

    Route (`path`), client method (`verb`), command of the control process (`command`) and, with
    `said`, a command of the command line come from it. `sequence` is what is done; with `ask`,
    the other columns say all of it.
    """

    verb: str
    help: str
    timeout_s: float  # of the control process's answer
    sequence: Callable[[Operation, Robot, Any], Awaitable[Reply]]
    arguments: type[Arguments] = Nothing
    needs_rollout: bool = False  # refused where none is armed
    event: Event | None = None  # asked of the state machine before the command
    then: Event | None = None  # after it, if the state is the same still
    as_command: str | None = None  # of the control process, if it is not called as the verb
    sent: type[Arguments] | None = None  # what goes there, if not `arguments`
    commands_control: bool = True  # the control process has a part in it
    alone: bool = True  # waits until another operation is over
    said: Callable[[Reply], str] | None = None  # what the command line prints of the reply

    @property
    def path(self) -> str:
        """`teleop_start` is POST /v1/teleop/start."""
        return "/v1/" + self.verb.replace("_", "/", 1)

    @property
    def command(self) -> str:
        """The control process's name for it: a method of its `Commands`."""
        return self.as_command or self.verb
