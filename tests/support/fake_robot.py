"""A robot at the Protocol's seam: the state machine is real, the control process a script."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from agent.config import AgentConfig, load_config
from agent.errors import Refused
from agent.operations.operation import Operation, PolicyToDrive
from agent.operations.state_machine import Event, Machine, State
from agent.operations.table import OPERATIONS
from agent.policies.errors import NoSuchPolicy
from agent.supervisor.api import bind_socket, build_app, make_server
from protocol.waiting import Reason, waiting

Script = Callable[[], Awaitable[dict[str, Any]]]

# A right request for every operation.
FIELDS: dict[str, dict[str, Any]] = {
    "calibrate": {"arm": "follower", "step": "homing"},
    "record_start": {"task": "lift"},
    "rollout_arm": {"policy": "7"},
    "rollout_beat": {"lease": "a1"},
    "rollout_start": {"seconds": 2.0},
    "policy_use": {"policy": "7"},
}


def small_config(folder: Path) -> Path:
    """An agent.toml of an arm that is not there."""
    path = folder / "agent.toml"
    path.write_text(
        '[robot]\nport = "/dev/nothing-here"\n[training]\nenabled = false\n'
        '[paths]\nstate_dir = "s"\n'
    )
    return path


class FakePolicies:
    """One policy, 7; notes what it is told of drives, and its words."""

    def __init__(self, told: list[str]) -> None:
        self._told = told
        self.limits = 1.0
        self.said = {
            "policy_list": self.table(),
            "policy_use": self.table(),
            "policy_rollback": {"rolled_back_to": "6", **self.table()},
        }

    def to_drive(self, policy: str) -> PolicyToDrive:
        if policy != "7":
            raise NoSuchPolicy(f"no policy {policy!r}")
        return PolicyToDrive(Path("policies") / policy, self.limits)

    def armed(self, policy: PolicyToDrive) -> None:
        self._told.append(f"armed {policy.folder.name}")

    def drive_begins(self) -> None:
        self._told.append("drive_begins")

    def drive_called_off(self) -> None:
        self._told.append("drive_called_off")

    def table(self) -> dict[str, Any]:
        row = {"version": "7", "state": "active", "why": "driven well", "role": "active, pinned"}
        return {"active": "7", "previous": None, "pinned": True, "policies": [row]}

    def use(self, name: str) -> dict[str, Any]:
        self._told.append(f"use {name}")
        return self.table()

    def roll_back(self) -> dict[str, Any]:
        self._told.append("roll_back")
        return self.said["policy_rollback"]


class FakeRobot:
    """Notes what it is told, in order; `scripts` says what a command comes to."""

    def __init__(self, config: AgentConfig, state: State = State.IDLE) -> None:
        self.config = config
        self.machine = Machine()
        self.machine.state = state
        self.told: list[str] = []
        self.timeouts_s: dict[str, float] = {}
        self.faults: list[str] = []
        self.scripts: dict[str, Script] = {}
        self.policies = FakePolicies(self.told)
        # What the trainer says of the operator's order, one status after the other.
        self.outcomes: list[dict[str, Any] | None] = []

    @property
    def state(self) -> State:
        return self.machine.state

    def event(self, event: Event) -> None:
        self.machine.handle(event)
        self.told.append(event.value)

    async def command(self, name: str, timeout_s: float, **arguments: Any) -> dict[str, Any]:
        fields = ",".join(f"{key}={value}" for key, value in arguments.items())
        self.told.append(f"control:{name}({fields})")
        self.timeouts_s[name] = timeout_s
        await asyncio.sleep(0)
        return await self.scripts[name]() if name in self.scripts else {}

    def order_local_training(self, steps: int | None, *, again: bool) -> dict[str, Any]:
        self.told.append(f"train_local({steps},{again})")
        return {"order_id": "0" * 32, "steps": steps or 1200}

    def fault(self, reason: str) -> None:
        self.faults.append(reason)
        self.machine.handle(Event.FAULT)

    def status(self) -> dict[str, Any]:
        return {
            "ok": True,
            "robot_id": "arm",
            "pid": 1,
            "state": self.state.value,
            "ready": True,
            "faults": self.faults,
            "recording": {"active": False, "episodes": 0, "frames": 0},
            "rate_hz": None,
            "rollout": {
                "running": False,
                "outcome": "ran its time",
                "policy": "7",
                "ticks": 60,
                "holds": 0,
                "missed_deadlines": 1,
            },
            "policy": 7,
            "training_allowed": self.machine.permissions.idle,
            "waiting": [
                {"about": "training", **waiting(Reason.STEPS, step=120, steps=400).shown()}
            ],
            "trainer": {"local": self._local()},
            "processes": {},
        }

    def _local(self) -> dict[str, Any] | None:
        said = self.outcomes.pop(0) if self.outcomes else None
        return None if said is None else {
            "order_id": "0" * 32, "step": 400, "steps": 400, "loss": None,
            "held_out_mae": 0.52, "refusal": None, **said,
        }  # fmt: skip

    def refuse(self, name: str, error: Exception | None = None) -> None:
        """The control process answers this command with an error."""

        async def script() -> dict[str, Any]:
            raise error or Refused("control says no")

        self.scripts[name] = script

    def answer(self, name: str, **reply: Any) -> None:
        """The control process answers this command with these fields."""

        async def script() -> dict[str, Any]:
            return reply

        self.scripts[name] = script


@contextlib.contextmanager
def served(
    folder: Path, operations: tuple[Operation, ...] = OPERATIONS
) -> Iterator[tuple[FakeRobot, Path]]:
    """A fake robot behind the real API, at the socket that `small_config` names; and that file."""
    path = small_config(folder)
    robot = FakeRobot(load_config(path))
    server = make_server(build_app(robot, operations))
    listener = bind_socket(robot.config.agent_socket)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        yield robot, path
    finally:
        server.should_exit = True
        thread.join(10.0)
        listener.close()
        assert not thread.is_alive()
