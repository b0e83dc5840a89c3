"""Robot and coordinator say the same of the same work, through the messages between them.

A campaign is played: windows open, robots join with work of any base, rounds fail or give a new
base, robots train, miss bases, or are given one. After each move both sides are asked about each
robot's work.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.federation.participation import Readiness, decide
from agent.training.exchange import BaseInfo
from coordinator.campaign.reply import ContributionReply
from coordinator.campaign.state import Base, CampaignState
from coordinator.campaign.window import WindowRules, WindowState, window_terms
from coordinator.config import CampaignConfig
from coordinator.federation.gate import Received, Standing, judge
from coordinator.federation.orders import GateConfig
from protocol.contribution import Contribution
from protocol.messages import Answer, Envelope, Window, decode

ENVELOPE = Envelope(session="0" * 32, sequence=1, issued_unix_s=1.0, expires_unix_s=None)
WINDOW_ID = "1" * 32
AGENTS = ("arm-1", "arm-2")


def digest(number: int) -> str:
    return f"{number:064x}"


@dataclass
class Robot:
    """What one robot knows: its base, its newest work, and what it was told of merges."""

    base: int = 0
    work: Contribution | None = None
    merged_base: str | None = None

    def train(self, steps: int) -> None:
        self.work = Contribution(
            base_digest=digest(self.base), base_round=self.base, steps=steps, examples=steps,
            loss=0.5, sequence=1,
        )  # fmt: skip

    def answer(self, window: Window, agent_id: str) -> Answer:
        info = BaseInfo(
            digest=digest(self.base), round=self.base, spec={}, normalizer={}, normalizer_digest=""
        )
        ready = Readiness(
            base=info, contribution=self.work, merged_base=self.merged_base,
            local_work=window.terms.local_work, paused=False, in_use=False, data_plane=True,
        )  # fmt: skip
        said = decide(window, ready, 1.0)
        assert said is not None
        return Answer(
            envelope=ENVELOPE, agent_id=agent_id, window_id=WINDOW_ID, decision=said.decision,
            reason=said.reason, base_digest=said.base_digest, steps=said.steps,
        )  # fmt: skip


@dataclass
class Play:
    """One campaign's bookkeeping, and its robots'."""

    rules: CampaignConfig
    state: CampaignState = field(
        default_factory=lambda: CampaignState(
            bases=[Base(round=0, digest=digest(0), weights="bases/0")]
        )
    )
    robots: dict[str, Robot] = field(default_factory=lambda: {name: Robot() for name in AGENTS})
    rounds: int = 0

    @property
    def newest(self) -> str:
        assert self.state.base is not None
        return self.state.base.digest

    def window(self) -> Window:
        terms = window_terms(self.rules, self.state, self.newest)
        said = Window(
            envelope=ENVELOPE, window_id=WINDOW_ID, round=1, terms=terms, opens_unix_s=0.0,
            join_by_unix_s=2.0, closes_unix_s=3.0,
        )  # fmt: skip
        return decode(Window, said.encode())

    def ask_both(self) -> None:
        window = self.window()
        for name, robot in self.robots.items():
            rules = WindowRules(1, frozenset(AGENTS), window.terms, self.state.merged_bases)
            answer = robot.answer(window, name)
            joined = answer.model_copy(update={"decision": "join"})
            refusal = WindowState(WINDOW_ID, 0.0, 2.0, 3.0, rules).answer(joined, 1.0)
            assert (answer.decision == "join") == (refusal is None), (answer.reason, refusal)
            if window.terms.local_work == "anytime" and robot.work is not None:
                reason = self.gate(name, robot.work, window)
                assert reason == answer.reason, "the gate's line is the robot's own"

    def gate(self, name: str, work: Contribution, window: Window) -> str | None:
        tensors = {"w": np.ones(1, np.float32)}
        reply = ContributionReply(**work.model_dump(), agent_id=name, accepted=False)
        standing = Standing(tensors, window.terms, self.state.merged_bases)
        (received,) = judge([Received(reply, tensors)], standing, GateConfig())
        assert received.reply.accepted == (received.reply.reason is None)
        return received.reply.reason

    def round(self, members: set[str], failed: bool, arrived: set[str]) -> None:
        """Everybody eligible among the members is merged; `arrived` get the new base."""
        window, self.rounds = self.window(), self.rounds + 1
        merged = {
            name: robot.work.base_digest
            for name, robot in self.robots.items()
            if name in members and robot.work and self.gate(name, robot.work, window) is None
        }
        if failed or not merged:
            return
        self.state.bases.append(
            Base(round=self.rounds, digest=digest(self.rounds), weights=f"bases/{self.rounds}")
        )
        self.state.merged_bases |= merged
        for name, robot in self.robots.items():
            if name in merged:  # told with the push, which precedes the installation
                robot.merged_base = merged[name]
            if name in arrived:
                robot.base = self.rounds


moves = st.one_of(
    st.tuples(st.just("train"), st.sampled_from(AGENTS), st.integers(1, 12)),
    st.tuples(st.just("install"), st.sampled_from(AGENTS), st.none()),
    st.tuples(
        st.just("round"),
        st.sets(st.sampled_from(AGENTS)),
        st.tuples(st.booleans(), st.sets(st.sampled_from(AGENTS))),
    ),
)
rules = st.one_of(
    st.builds(CampaignConfig, max_staleness=st.integers(0, 3), min_local_steps=st.integers(0, 8)),
    st.just(CampaignConfig(local_work="window")),
)


@settings(max_examples=300)
@given(rules, st.lists(moves, max_size=25))
def test_both_sides_say_the_same_whatever_happened(rules: CampaignConfig, story: list) -> None:
    play = Play(rules)
    play.ask_both()
    for kind, who, what in story:
        match kind:
            case "train":
                play.robots[who].train(what)
            case "install":
                play.robots[who].base = int(play.newest, 16)
            case "round":
                failed, arrived = what
                play.round(who, failed, arrived)
        play.ask_both()


def test_after_failed_rounds_both_sides_count_bases() -> None:
    # By rounds (5 - 0) the work would be too old; by bases it is one old, which is allowed.
    play = Play(CampaignConfig(max_staleness=1))
    play.robots["arm-1"].train(5)
    for _ in range(4):
        play.round({"arm-2"}, failed=True, arrived=set())
    play.robots["arm-2"].train(5)
    play.round({"arm-2"}, failed=False, arrived={"arm-2"})
    assert [base.round for base in play.state.bases] == [0, 5]
    assert play.robots["arm-1"].answer(play.window(), "arm-1").decision == "join"
    play.ask_both()
