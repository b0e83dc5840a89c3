"""The coordinator as a process: a thin shell round the campaign.

One thread owns the campaign. Messages, round results, job results and commands are posted to it as
calls; after each it ticks, saves what changed, and only then lets anything be heard outside: what
the fleet was told is always in the durable state.
"""

from __future__ import annotations

import json
import logging
import queue
import secrets
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

from coordinator.campaign.actions import (
    Action,
    Announce,
    BuildBase,
    ExportRelease,
    Note,
    RunRound,
)
from coordinator.campaign.campaign import Campaign
from coordinator.campaign.state import Base, CampaignState, Export, RoundSummary, WindowRecord
from coordinator.campaign.window import window_terms
from coordinator.config import CoordinatorConfig
from coordinator.errors import CoordinatorError
from coordinator.federation.campaign_rounds import make_order, read_result
from coordinator.federation.driver import Member, RoundDriver, RoundOrder
from coordinator.federation.errors import FederationError
from coordinator.federation.superlink import LOOPBACK, superlink_access
from coordinator.identity.enrolment import enrolled_agents
from coordinator.identity.layout import Layout
from coordinator.jobs.closed_loop import ClosedLoop
from coordinator.jobs.publishing import build_base, export_release
from coordinator.jobs.runner import JobRunner
from coordinator.releases import ReleaseRepository
from coordinator.server.audit import AuditLog, verify
from coordinator.server.control_plane import CLOSED_WINDOW_LIFETIME_S, FleetLink, FromAgent
from coordinator.server.https import HttpsServer, make_app
from coordinator.server.state_file import load_state, save_state
from coordinator.server.status import make_snapshot
from host.threads import guarded
from protocol.messages import (
    AgentEvent,
    AgentStatus,
    Answer,
    Command,
    CommandWord,
    Features,
    ReleaseNotice,
    Window,
)

log = logging.getLogger(__name__)

TICK_S = 0.2
ENROLMENT_POLL_S = 1.0
REGISTER_RETRY_S = 1.0
KEPT_BASES = 4
KEPT_EVENTS = 100


