"""The federation process: `python -m agent.federation.process --config FILE`.

One thread looks after everything: messages of the coordinator, the supervisor's link, the SuperNode
and the status. It sleeps until one of them has something to say. No torch in here. Whatever is
wrong outside (no broker, a wrong CA, no SuperLink) is one line in the status; the robot works on.
"""

from __future__ import annotations

import logging
import shutil
import signal
import socket
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

from agent.child.entry import run_as_child
from agent.child.link import ChildLink
from agent.config import AgentConfig
from agent.errors import ConfigError
from agent.federation.control_plane import AgentLink
from agent.federation.errors import SuperNodeFailed
from agent.federation.memory import FederationMemory
from agent.federation.participation import Readiness, decide
from agent.federation.reasons import Membership, fleet_waits
from agent.federation.supernode import SuperNode, SuperNodeStatus
from agent.federation.training_view import TrainingView
from agent.federation.wake import Wake
from agent.policies.errors import StoreError
from agent.policies.release_book import ReleaseBook
from agent.policies.release_states import ReleaseState
from agent.policies.store import PolicyStore
from agent.policies.updater import PolicyUpdater
from agent.training.exchange import TrainingExchange
from agent.training.reasons import training_wait
from host.files import FileStamp
from protocol.bundle import Bundle, load_bundle
from protocol.errors import BadBundle
from protocol.messages import (
    MAX_REPORTED_RELEASES,
    AgentStatus,
    Answer,
    Command,
    Envelope,
    Features,
    ReleaseNotice,
    ReleaseReport,
    Window,
)
from protocol.waiting import Reason, Waiting, waiting

log = logging.getLogger(__name__)

STATUS_PERIOD_S = 2.0
HEARTBEAT_PERIOD_S = 1.0
# How soon a change in the trainer's folder is seen.
LOOK_PERIOD_S = 0.5
SUPERNODE_PERIOD_S = 1.0
PROBE_S = 1.0
BUNDLE_RETRY_S = 5.0

# What the coordinator hears of, once each; the way from episode to episode is not news.
TOLD = frozenset(
    {
        ReleaseState.SHADOW,
        ReleaseState.CANARY,
        ReleaseState.ACTIVE,
        ReleaseState.SET_ASIDE,
        ReleaseState.ROLLED_BACK,
        ReleaseState.REFUSED,
    }
)


