"""The supervisor: owns the state, the process table and the API; touches no hardware.

One asyncio loop, one thread. What a state permits is applied in one place, `_apply`, and the very
first thing it does on leaving idle is to freeze the trainer and the ingest.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.child.child import Child
from agent.child.process_row import ProcessRow
from agent.config import AgentConfig
from agent.errors import LinkClosed, ProcessUnavailable, Refused
from agent.operations.state_machine import Event, Machine, State
from agent.policies.errors import StoreDamaged, StoreError
from agent.policies.store import PolicyStore
from agent.policies.trials import PolicyTrials
from agent.recording.journal import FINISHED
from agent.supervisor.process_table import process_table
from agent.training.exchange import LocalOrder, TrainingExchange
from agent.training.reasons import training_wait
from host.files import FileStamp
from host.memory import MemoryReserve, available_bytes
from host.notify import Notifier
from policy.errors import BadSpec
from protocol.waiting import Reason, Waiting, waiting

log = logging.getLogger(__name__)

TICK_S = 0.05
STATE_PERIOD_S = 1.0
MEMORY_PERIOD_S = 0.5
EVENTS_KEPT = 200
EVENTS_SHOWN = 20
STATUS_SCHEMA = 1


class Supervisor:
    """Runs the children; `agent.operations` turns API calls into its methods."""

    def __init__(
        self,
        config: AgentConfig,
        config_path: Path,
        rows: tuple[ProcessRow, ...] | None = None,
        notifier: Notifier | None = None,
        clock: Callable[[], float] = time.monotonic,
        available: Callable[[], int | None] = available_bytes,
    ) -> None:
        self.config = config
        self._machine = Machine()
        self.session = str(uuid.uuid4())
        self._store = PolicyStore(config.policies_dir)
        self.policies = PolicyTrials(self._store, config.trial)
        self._book_stamp: FileStamp | None = None
        self._shadow: Path | None = None
        self._shadow_report = 0
        self._clock = clock
        self._available = available  # bytes of memory that the host has left
        self._reserve = MemoryReserve(config.training.give_back_below_mb << 20)
        self._memory_due_s = 0.0
        self._started_s = clock()
        self._notifier = notifier or Notifier(None, None)
        self._statuses: dict[str, dict[str, Any]] = {}
        self._events: deque[dict[str, Any]] = deque(maxlen=EVENTS_KEPT)
        self._fault: str | None = None
        self._pending: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._next_command = 0
        self._last_broadcast: dict[str, Any] = {}
        self._broadcast_due_s = 0.0
        self._watchdog_due_s = 0.0
        self._freeze_ms: float | None = None
        self._stopping = asyncio.Event()
        self._children: dict[str, Child] = {}
        for row in rows if rows is not None else process_table(config):
            self._children[row.name] = Child(
                row,
                config_path,
                config.log_dir,
                clock,
                on_open=lambda fd, name=row.name: self._watch(fd, name),  # type: ignore[misc]
                on_close=self._unwatch,
            )

    # What the API needs.

    @property
    def state(self) -> State:
        """The present state."""
        return self._machine.state

    def event(self, event: Event) -> None:
        """Apply an operator's event, with all that follows from it at once. Raises Refused."""
        began_s = self._clock()
        if self._machine.handle(event):
            log.info("%s -> %s", event.value, self.state.value)
            if self.state not in (State.FAULT, State.ESTOP):
                self._fault = None
            self._apply(began_s)
            self._broadcast()

    async def command(self, name: str, timeout_s: float, **arguments: Any) -> dict[str, Any]:
        """Have the control process do something; returns its result.

        Raises Refused with its own line, ProcessUnavailable when it is not there, dies or is late.
        """
        control = self._children["control"]
        self._next_command += 1
        number = self._next_command
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._pending[number] = future
        try:
            control.send("command", id=number, name=name, arguments=arguments)
            reply = await asyncio.wait_for(future, timeout_s)
        except LinkClosed as error:
            raise ProcessUnavailable(
                f"the control process is not running ({control.last_exit or 'starting'}); "
                f"see {self.config.log_dir}/control.log"
            ) from error
        except TimeoutError as error:
            raise ProcessUnavailable(
                f"the control process did not answer {name} within {timeout_s:.0f} s"
            ) from error
        finally:
            self._pending.pop(number, None)
        if not reply.get("ok"):
            raise Refused(str(reply.get("error", f"{name} was refused")))
        return dict(reply.get("result") or {})

    def order_local_training(self, steps: int | None, *, again: bool) -> dict[str, Any]:
        """Give the trainer its order; one of as many steps that is unfinished goes on.

        Raises Refused.
        """
        training = self.config.training
        if not training.enabled:
            raise Refused(waiting(Reason.TRAINING_OFF).text)
        try:
            self.config.own_policy()
        except BadSpec as error:
            raise Refused(waiting(Reason.UNFIT_POLICY, why=str(error)).text) from error
        exchange = TrainingExchange(self.config.training_dir)
        wanted = steps or training.local_steps
        order = exchange.local_order()
        if order is None or again or steps not in (None, order.steps):
            order = LocalOrder(order_id=uuid.uuid4().hex, steps=wanted)
            exchange.order_local(order)
        return order.model_dump()

    def fault(self, reason: str) -> None:
        """Name a fault, the first alone, and go to the state of that name."""
        if self._fault is None:
            self._fault = reason
            log.error("fault: %s", reason)
        self.event(Event.FAULT)

    def request_stop(self) -> None:
        """Park the arm, end every process, then let `run` return."""
        self._stopping.set()

    def status(self) -> dict[str, Any]:
        """All there is to know; the body of GET /v1/status."""
        control = self._statuses.get("control", {})
        children = {name: status for name, status in self._statuses.items() if name != "control"}
        return {
            **children,
            "ok": True,
            "schema": STATUS_SCHEMA,
            "robot_id": self.config.robot.id,
            "session": self.session,
            "pid": os.getpid(),
            "uptime_s": round(self._clock() - self._started_s, 1),
            "state": self.state.value,
            "ready": bool(control.get("ready")) and self.state not in (State.FAULT, State.ESTOP),
            "faults": self._faults(),
            "training_allowed": self._machine.permissions.idle,
            "recording": control.get("recording", {"active": False, "episodes": 0, "frames": 0}),
            "rollout": control.get("rollout", {"running": False}),
            "rate_hz": control.get("rate_hz"),
            "missed_deadlines": control.get("missed_deadlines"),
            "policy": self._active_policy(),
            "features": {
                "state": list(self.config.state_names),
                "action": list(self.config.action_names),
                "environment": list(self.config.environment_names),
                "cameras": {k: list(v) for k, v in self.config.camera_shapes.items()},
                "fps": self.config.control.fps,
            },
            "control": {k: v for k, v in control.items() if k not in ("recording", "rollout")},
            "processes": {name: child.describe() for name, child in self._children.items()},
            "waiting": self._waiting(),
            "freeze_ms": self._freeze_ms,
            "events": list(self._events)[-EVENTS_SHOWN:],
        }

    # The loop.

    async def run(self) -> None:
        """Supervise until `request_stop`; then park, end all, return."""
        for folder in (self.config.journal_dir, self.config.run_dir, self.config.log_dir):
            folder.mkdir(parents=True, exist_ok=True)
        self._on_trial(self.policies.agent_started)
        self._apply(self._clock())
        self._notifier.ready(self.state.value)
        try:
            while not self._stopping.is_set():
                self._tick()
                await asyncio.sleep(TICK_S)
        finally:
            self._notifier.stopping()
            await self._end_all()

    def _tick(self) -> None:
        now_s = self._clock()
        for name, child in self._children.items():
            self._hear(name)
            if child.poll():
                self._died(name)
        if now_s >= self._memory_due_s:
            self._memory_due_s = now_s + MEMORY_PERIOD_S
            self._watch_memory()
        self._look_for_shadow()
        self._want()
        if now_s >= self._broadcast_due_s or self._state_message() != self._last_broadcast:
            self._broadcast()
        period_s = self._notifier.watchdog_period_s
        if period_s is not None and now_s >= self._watchdog_due_s:
            self._watchdog_due_s = now_s + period_s
            self._notifier.watchdog(self.state.value)

    def _apply(self, began_s: float) -> None:
        """Make the processes fit the state: freeze first, then start, let go on and stop."""
        permissions = self._machine.permissions
        froze = False
        for child in self._children.values():
            if not child.row.runs(permissions) and child.pid is not None and not child.frozen:
                child.freeze()
                froze = froze or child.frozen
        if froze:
            self._freeze_ms = round((self._clock() - began_s) * 1000.0, 3)
        self._want()

    def _want(self) -> None:
        if self._stopping.is_set():
            return  # the arm is released meanwhile: idle, but nobody is to start again
        permissions = self._machine.permissions
        for child in self._children.values():
            # What gave its memory back is started again when there is room for it.
            child.want(child.row.runs(permissions) and not child.wants_bytes)

    def _watch_memory(self) -> None:
        """A process that may not run keeps no memory that the host needs."""
        for child in self._children.values():
            if not child.row.gives_memory_back or not (child.frozen or child.wants_bytes):
                continue
            left_bytes = self._available()
            if child.frozen:
                if self._reserve.is_short(left_bytes):
                    child.give_memory_back(
                        f"ended for its memory: the host had {_mb(left_bytes)} MB left"
                    )
            elif self._reserve.has_room(left_bytes, child.wants_bytes):
                child.wants_bytes = 0
            else:
                wanted = _mb(child.wants_bytes + self._reserve.below_bytes)
                child.reason = f"waits for {wanted} MB of memory; {_mb(left_bytes)} MB are left"

    async def _end_all(self) -> None:
        """Control first gets its word to park; what trains ends meanwhile."""
        self._stopping.set()  # however the loop was left
        for child in self._children.values():
            child.stop()
        while any(child.pid is not None for child in self._children.values()):
            for name, child in self._children.items():
                self._hear(name)
                child.poll()
            await asyncio.sleep(TICK_S)

    # What children say.

    def _watch(self, fd: int, name: str) -> None:
        asyncio.get_running_loop().add_reader(fd, self._hear, name)

    def _unwatch(self, fd: int) -> None:
        asyncio.get_running_loop().remove_reader(fd)

    def _hear(self, name: str) -> None:
        child = self._children[name]
        for message in child.receive():
            kind = message.pop("kind")
            if kind == "status":
                before = self._statuses.get(name, {})
                self._statuses[name] = message
                if name == "control":
                    self._heard_rollout(before.get("rollout", {}), message.get("rollout", {}))
                    self._heard_shadow(message.get("shadow", {}))
            elif kind == "event":
                self._heard_event(name, message)
            elif kind == "reply" and name == "control":
                future = self._pending.get(message.get("id", -1))
                if future is not None and not future.done():
                    future.set_result(message)
            else:
                log.warning("%s sent a message of unknown kind %r", name, kind)

    def _heard_rollout(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        """The control process tells of every episode while it runs, and then how it ended."""
        if before.get("running") and not now.get("running"):
            self._on_trial(lambda: self.policies.drive_ended(now))

    def _heard_shadow(self, report: dict[str, Any]) -> None:
        """What a policy in its shadow came to; each report once."""
        number = int(report.get("number", 0))
        if number and number != self._shadow_report:
            seen = self.policies.shadow_seen
            self._on_trial(lambda: seen(str(report.get("policy")), report))
        self._shadow_report = number

    def _look_for_shadow(self) -> None:
        """Which policy is to predict beside whoever commands, when the book has changed."""
        stamp = self._store.stamp()
        if stamp == self._book_stamp:
            return
        self._book_stamp = stamp
        try:
            name = self.policies.shadow()
        except StoreError as error:
            log.warning("%s", error)
            name = None
        self._shadow = None if name is None else self._store.folder / name
        self._machine.shadow = name is not None

    def _on_trial(self, settle: Callable[[], None]) -> None:
        """A disk that does not do its part is told, and the trial's marker stays."""
        try:
            settle()
        except (StoreError, OSError) as error:
            log.error("the policy's trial: %s", error)  # noqa: TRY400

    def _heard_event(self, name: str, message: dict[str, Any]) -> None:
        self._events.append({"process": name, "unix_s": round(time.time(), 3), **message})
        what = message.get("name")
        if name != "control" or what not in ("fault", "released", "abandoned"):
            log.info("%s: %s", name, message)
            return
        if what == "fault":
            self.fault(str(message.get("reason", "unknown fault")))
        else:
            self.event(Event.ABANDONED if what == "abandoned" else Event.RELEASED)

    def _died(self, name: str) -> None:
        child = self._children[name]
        self._statuses.pop(name, None)
        if child.wants_bytes:
            self._events.append(
                {"process": name, "name": "gave_memory_back", "reason": child.reason}
            )
            return
        reason = f"the {name} process died ({child.last_exit})"
        self._events.append({"process": name, "name": "died", "reason": reason})
        if name != "control":
            return
        for future in self._pending.values():
            if not future.done():
                future.set_exception(ProcessUnavailable(reason))
        self._on_trial(lambda: self.policies.control_died(reason))
        self._shadow_report = 0
        if self.state is not State.IDLE and self._fault is None:
            self._fault = f"{reason}; it is started again; `armada reset` parks the arm"
        self.event(Event.CONTROL_DIED)

    # What children and operators are told.

    def _faults(self) -> list[str]:
        problems = self._statuses.get("control", {}).get("problems", [])
        lines = [self._fault] if self._fault is not None else []
        return lines + [line for line in problems if line not in lines]

    def _waiting(self) -> list[dict[str, Any]]:
        """For what this robot waits, each reason with what it is about."""
        trainer = self._statuses.get("trainer")
        row = self._children.get("trainer")
        process = "off" if row is None else row.reason or row.describe()["state"]
        said = None if trainer is None else trainer.get("waiting")
        training = training_wait(
            enabled=self.config.training.enabled,
            allowed=self._machine.permissions.idle,
            state=self.state.value,
            process="starting" if process == "running" and trainer is None else process,
            said=None if said is None else Waiting.model_validate(said),
        )
        found = [] if training is None else [{"about": "training", **training.shown()}]
        # Looked for, not heard of: ingest is silent for as long as it takes an episode.
        journals = sum(1 for _ in self.config.journal_dir.glob(f"*{FINISHED}"))
        if journals:
            behind = waiting(Reason.INGESTING, count=journals)
            found.append({"about": "dataset", **behind.shown()})
        fleet = self._statuses.get("federation", {}).get("waiting", ())
        return found + [{"about": "fleet", **Waiting.model_validate(w).shown()} for w in fleet]

    def _active_policy(self) -> int | str | None:
        """What drives the next episode: a release's number, or the name of another policy."""
        try:
            name = self._store.book().to_drive()
        except StoreDamaged:
            return None  # armada doctor and rollout/arm say what is wrong
        return int(name) if name is not None and name.isdigit() else name

    def _state_message(self) -> dict[str, Any]:
        recording = self._statuses.get("control", {}).get("recording", {})
        return {
            "state": self.state.value,
            "session": self.session,
            "recording": bool(recording.get("active")),
            "training_allowed": self._machine.permissions.idle,
            "episodes": int(recording.get("episodes", 0)),
            "frames": int(recording.get("frames", 0)),
            "policy": self._active_policy(),
            "shadow": str(self._shadow) if self._machine.permissions.shadow else None,
            "faults": self._faults(),
        }

    def _broadcast(self) -> None:
        message = self._state_message()
        self._last_broadcast = message
        self._broadcast_due_s = self._clock() + STATE_PERIOD_S
        for child in self._children.values():
            if child.pid is None:
                continue
            try:
                child.send("state", **message)
            except LinkClosed as error:
                log.debug("%s: %s", child.row.name, error)


def _mb(number: int | None) -> int:
    return (number or 0) >> 20