class Coordinator:
    """See the module. `run` blocks until `stopping` is set."""

    def __init__(self, folder: Path, config: CoordinatorConfig, wall: Callable[[], float]) -> None:
        """Raises StateError, AuditBroken, EnrolmentError, FederationError for a damaged folder."""
        self._config = config
        self._wall = wall
        self._layout = Layout(folder)
        self._state_folder = self._layout.state
        self._state_folder.mkdir(parents=True, exist_ok=True)
        state = load_state(self._state_folder)
        if state.fleet_secret is None:
            state.fleet_secret = secrets.token_hex(32)
        audit_path = self._state_folder / "audit.jsonl"
        self._audit = AuditLog(audit_path, wall)
        verify(audit_path, must_contain=state.audit_head)
        self._agents = enrolled_agents(self._layout)
        self._campaign = Campaign(config, state, frozenset(self._agents), lambda: uuid4().hex)
        self._campaign.data_plane = False
        self._repository = ReleaseRepository(self._layout.releases)
        self._repository.sweep(frozenset(release.version for release in state.releases))
        self._driver = RoundDriver(superlink_access(folder, config), self._state_folder / "rounds")
        self._jobs = JobRunner(self._state_folder / "jobs")
        self._closed_loop = ClosedLoop(
            self._jobs, config.release_gate, self._state_folder / "trials"
        )
        self._link = FleetLink(self._layout, config, self._on_message, self._on_connected, wall)
        self._calls: queue.SimpleQueue[Callable[[], list[Action]]] = queue.SimpleQueue()
        # One thread each: rounds and jobs are one after the other, and do not wait for each other.
        self._round_thread = ThreadPoolExecutor(1, thread_name_prefix="rounds")
        self._job_thread = ThreadPoolExecutor(1, thread_name_prefix="jobs")
        self._events: list[dict[str, Any]] = []
        self._snapshot = b"{}"
        self._saved = ""
        self._registered: frozenset[str] = frozenset()
        self._registering = False
        self._register_at = 0.0
        self._flower_error: str | None = None
        self._registry_stamp = self._stamp()
        self._registry_at = 0.0
        self._announced: tuple[WindowRecord, bool] | None = None

    @property
    def state(self) -> CampaignState:
        """The campaign's durable state."""
        return self._campaign.state

    def run(self, stopping: threading.Event) -> None:
        """Serve until `stopping`. Raises CoordinatorError when a port is not to be had."""
        app = make_app(self._repository, lambda: self._snapshot, self._command)
        host, port = self._config.host, self._config.ports.https
        server = HttpsServer(self._layout, host, port, app, self._crashed)
        server.start()
        self._driver.prepare()
        self._link.start()
        try:
            self._handle(lambda: self._campaign.resume(self._wall()))
            while not stopping.is_set():
                try:
                    call = self._calls.get(timeout=TICK_S)
                except queue.Empty:
                    call = list
                self._handle(call)
        finally:
            self._driver.close()
            self._jobs.close()
            self._link.stop()
            server.stop()
            self._round_thread.shutdown()
            self._job_thread.shutdown()
            self._audit.close()

    # --- the one thread that owns the campaign ---

    def _handle(self, call: Callable[[], list[Action]]) -> None:
        now = self._wall()
        self._look_for_enrolments(now)
        self._register(now)
        actions = call()
        actions += self._campaign.tick(now)
        for action in actions:
            if isinstance(action, Note):
                log.info("%s %s", action.kind, json.dumps(action.fields)[:300])
                self.state.audit_head = self._audit.append(action.kind, action.fields)
        self._save()
        for action in actions:
            self._do(action, now)
        self._snapshot = make_snapshot(
            self._config,
            self._campaign,
            now,
            {
                "broker": {
                    "connected": self._link.connected,
                    "error": self._link.error,
                    "dropped": self._link.dropped,
                },
                "flower": {
                    "registered": sorted(self._registered),
                    "error": self._flower_error,
                },
                "events": self._events,
            },
        )

    def _save(self) -> None:
        text = self.state.model_dump_json()
        if text != self._saved:
            save_state(self._state_folder, self.state)
            self._saved = text

    def _do(self, action: Action, now: float) -> None:
        match action:
            case Note(kind="released"):
                self._say_release()
            case RunRound():
                members = self._members(action.members)
                order = make_order(self._config, self.state, action, members, self._state_folder)
                self._submit(self._round_thread, self._run_round, action, order)
            case BuildBase():
                features = self.state.features
                if features is not None:
                    sketches = dict(self.state.sketches)
                    self._submit(self._job_thread, self._build, features, sketches)
            case ExportRelease():
                export = self.state.export
                if export is not None:
                    state = self.state.model_copy(deep=True)
                    self._submit(self._job_thread, self._export, state, export)
            case Announce(window, closed):
                self._announced = (window.model_copy(), closed)
                self._say_window(now)

    # --- what comes in, on other threads ---

    def _submit[**P](
        self,
        thread: ThreadPoolExecutor,
        work: Callable[P, None],
        *arguments: P.args,
        **named: P.kwargs,
    ) -> None:
        """Start work on another thread. What it did not expect ends the coordinator, loudly."""
        what = work.__name__.strip("_")
        thread.submit(guarded(what, work, self._crashed), *arguments, **named)

    def _crashed(self, line: str) -> None:
        def end() -> list[Action]:
            raise CoordinatorError(line)

        self._post(end)

    def _post(self, call: Callable[[], list[Action]]) -> None:
        self._calls.put(call)

    def _on_message(self, message: FromAgent, received_unix_s: float) -> None:
        self._post(lambda: self._take(message, received_unix_s))

    def _on_connected(self) -> None:
        self._post(self._say_again)

    def _take(self, message: FromAgent, now: float) -> list[Action]:
        match message:
            case AgentStatus():
                self._campaign.on_status(message, now)
            case Answer():
                return self._campaign.on_answer(message, now)[1]
            case AgentEvent():
                if message.agent_id not in self._campaign.roster.enrolled:
                    return []
                event = message.model_dump(mode="json", exclude={"envelope"})
                self._events = [*self._events, {**event, "unix_s": now}][-KEPT_EVENTS:]
                return [Note("agent_event", event)]
        return []

    # --- what is said ---

    def _say_again(self) -> list[Action]:
        self._say_window(self._wall())
        self._say_release()
        return []

    def _say_window(self, now: float) -> None:
        if self._announced is None:
            return
        record, closed = self._announced
        closes = record.closes_unix_s
        lifetime_s = CLOSED_WINDOW_LIFETIME_S if closed else closes - now
        if lifetime_s <= 0:
            return
        terms = window_terms(self._config.campaign, self.state, record.base_digest)
        self._link.announce(
            lambda envelope: Window(
                envelope=envelope,
                window_id=record.window_id,
                round=record.round,
                terms=terms,
                opens_unix_s=record.opens_unix_s,
                join_by_unix_s=record.join_by_unix_s,
                closes_unix_s=closes,
                closed=closed,
            ),
            lifetime_s,
        )

    def _say_release(self) -> None:
        if not self.state.releases:
            return
        release = self.state.releases[-1]
        self._link.release(
            lambda envelope: ReleaseNotice(
                envelope=envelope,
                version=release.version,
                round=release.round,
                manifest_digest=release.manifest_digest,
            )
        )

    def _command(self, agent_id: str, word: CommandWord) -> str | None:
        """On the HTTPS thread: send a command; why it could not be sent, or None."""
        if agent_id not in self._agents:
            return f"no robot {agent_id!r} is enrolled"
        sent = self._link.command(
            agent_id,
            lambda envelope: Command(envelope=envelope, agent_id=agent_id, command=word),
        )
        if not sent:
            return self._link.error or "the broker is not connected"
        self._post(lambda: [Note("command", {"agent_id": agent_id, "command": word})])
        return None

    # --- enrolment and registration ---

    def _stamp(self) -> int:
        path = self._layout.registry
        return path.stat().st_mtime_ns if path.exists() else 0

    def _look_for_enrolments(self, now: float) -> None:
        """A robot enrolled while we run is a member at once."""
        if now < self._registry_at:
            return
        self._registry_at = now + ENROLMENT_POLL_S
        stamp = self._stamp()
        if stamp != self._registry_stamp:
            self._registry_stamp = stamp
            self._agents = enrolled_agents(self._layout)
            self._campaign.roster.enrolled = frozenset(self._agents)

    def _register(self, now: float) -> None:
        """Make every enrolled key known to the SuperLink, and try until it is there."""
        if self._registering or now < self._register_at or self._registered >= set(self._agents):
            return
        self._register_at = now + REGISTER_RETRY_S
        if not self._superlink_listens():
            return
        self._registering = True
        self._submit(self._round_thread, self._register_members, self._members(tuple(self._agents)))

    def _members(self, names: tuple[str, ...]) -> list[Member]:
        return [Member(agent_id=name, public_key=self._agents[name].public_key) for name in names]

    def _superlink_listens(self) -> bool:
        """A cheap look before a process is started for it."""
        address = (LOOPBACK, self._config.ports.superlink)
        try:
            socket.create_connection(address, timeout=0.2).close()
        except OSError:
            self._flower_error = (
                f"no SuperLink at {LOOPBACK}:{self._config.ports.superlink}; start "
                "`armada coordinator superlink`"
            )
            return False
        return True

    def _register_members(self, members: list[Member]) -> None:
        error: str | None = None
        try:
            self._driver.register(members)
        except (FederationError, OSError) as failure:
            error = str(failure)
        self._post(lambda: self._on_registered(members, error))

    def _on_registered(self, members: list[Member], error: str | None) -> list[Action]:
        self._registering = False
        self._register_at = self._wall() + REGISTER_RETRY_S
        if error is not None and error != self._flower_error:
            log.warning("%s", error)
        self._flower_error = error
        if error is None:
            self._registered = frozenset(member.agent_id for member in members)
            self._campaign.data_plane = True
        return []

    # --- rounds and jobs, each on its own thread ---

    def _run_round(self, action: RunRound, order: RoundOrder) -> None:
        base: Base | None = None
        sketches: dict[str, dict[str, Any]] = {}
        trained: dict[str, list[str]] = {}
        try:
            result = self._driver.run_round(order)
            summary, base = read_result(action, result, self._state_folder)
            sketches, trained = dict(result.sketches), dict(result.trained)
        except (OSError, CoordinatorError) as error:
            summary = RoundSummary(
                round=action.round,
                kind=action.kind,
                members=list(action.members),
                error=str(error),
            )
        self._post(lambda: self._on_round(action, summary, base, sketches, trained))

    def _on_round(
        self,
        action: RunRound,
        summary: RoundSummary,
        base: Base | None,
        sketches: dict[str, dict[str, Any]],
        trained: dict[str, list[str]],
    ) -> list[Action]:
        now = self._wall()
        self._campaign.on_episodes(trained)
        match action.kind:
            case "statistics":
                return self._campaign.on_statistics(summary, sketches, now)
            case "install":
                return self._campaign.on_installed(summary, now)
            case _:
                actions = self._campaign.on_trained(summary, base, now)
                self._prune_bases()
                return actions

    def _build(self, features: Features, sketches: dict[str, dict[str, Any]]) -> None:
        built = build_base(self._jobs, self._config, features, sketches, self._state_folder)
        self._post(lambda: self._campaign.on_built(built, self._wall()))

    def _export(self, state: CampaignState, export: Export) -> None:
        done = export_release(
            self._jobs,
            self._repository,
            state,
            export,
            self._state_folder,
            self._wall(),
            self._closed_loop,
        )
        self._post(lambda: self._campaign.on_exported(done, self._wall()))

    def _prune_bases(self) -> None:
        """Delete weights that no round, candidate or export needs any more."""
        state = self.state
        keep = {base.round for base in state.bases[-KEPT_BASES:]}
        keep |= {candidate.round for candidate in state.candidates}
        if state.export is not None:
            keep.add(state.export.candidate.round)
        for base in state.bases:
            if base.round not in keep:
                (self._state_folder / base.weights).unlink(missing_ok=True)
