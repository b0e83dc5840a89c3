"""The campaign: how a fleet gets from first data to its last release. Pure.

    gathering -> statistics -> building -> installing -> waiting -> joining -> training -> waiting …
                                                            `-> finishing -> finished

Time comes in with every call (unix seconds, the coordinator's clock); what is to be done goes out
as actions. Nothing waits for one robot: each phase has a deadline, and a window with too few joins
closes without a round. One Flower round runs at a time. Evaluation and export go on beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from coordinator.campaign.actions import (
    INSTALL_S,
    Action,
    Announce,
    BuildBase,
    BuiltBase,
    ExportRelease,
    Note,
    RunRound,
)
from coordinator.campaign.leaks import explain_leak, note_trained, take_out_leaks
from coordinator.campaign.membership import Roster
from coordinator.campaign.release_gate import judge
from coordinator.campaign.reply import merged_bases
from coordinator.campaign.state import (
    Base,
    CampaignPhase,
    CampaignState,
    Candidate,
    Export,
    Leak,
    RefusedCandidate,
    ReleaseRecord,
    RoundKind,
    RoundSummary,
    WindowRecord,
)
from coordinator.campaign.waiting import CampaignClock, campaign_waits
from coordinator.campaign.window import (
    AnswerRefusal,
    Refusal,
    WindowPhase,
    WindowRules,
    WindowState,
    window_terms,
)
from coordinator.config import CoordinatorConfig
from protocol.eligibility import Terms, judge_join, needs_base
from protocol.messages import AgentStatus, Answer
from protocol.waiting import Waiting

# After a failed statistics, build or install step; a robot must have time to come back.
RETRY_S = 5.0
# A robot whose base could not be installed is tried again after this.
INSTALL_RETRY_S = 20.0
# Between two windows at the least: robots that decline must not make a busy loop.
WINDOW_PAUSE_S = 1.0
# Time for statuses to say that a base arrived, before a robot counts as having missed it.
SETTLE_S = 6.0


class Campaign:
    """See the module. Every method that changes the state returns the actions that follow."""

    def __init__(
        self,
        config: CoordinatorConfig,
        state: CampaignState,
        enrolled: frozenset[str],
        new_id: Callable[[], str],
    ) -> None:
        self._config = config
        self._rules = config.campaign
        self.state = state
        cameras = frozenset(
            str(camera["name"])
            for camera in config.policy.get("cameras", ())
            if isinstance(camera, dict) and "name" in camera
        )
        self.roster = Roster(enrolled, self._rules.min_episodes, cameras)
        self._new_id = new_id
        self._window: WindowState | None = None
        # Set once the SuperLink knows the robots; before that a round could only fail.
        self.data_plane = True
        self._busy = False
        self._exporting = False
        self._leak_notes: list[Action] = []  # for the next tick
        self._enough_since: float | None = None
        self._retry_at = 0.0
        self._retry_why = ""
        self._settled_at = 0.0
        self._pause_until = 0.0
        self._install_after: dict[str, float] = {}

    # --- start and stop ---

    def resume(self, now: float) -> list[Action]:
        """After a start: redo or give up what was under way when the coordinator died."""
        state = self.state
        actions: list[Action] = [Note("started", {"phase": state.phase, "round": state.round})]
        match state.phase:
            case CampaignPhase.STATISTICS:
                state.phase = CampaignPhase.GATHERING
            case CampaignPhase.JOINING | CampaignPhase.TRAINING:
                actions += self._end_window("the coordinator was restarted", now)
                state.next_window_unix_s = now
            case _:
                pass
        self._settled_at = now + SETTLE_S
        return actions

    # --- what comes in ---

    def on_status(self, status: AgentStatus, now: float) -> None:
        """A status that passed the guard."""
        self.roster.hear(status, now)
        known = self.state.known_bases()
        for digest, report in status.held_out.items():
            if digest in known and status.agent_id in self.roster.enrolled:
                self.state.held_out.setdefault(digest, {})[status.agent_id] = report
        self._note_leaks(take_out_leaks(self.state, status.held_out))

    def on_answer(self, answer: Answer, now: float) -> tuple[Refusal | None, list[Action]]:
        """An answer that passed the guard."""
        if self._window is None:
            return AnswerRefusal.OTHER_WINDOW, []
        refusal = self._window.answer(answer, now)
        if refusal is not None:
            fields = {"agent_id": answer.agent_id, "window_id": answer.window_id}
            return refusal, [Note("answer_refused", {**fields, "reason": refusal})]
        return None, []

    def on_statistics(
        self, summary: RoundSummary, sketches: dict[str, dict[str, Any]], now: float
    ) -> list[Action]:
        """The statistics round is over."""
        self._busy = False
        state = self.state
        state.rounds.append(summary)
        actions: list[Action] = [_round_note(summary)]
        if len(sketches) < self._rules.min_agents:
            state.phase = CampaignPhase.GATHERING
            self._retry(now, summary.error or f"{len(sketches)} robots sent statistics")
            return actions
        state.sketches = sketches
        state.founders = sorted(sketches)
        state.phase = CampaignPhase.BUILDING
        return actions

    def on_built(self, built: BuiltBase | str, now: float) -> list[Action]:
        """Base 0 is there, or the one line why not."""
        self._busy = False
        state = self.state
        if isinstance(built, str):
            state.phase = CampaignPhase.GATHERING
            self._retry(now, built)
            return [Note("build_failed", {"reason": built})]
        state.bases = [built.base]
        state.spec = built.spec
        state.normalizer = built.normalizer
        state.normalizer_digest = built.normalizer_digest
        state.sketches = {}
        state.phase = CampaignPhase.INSTALLING
        fields = {"digest": built.base.digest, "normalizer_digest": built.normalizer_digest}
        return [Note("base_built", fields)]

    def on_episodes(self, trained: Mapping[str, Iterable[str]]) -> None:
        """Keys of the episodes that each robot ever trained on, by its own word."""
        note_trained(self.state, trained)
        self._note_leaks(take_out_leaks(self.state))

    def _note_leaks(self, leaks: Mapping[str, Leak]) -> None:
        lines = (explain_leak(agent, leak) for agent, leak in leaks.items())
        self._leak_notes += [Note("evaluation_refused", {"reason": line}) for line in lines]

    def on_installed(self, summary: RoundSummary, now: float) -> list[Action]:
        """An install round is over (base 0, or for robots that missed a base)."""
        self._busy = False
        state = self.state
        state.rounds.append(summary)
        self._settled_at = now + SETTLE_S
        for agent_id in set(summary.members) - set(summary.installed):
            self._install_after[agent_id] = now + INSTALL_RETRY_S
        if state.phase is CampaignPhase.INSTALLING:
            if summary.installed:
                state.phase = CampaignPhase.WAITING
                state.next_window_unix_s = now + self._rules.interval_s
            else:
                self._retry(now, summary.error or "no robot could take the base")
        return [_round_note(summary)]

    def on_trained(self, summary: RoundSummary, new_base: Base | None, now: float) -> list[Action]:
        """A train round is over; without a new base it failed, and the campaign goes on."""
        self._busy = False
        state, rules = self.state, self._rules
        state.rounds.append(summary)
        actions: list[Action] = [_round_note(summary)]
        if new_base is None:
            return actions + self._end_window(summary.error or "no aggregate", now)
        merged = merged_bases(summary.replies)
        state.merged_bases |= merged
        state.contributors = sorted(set(state.contributors) | merged.keys())
        state.bases.append(new_base)
        state.round = new_base.round
        self._settled_at = now + SETTLE_S
        for agent_id in set(summary.members) - set(summary.installed):
            self._install_after[agent_id] = now + SETTLE_S
        if state.round % rules.release_every_rounds == 0 or state.round >= rules.rounds:
            state.candidates.append(
                Candidate(
                    round=state.round,
                    digest=new_base.digest,
                    members=summary.installed,
                    deadline_unix_s=now + rules.evaluation_wait_s,
                )
            )
        return actions + self._end_window("aggregated", now)

    def on_exported(self, release: ReleaseRecord | str, now: float) -> list[Action]:
        """The export job is over: a published release, or the one line why not."""
        self._exporting = False
        export = self.state.export
        self.state.export = None
        if isinstance(release, str):
            number = export.candidate.round if export else self.state.round
            return [self._refuse(number, release)]
        self.state.releases.append(release)
        fields = {
            "version": release.version,
            "round": release.round,
            "manifest_digest": release.manifest_digest,
            "action_mae": release.evaluation.action_mae,
            "grounds": release.evaluation.grounds,
        }
        return [Note("released", fields)]

    def waiting(self, now: float) -> list[Waiting]:
        """For what the campaign waits; empty only once it is finished."""
        clock = CampaignClock(
            self.data_plane, self._enough_since, self._retry_at, self._retry_why, self._window
        )
        return campaign_waits(self.state, self._rules, self.roster, clock, now)

    # --- what time brings ---

    def tick(self, now: float) -> list[Action]:
        """Everything that is due at `now`. Cheap; call it on each event and each half second."""
        actions = self._judge_candidates(now)
        if not self.data_plane:
            return actions
        match self.state.phase:
            case CampaignPhase.GATHERING:
                actions += self._gather(now)
            case CampaignPhase.BUILDING if not self._busy:
                self._busy = True
                actions.append(BuildBase())
            case CampaignPhase.INSTALLING if not self._busy and now >= self._retry_at:
                members = tuple(self._fitting(now))
                if members:
                    actions.append(self._run("install", 0, members, INSTALL_S))
            case CampaignPhase.WAITING if not self._busy:
                actions += self._wait(now)
            case CampaignPhase.JOINING:
                actions += self._join(now)
            case CampaignPhase.FINISHING:
                actions += self._finish(now)
            case _:
                pass
        return actions

    def _gather(self, now: float) -> list[Action]:
        features = self.roster.majority_features(now)
        ready = self.roster.fitting(features, now) if features is not None else {}
        if features is None or len(ready) < self._rules.min_agents:
            self._enough_since = None
            return []
        if self._enough_since is None:
            self._enough_since = now
        everybody = ready.keys() >= self.roster.connected(now).keys()
        waited = now - self._enough_since >= self._rules.gather_s
        if self._busy or now < self._retry_at or not (everybody or waited):
            return []
        self.state.features = features
        self.state.phase = CampaignPhase.STATISTICS
        return [self._run("statistics", 0, tuple(ready), self._rules.close_s)]

    def _wait(self, now: float) -> list[Action]:
        missing = self._missed_the_base(now)
        if missing and not self._ready_to_open(now):
            return [self._run("install", self.state.round, missing, INSTALL_S)]
        if self._ready_to_open(now):
            return self._open(now)
        return []

    def _ready_to_open(self, now: float) -> bool:
        if now >= self.state.next_window_unix_s:
            return True
        if self._rules.open_when != "ready" or now < self._pause_until:
            return False
        connected, terms = self._fitting(now), self._terms()
        able = [
            agent_id
            for agent_id, status in connected.items()
            if judge_join(*self._work_of(status), terms) is None
        ]
        return len(able) >= max(self._rules.min_agents, len(connected))

    def _open(self, now: float) -> list[Action]:
        rules, state, base = self._rules, self.state, self._base()
        expected = self._fitting(now)
        record = WindowRecord(
            window_id=self._new_id(),
            round=state.round + 1,
            base_digest=base.digest,
            opens_unix_s=now,
            join_by_unix_s=now + rules.join_s,
            closes_unix_s=now + rules.close_s,
            expected=sorted(expected),
        )
        self._window = WindowState(
            window_id=record.window_id,
            opens_unix_s=record.opens_unix_s,
            join_by_unix_s=record.join_by_unix_s,
            closes_unix_s=record.closes_unix_s,
            rules=WindowRules(
                min_agents=rules.min_agents,
                members=self.roster.enrolled,
                terms=self._terms(),
                merged_bases=dict(state.merged_bases),
            ),
            expected=frozenset(expected),
        )
        state.window = record
        state.phase = CampaignPhase.JOINING
        fields = {"window_id": record.window_id, "round": record.round, "base": base.digest}
        return [Note("window_opened", fields), Announce(record, closed=False)]

    def _join(self, now: float) -> list[Action]:
        window, record = self._window, self.state.window
        if window is None or record is None:
            return self._end_window("the window was lost", now)
        phase = window.tick(now)
        record.joined = {agent: answer.steps for agent, answer in window.joined.items()}
        record.declined = dict(window.declined)
        record.refused = {agent: refusal.value for agent, refusal in window.refused.items()}
        if phase is WindowPhase.CLOSED:
            return self._end_window(window.outcome or "closed", now)
        if phase is WindowPhase.COLLECTING:
            self.state.phase = CampaignPhase.TRAINING
            seconds = max(1.0, window.closes_unix_s - now)
            members = tuple(sorted(window.joined))
            return [self._run("train", record.round, members, seconds, record.window_id)]
        return []

    def _end_window(self, outcome: str, now: float) -> list[Action]:
        state = self.state
        actions: list[Action] = []
        record = state.window
        if record is not None:
            record.outcome = outcome
            state.windows.append(record)
            state.window = None
            fields = record.model_dump(mode="json")
            actions = [Note("window_closed", fields), Announce(record, closed=True)]
            self._pause_until = now + WINDOW_PAUSE_S
        self._window = None
        state.next_window_unix_s = now + self._rules.interval_s
        state.phase = (
            CampaignPhase.FINISHING if state.round >= self._rules.rounds else CampaignPhase.WAITING
        )
        return actions

    def _finish(self, now: float) -> list[Action]:
        if self._busy:
            return []
        missing = self._missed_the_base(now)
        if missing:
            return [self._run("install", self.state.round, missing, INSTALL_S)]
        if self.state.candidates or self.state.export is not None:
            return []
        self.state.phase = CampaignPhase.FINISHED
        return [Note("finished", {"round": self.state.round, "releases": len(self.state.releases)})]

    # --- releases ---

    def _judge_candidates(self, now: float) -> list[Action]:
        state = self.state
        if state.export is not None:
            if self._exporting:
                return []
            self._exporting = True
            return [ExportRelease()]
        noted, self._leak_notes = self._leak_notes, []
        verdict = judge(
            state.candidates,
            state.held_out,
            state.last_release_reports(),
            self._config.release_gate,
            self._rules.replies_needed,
            now,
        )
        if verdict is None:
            return noted
        state.candidates = [c for c in state.candidates if c.round > verdict.candidate.round]
        actions: list[Action] = noted + [
            self._refuse(older.round, f"superseded by round {verdict.candidate.round}")
            for older in verdict.superseded
        ]
        if verdict.refusal is not None or verdict.evaluation is None:
            known = [explain_leak(agent, leak) for agent, leak in state.leaks.items()]
            reason = "; ".join([verdict.refusal or "not evaluated", *known])
            return [*actions, self._refuse(verdict.candidate.round, reason)]
        version = state.releases[-1].version + 1 if state.releases else 1
        state.export = Export(
            version=version, candidate=verdict.candidate, evaluation=verdict.evaluation
        )
        self._exporting = True
        return [*actions, ExportRelease()]

    def _refuse(self, number: int, reason: str) -> Note:
        self.state.refused.append(RefusedCandidate(round=number, reason=reason))
        return Note("release_refused", {"round": number, "reason": reason})

    # --- small ones ---

    def _retry(self, now: float, why: str) -> None:
        self._retry_at, self._retry_why = now + RETRY_S, why

    def _base(self) -> Base:
        base = self.state.base
        if base is None:
            raise AssertionError("no window before there is a base")
        return base

    def _terms(self) -> Terms:
        return window_terms(self._rules, self.state, self._base().digest)

    def _work_of(self, status: AgentStatus) -> tuple[str | None, int, str | None]:
        """What eligibility is judged by: base, steps since it, base of the last merged work."""
        training = status.training
        merged_base = self.state.merged_bases.get(status.agent_id)
        return training.base_digest, training.steps_since_base, merged_base

    def _fitting(self, now: float) -> dict[str, AgentStatus]:
        features = self.state.features
        return {} if features is None else self.roster.fitting(features, now)

    def _missed_the_base(self, now: float) -> tuple[str, ...]:
        """Connected robots that have no base, one too old, or an older one and nothing gained."""
        if now < self._settled_at:
            return ()
        terms = self._terms()
        return tuple(
            agent_id
            for agent_id, status in self._fitting(now).items()
            if now >= self._install_after.get(agent_id, 0.0)
            and needs_base(*self._work_of(status), terms)
        )

    def _run(
        self,
        kind: RoundKind,
        number: int,
        members: tuple[str, ...],
        seconds: float,
        window_id: str | None = None,
    ) -> RunRound:
        self._busy = True
        return RunRound(kind, number, members, seconds, window_id)


def _round_note(summary: RoundSummary) -> Note:
    return Note("round", summary.model_dump(mode="json"))
