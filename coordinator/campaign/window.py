"""The rules of one window. Pure: every time is passed in, on the coordinator's clock.

    joining    from `opens` until `join_by`, or until every agent expected has answered
    collecting when at least min_agents joined; until `closes`, or until the round is over
    closed     otherwise, and at the end

One answer counts per agent, the first. Nobody waits for anybody: what is late is refused, and a
window with too few joins closes without a round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from coordinator.campaign.state import CampaignState
from coordinator.config import CampaignConfig
from protocol.eligibility import Ineligible, Terms, judge_join
from protocol.messages import Answer


class WindowPhase(StrEnum):
    """Where a window stands."""

    JOINING = "joining"
    COLLECTING = "collecting"
    CLOSED = "closed"


class AnswerRefusal(StrEnum):
    """Why an answer did not count, whatever it offers."""

    OTHER_WINDOW = "other_window"
    NOT_OPEN = "not_open"
    LATE = "late"
    ANSWERED = "already_answered"
    STRANGER = "not_enrolled"


Refusal = AnswerRefusal | Ineligible


def window_terms(rules: CampaignConfig, state: CampaignState, base_digest: str) -> Terms:
    """What a window on that base takes."""
    bases = state.bases_until(base_digest)
    if rules.local_work == "window":
        return Terms(bases=bases, local_work="window")
    return Terms(
        bases=bases,
        max_staleness=rules.max_staleness,
        min_steps=max(1, rules.min_local_steps),
    )


@dataclass(frozen=True)
class WindowRules:
    """Who may answer, with what. merged_bases: agent -> base of its last merged work."""

    min_agents: int
    members: frozenset[str]
    terms: Terms
    merged_bases: Mapping[str, str] = field(default_factory=dict)


@dataclass
class WindowState:
    """One window in progress."""

    window_id: str
    opens_unix_s: float
    join_by_unix_s: float
    closes_unix_s: float
    rules: WindowRules
    expected: frozenset[str] = frozenset()
    phase: WindowPhase = WindowPhase.JOINING
    outcome: str | None = None
    joined: dict[str, Answer] = field(default_factory=dict)
    declined: dict[str, str] = field(default_factory=dict)
    refused: dict[str, Refusal] = field(default_factory=dict)

    def answer(self, answer: Answer, now_unix_s: float) -> Refusal | None:
        """Take one answer; returns why it did not count."""
        refusal = self._judge(answer, now_unix_s)
        if refusal is not None:
            # The first verdict on an agent stands in the record.
            if refusal is not AnswerRefusal.OTHER_WINDOW:
                self.refused.setdefault(answer.agent_id, refusal)
            return refusal
        if answer.decision == "join":
            self.joined[answer.agent_id] = answer
        else:
            self.declined[answer.agent_id] = answer.reason or "no reason given"
        return None

    def _judge(self, answer: Answer, now_unix_s: float) -> Refusal | None:
        rules = self.rules
        if answer.window_id != self.window_id:
            return AnswerRefusal.OTHER_WINDOW
        if answer.agent_id not in rules.members:
            return AnswerRefusal.STRANGER
        if answer.agent_id in self.joined or answer.agent_id in self.declined:
            return AnswerRefusal.ANSWERED
        if now_unix_s < self.opens_unix_s:
            return AnswerRefusal.NOT_OPEN
        if self.phase is not WindowPhase.JOINING or now_unix_s > self.join_by_unix_s:
            return AnswerRefusal.LATE
        if answer.decision == "decline":
            return None
        merged_base = rules.merged_bases.get(answer.agent_id)
        return judge_join(answer.base_digest, answer.steps, merged_base, rules.terms)

    def tick(self, now_unix_s: float) -> WindowPhase:
        """Move on when time or the answers say so; returns the phase."""
        if self.phase is WindowPhase.JOINING and (
            now_unix_s > self.join_by_unix_s or self._all_answered()
        ):
            if len(self.joined) >= self.rules.min_agents:
                self.phase = WindowPhase.COLLECTING
            else:
                self.close(f"{len(self.joined)} of {self.rules.min_agents} agents joined")
        if self.phase is WindowPhase.COLLECTING and now_unix_s > self.closes_unix_s:
            self.close("time is over")
        return self.phase

    def close(self, outcome: str) -> None:
        """End the window; the first outcome stands."""
        self.phase = WindowPhase.CLOSED
        if self.outcome is None:
            self.outcome = outcome

    def _all_answered(self) -> bool:
        answered = self.joined.keys() | self.declined.keys() | self.refused.keys()
        return bool(self.expected) and self.expected <= answered