class Federation:
    """One robot's membership. All methods run on one thread, but `build_status`."""

    def __init__(
        self,
        config: AgentConfig,
        config_path: Path,
        bundle: Bundle,
        link: ChildLink,
        wake: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        assert config.federation is not None
        self._config = config
        self._bundle = bundle
        self._link = link
        self._clock = clock
        self._folder = config.state_dir / "federation"
        self._memory_path = self._folder / "memory.json"
        self._memory = FederationMemory.load(self._memory_path)
        exchange = TrainingExchange(config.training_dir)
        self._view = TrainingView(exchange, config.dataset_dir)
        self._store = PolicyStore(config.policies_dir)
        self._robot: dict[str, Any] = {}
        self._versions = {"armada": version("armada"), "flwr": version("flwr")}
        self._mqtt = AgentLink(bundle, self.build_status, wake)
        self._node = SuperNode(bundle, self._folder / "flower", exchange.folder)
        self._node_status = SuperNodeStatus("stopped")
        self._node_started = False
        self._releases = PolicyUpdater(
            bundle, self._store, self._folder / "downloads", config.trial, config_path, wake
        )
        self._book = ReleaseBook(active=None, previous=None)
        self._book_stamp: FileStamp | None = None
        self._answered: tuple[str, str | None] = ("", None)
        self._window: dict[str, Any] | None = None
        self._status_due_s = 0.0
        self._node_due_s = 0.0
        self._last_said: dict[str, Any] = {}

    def start(self) -> None:
        """Start the connection, the SuperNode and the fetcher; none of them is waited for."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._store.sweep()
        self._mqtt.start()
        self._releases.start()

    def stop(self) -> None:
        """Leave: the will says that this robot is away."""
        self._releases.stop()
        self._mqtt.stop()
        self._node.stop()

    def on_supervisor(self, message: dict[str, Any]) -> None:
        """A message from the supervisor."""
        if message["kind"] == "state":
            self._robot = message
            self._releases.set_idle(bool(message.get("training_allowed", True)))

    def step(self) -> None:
        """Look after everything once."""
        while (message := self._mqtt.take()) is not None:
            match message:
                case Window():
                    self._on_window(message)
                case ReleaseNotice():
                    self._on_release(message)
                case Command():
                    self._on_command(message)
        self._look_at_releases()
        now_s = self._clock()
        if now_s >= self._node_due_s:
            self._node_due_s = now_s + SUPERNODE_PERIOD_S
            self._node_status = self._look_after_node()
        self._say_status(now_s)

    def _look_at_releases(self) -> None:
        """Tell of each release that came to a new state, whoever brought it there."""
        stamp = self._store.stamp()
        if stamp == self._book_stamp:
            return
        try:
            self._book, self._book_stamp = self._store.book(), stamp
        except (StoreError, OSError) as error:
            log.warning("%s", error)
            return
        told = {d: s for d, s in self._memory.told.items() if d in self._book.releases}
        news = [
            (digest, record)
            for digest, record in self._book.releases.items()
            if record.state in TOLD and told.get(digest) is not record.state
        ]
        if not news:
            return
        self._memory.told = told | {digest: record.state for digest, record in news}
        self._memory.save(self._memory_path)
        for _, record in news:
            self._tell(f"release_{record.state.value}", record.reason, record.version)

    def _look_after_node(self) -> SuperNodeStatus:
        """Start the SuperNode once its SuperLink listens: in vain it would cost seconds of CPU."""
        try:
            if not self._node_started:
                endpoint = self._bundle.info.superlink
                address = (endpoint.host, endpoint.port)
                socket.create_connection(address, timeout=PROBE_S).close()
                self._node.start()
                self._node_started = True
            return self._node.poll()
        except SuperNodeFailed as error:
            return SuperNodeStatus("failed", None, str(error))
        except OSError:
            where = self._bundle.info.superlink.address
            return SuperNodeStatus("failed", None, f"no SuperLink answers at {where}; trying again")

    # --- what the coordinator says ---

    def _on_window(self, window: Window) -> None:
        self._window = {
            "window_id": window.window_id,
            "round": window.round,
            "closed": window.closed,
        }
        decision = decide(window, self._readiness(), self._mqtt.clock.now())
        if decision is None or self._answered[0] == window.window_id:
            return
        sent = self._mqtt.send_answer(
            lambda envelope: Answer(
                envelope=envelope,
                agent_id=self._bundle.agent_id,
                window_id=window.window_id,
                decision=decision.decision,
                reason=decision.reason,
                base_digest=decision.base_digest,
                steps=decision.steps,
            )
        )
        if sent:
            self._answered = (window.window_id, decision.reason)
            log.info(
                "window %s, round %d: %s %s",
                window.window_id[:8], window.round, decision.decision, decision.reason or "",
            )  # fmt: skip

    def _readiness(self) -> Readiness:
        assert self._config.federation is not None
        return Readiness(
            base=self._view.base,
            contribution=self._view.contribution,
            merged_base=self._view.merged_base,
            local_work=self._config.federation.local_work,
            paused=self._memory.paused,
            in_use=not self._robot.get("training_allowed", True),
            data_plane=self._node_status.state == "connected",
        )

    def _on_release(self, notice: ReleaseNotice) -> None:
        if notice.applies_to(self._bundle.agent_id):
            self._releases.offer(notice)

    def _on_command(self, command: Command) -> None:
        match command.command:
            case "pause" | "resume":
                self._memory.paused = command.command == "pause"
                self._memory.save(self._memory_path)
                self._tell("paused" if self._memory.paused else "resumed")
            case "roll_back":
                try:
                    name = self._store.roll_back("the coordinator's word", by_operator=False)
                except (StoreError, OSError) as error:
                    self._tell("roll_back_failed", str(error))
                else:
                    self._tell("rolled_back", f"policy {name} is active again")
            case "collect":
                self._tell("collected", f"supernode {self._node_status.state}")
        self._status_due_s = 0.0

    # --- what this robot says ---

    def _tell(self, name: str, detail: str = "", release: int | None = None) -> None:
        self._mqtt.add_event(name, detail, release)
        self._link.send("event", name=name, detail=detail, version=release)
        self._status_due_s = 0.0

    def _say_status(self, now_s: float) -> None:
        said = self._facts()
        again = self._mqtt.take_reconnected()
        if said == self._last_said and now_s < self._status_due_s and not again:
            return
        self._last_said = said
        self._status_due_s = now_s + STATUS_PERIOD_S
        self._mqtt.send_status()
        self._mqtt.flush_events()
        self._link.send("status", **self.local_status())

    def local_status(self) -> dict[str, Any]:
        """What GET /v1/status of this agent shows under `federation`."""
        training = self._view.report()
        return {
            "agent_id": self._bundle.agent_id,
            "fleet": self._bundle.info.fleet,
            "connected": self._mqtt.connected,
            "error": self._mqtt.error or self._node_status.error or self._releases.error,
            "paused": self._memory.paused,
            "supernode": self._node_status.state,
            "base_round": training.base_round,
            "steps_since_base": training.steps_since_base,
            "window": self._window,
            "answer": self._answered[1],
            "release": {
                "version": self._releases.version,
                "state": self._releases.state,
                "error": self._releases.error,
                "fetched_bytes": self._releases.traffic.fetched,
                "found_bytes": self._releases.traffic.found,
            },
            "waiting": [reason.model_dump(mode="json") for reason in self._waiting()],
            "dropped": self._mqtt.dropped,
        }

    def _waiting(self) -> list[Waiting]:
        window = self._window
        is_open = window is not None and not window["closed"]
        return fleet_waits(
            Membership(
                connected=self._mqtt.connected,
                broker_error=self._mqtt.error,
                supernode=self._node_status.state,
                supernode_error=self._node_status.error,
                paused=self._memory.paused,
                window_round=window["round"] if is_open and window is not None else None,
                declined=self._answered[1],
                release=self._releases.version,
                release_state=self._releases.state,
            )
        )

    def _training_wait(self) -> Waiting | None:
        return training_wait(
            enabled=self._config.training.enabled,
            allowed=bool(self._robot.get("training_allowed", True)),
            state=str(self._robot.get("state", "unknown")),
            process=None,
            said=self._view.waiting,
        )

    def _facts(self) -> dict[str, Any]:
        """Everything in the status that changes seldom, for telling a change from a repetition."""
        report, training = self._view.report(), self._training_wait()
        return {
            "state": self._robot.get("state"),
            "faults": self._robot.get("faults"),
            "policy": self._policy(),
            "releases": self._release_reports(),
            "episodes": self._view.episodes,
            "sketch": self._view.has_sketch,
            "base": report.base_digest,
            # The first step matters to the coordinator at once, the following ones in their time.
            "gained": report.steps_since_base > 0,
            "held_out": tuple(self._view.held_out()),
            "paused": self._memory.paused,
            "connected": self._mqtt.connected,
            "error": self._mqtt.error,
            "supernode": self._node_status.state,
            "release": (self._releases.version, self._releases.state),
            "work": self._work_key(),
            "waiting": None if training is None else training.reason,
        }

    def _work_key(self) -> tuple[str, int] | None:
        work = self._view.contribution
        return None if work is None else (work.base_digest, work.sequence)

    def _policy(self) -> int | None:
        name = self._book.active
        return int(name) if name is not None and name.isdigit() else None

    def _release_reports(self) -> tuple[ReleaseReport, ...]:
        rows = sorted(self._book.releases.items(), key=lambda row: row[1].version)
        return tuple(
            ReleaseReport(
                version=record.version,
                manifest_digest=digest,
                state=record.state.value,
                reason=record.reason,
            )
            for digest, record in rows[-MAX_REPORTED_RELEASES:]
        )

    def build_status(self, envelope: Envelope, online: bool) -> AgentStatus:
        """The MQTT status, or the will; also called on the connection's thread."""
        config = self._config
        training = self._training_wait()
        faults = tuple(str(line)[:300] for line in self._robot.get("faults", ())[:16])
        return AgentStatus(
            envelope=envelope,
            agent_id=self._bundle.agent_id,
            online=online,
            state=str(self._robot.get("state", "unknown"))[:32] if online else "offline",
            paused=self._memory.paused,
            data_plane=online and self._node_status.state == "connected",
            versions=self._versions,
            policy=self._policy(),
            releases=self._release_reports(),
            episodes=self._view.episodes,
            frames=self._view.frames,
            has_sketch=self._view.has_sketch,
            features=Features(
                state_names=config.state_names,
                action_names=config.action_names,
                environment_names=config.environment_names,
                fps=config.control.fps,
            ),
            cameras=config.camera_shapes,
            training=self._view.report(),
            held_out=self._view.held_out(),
            waiting=() if not online or training is None else (training,),
            disk_free_mb=shutil.disk_usage(config.state_dir).free // 1_000_000,
            faults=faults,
            dropped=self._mqtt.dropped if online else {},
        )


class _Stop:
    """Set by a signal."""

    def __init__(self, wake: Wake) -> None:
        self.asked = False
        self._wake = wake
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True
        self._wake()


def serve(config: AgentConfig, config_path: Path, link: ChildLink) -> None:
    """Until a signal. Raises LinkClosed at the end of the supervisor, ConfigError."""
    if config.federation is None:
        raise ConfigError(f"{config_path} has no [federation] table")
    wake = Wake()
    stop = _Stop(wake)
    federation: Federation | None = None
    said_error: str | None = None
    retry_s = beat_s = 0.0
    try:
        while not stop.asked:
            now_s = time.monotonic()
            if federation is None and now_s >= retry_s:
                retry_s = now_s + BUNDLE_RETRY_S
                try:
                    bundle = load_bundle(config.federation.bundle)
                except (BadBundle, OSError) as error:
                    if str(error) != said_error:
                        said_error = str(error)
                        log.warning("%s", error)
                    lacking = waiting(Reason.NO_BUNDLE, why=str(error))
                    said = [lacking.model_dump(mode="json")]
                    link.send("status", connected=False, error=str(error), waiting=said)
                else:
                    federation = Federation(config, config_path, bundle, link, wake)
                    federation.start()
            if now_s >= beat_s:
                beat_s = now_s + HEARTBEAT_PERIOD_S
                link.heartbeat()
            while (message := link.receive()) is not None:
                if federation is not None:
                    federation.on_supervisor(message)
            if federation is not None:
                federation.step()
            wake.wait(link.fileno(), LOOK_PERIOD_S)
    finally:
        if federation is not None:
            federation.stop()


if __name__ == "__main__":
    run_as_child(serve)
