"""The campaign as a story on a clock that the test holds: no network, no files."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from held_out_reports import report

from coordinator.campaign.actions import (
    Action,
    Announce,
    BuildBase,
    BuiltBase,
    ExportRelease,
    Note,
    RunRound,
)
from coordinator.campaign.campaign import Campaign
from coordinator.campaign.reply import ContributionReply
from coordinator.campaign.state import (
    Base,
    CampaignPhase,
    CampaignState,
    ReleaseRecord,
    RoundSummary,
)
from coordinator.config import CoordinatorConfig
from protocol.eligibility import Ineligible
from protocol.messages import (
    AgentStatus,
    Answer,
    Envelope,
    Features,
    TrainingReport,
)

FEATURES = Features(state_names=("a",), action_names=("a",), environment_names=("b",), fps=30.0)
AGENTS = ("arm-1", "arm-2", "arm-3")


def digest(number: int) -> str:
    return f"{number:064x}"


class Fleet:
    """A campaign, a clock, and robots that say what the test tells them to."""

    def __init__(self, state: CampaignState | None = None, **rules: Any) -> None:
        fields = {
            "rounds": 3, "min_agents": 2, "join_s": 2.0, "close_s": 20.0, "interval_s": 10.0,
            "gather_s": 5.0, "open_when": "ready", "min_local_steps": 10,
            "evaluation_wait_s": 30.0,
        }  # fmt: skip
        policy = rules.pop("policy", {})
        self.config = CoordinatorConfig.model_validate(
            {"campaign": {**fields, **rules}, "policy": policy}
        )
        numbers = itertools.count(1)
        self.campaign = Campaign(
            self.config,
            state or CampaignState(),
            frozenset(AGENTS),
            lambda: f"{next(numbers):032x}",
        )
        self.now = 1000.0
        self.actions: list[Action] = []

    @property
    def state(self) -> CampaignState:
        return self.campaign.state

    def tick(self, seconds: float = 0.0) -> list[Action]:
        self.now += seconds
        actions = self.campaign.tick(self.now)
        self.actions += actions
        waits = self.campaign.waiting(self.now)
        assert bool(waits) == (self.state.phase is not CampaignPhase.FINISHED), self.state.phase
        assert all(reason.text for reason in waits)
        return actions

    def reasons(self) -> list[str]:
        return [reason.text for reason in self.campaign.waiting(self.now)]

    def status(self, agent: str, base: int | None = None, steps: int = 0, **fields: Any) -> None:
        status = {
            "envelope": Envelope(
                session="0" * 32, sequence=1, issued_unix_s=self.now, expires_unix_s=None
            ),
            "agent_id": agent,
            "state": "idle",
            "data_plane": True,
            "episodes": 5,
            "has_sketch": True,
            "features": FEATURES,
            "training": TrainingReport(
                base_digest=None if base is None else digest(base),
                base_round=base,
                steps_since_base=steps,
            ),
        }
        self.campaign.on_status(AgentStatus.model_validate({**status, **fields}), self.now)

    def everybody(self, base: int | None = None, steps: int = 0, **fields: Any) -> None:
        for agent in AGENTS:
            self.status(agent, base, steps, **fields)

    def answer(self, agent: str, base: int = 0, steps: int = 50, decision: str = "join"):
        window = self.state.window
        assert window is not None
        message = Answer(
            envelope=Envelope(
                session="0" * 32, sequence=1, issued_unix_s=self.now, expires_unix_s=None
            ),
            agent_id=agent,
            window_id=window.window_id,
            decision=decision,
            base_digest=digest(base),
            steps=steps,
        )
        return self.campaign.on_answer(message, self.now)[0]

    def get_base_0(self) -> None:
        self.everybody()
        (order,) = rounds(self.tick())
        assert order.kind == "statistics"
        summary = RoundSummary(round=0, kind="statistics", members=list(order.members))
        self.campaign.on_statistics(summary, {agent: {} for agent in order.members}, self.now)
        assert BuildBase() in self.tick()
        self.campaign.on_built(built(), self.now)
        (order,) = rounds(self.tick())
        assert order.kind == "install"
        self.campaign.on_installed(
            RoundSummary(round=0, kind="install", members=list(AGENTS), installed=list(AGENTS)),
            self.now,
        )
        assert self.state.phase is CampaignPhase.WAITING

    def train_round(self, number: int) -> None:
        """A whole window in which everybody joins."""
        self.everybody(number - 1, 50)
        self.tick(1.0)
        assert self.state.phase is CampaignPhase.JOINING
        for agent in AGENTS:
            assert self.answer(agent, number - 1) is None
        (order,) = rounds(self.tick())
        assert (order.kind, order.round) == ("train", number)
        self.trained(number)

    def trained(self, number: int, members: tuple[str, ...] = AGENTS) -> None:
        replies = [accepted(agent, number - 1) for agent in members]
        self.campaign.on_trained(
            RoundSummary(
                round=number, kind="train", members=list(members), replies=replies,
                installed=list(members),
            ),
            Base(round=number, digest=digest(number), weights=f"bases/{number}"),
            self.now,
        )  # fmt: skip

    def judged(self, number: int, error: float, agents: tuple[str, ...] = AGENTS) -> None:
        for agent in agents:
            self.status(agent, number, held_out={digest(number): report(error, base_round=number)})

    def released(self) -> None:
        export = self.state.export
        assert export is not None
        self.campaign.on_exported(
            ReleaseRecord(
                version=export.version, round=export.candidate.round,
                base_digest=export.candidate.digest, manifest_digest=digest(99),
                contributors=[], evaluation=export.evaluation, published_unix_s=self.now,
            ),
            self.now,
        )  # fmt: skip


def accepted(agent: str, base: int) -> ContributionReply:
    return ContributionReply(
        agent_id=agent, accepted=True, base_digest=digest(base), base_round=base, steps=50,
        examples=9, loss=0.5, sequence=1,
    )  # fmt: skip


def built() -> BuiltBase:
    return BuiltBase(Base(round=0, digest=digest(0), weights="bases/0"), {}, {}, digest(77))


def rounds(actions: list[Action]) -> list[RunRound]:
    return [action for action in actions if isinstance(action, RunRound)]


def notes(actions: list[Action], kind: str) -> list[dict[str, Any]]:
    return [each.fields for each in actions if isinstance(each, Note) and each.kind == kind]


def test_a_whole_campaign() -> None:
    fleet = Fleet()
    fleet.get_base_0()
    for number in (1, 2, 3):
        fleet.train_round(number)
        fleet.judged(number, 10.0 - number)
        assert ExportRelease() in fleet.tick()
        fleet.released()
    fleet.tick()
    assert fleet.state.phase is CampaignPhase.FINISHED
    assert [release.version for release in fleet.state.releases] == [1, 2, 3]
    assert fleet.state.contributors == list(AGENTS)


def test_statistics_wait_for_enough_robots_and_then_for_nobody_longer_than_gather_s() -> None:
    fleet = Fleet()
    fleet.status("arm-1")
    fleet.status("arm-3", episodes=0)
    assert not rounds(fleet.tick())
    fleet.status("arm-2")
    assert not rounds(fleet.tick()), "arm-3 is connected and may still record"
    fleet.tick(2.0)
    for agent in ("arm-1", "arm-2"):
        fleet.status(agent)
    (order,) = rounds(fleet.tick(3.0))
    assert order.members == ("arm-1", "arm-2")


def test_gathering_says_how_many_robots_are_missing_and_what_each_lacks() -> None:
    fleet = Fleet(min_agents=3, min_episodes=10)
    fleet.status("arm-1", episodes=3)
    fleet.status("arm-2", episodes=10, data_plane=False)
    fleet.tick()
    assert fleet.reasons() == [
        "waiting for 3 more robots",
        "arm-1 has 3 of 10 episodes",
        "arm-2 is not connected to the SuperLink",
        "arm-3 is not connected",
    ]
    for agent in ("arm-1", "arm-2"):
        fleet.status(agent, episodes=10)
    fleet.tick()
    assert fleet.reasons()[0] == "waiting for 1 more robot"


def test_a_camera_that_the_policy_sees_and_a_robot_lacks_is_named() -> None:
    camera = {"name": "front", "height": 48, "width": 64}
    fleet = Fleet(policy={"cameras": [camera]})
    fleet.everybody(cameras={"front": (48, 64)})
    fleet.status("arm-2", cameras={"side": (48, 64)})
    fleet.status("arm-3", cameras={})
    fleet.tick()
    assert fleet.reasons() == [
        "waiting for 1 more robot",
        "arm-2 has no camera 'front', which the policy sees",
        "arm-3 has no camera 'front', which the policy sees",
    ]


def test_between_windows_it_says_when_the_next_opens_and_who_has_not_gained_enough() -> None:
    fleet = Fleet()
    fleet.get_base_0()
    fleet.everybody(0, 10)
    fleet.status("arm-2", 0, 4)
    fleet.tick()
    first, second = fleet.reasons()
    assert first.startswith("no window open, next when every robot gained 10 steps, at ")
    assert second == "arm-2 gained 4 of 10 steps"


def test_what_failed_is_told_with_the_time_of_the_next_attempt() -> None:
    fleet = Fleet()
    fleet.everybody()
    fleet.tick()
    summary = RoundSummary(round=0, kind="statistics", members=list(AGENTS), error="no SuperLink")
    fleet.campaign.on_statistics(summary, {}, fleet.now)
    fleet.tick()
    assert fleet.reasons()[0].startswith("again at ")
    assert fleet.reasons()[0].endswith("after: no SuperLink")


def test_a_robot_of_another_shape_does_not_hold_up_the_others() -> None:
    fleet = Fleet()
    fleet.status("arm-1", features=FEATURES.model_copy(update={"fps": 60.0}))
    fleet.status("arm-2")
    fleet.status("arm-3")
    assert not rounds(fleet.tick())
    (order,) = rounds(fleet.tick(5.0))
    assert order.members == ("arm-2", "arm-3")


@pytest.mark.parametrize("lacking", [{"paused": True}, {"data_plane": False}, {"online": False},
                                     {"has_sketch": False}, {"episodes": 1}])  # fmt: skip
def test_who_cannot_take_part_is_not_counted(lacking: dict[str, Any]) -> None:
    fleet = Fleet()
    fleet.status("arm-1")
    fleet.status("arm-2", **lacking)
    assert not rounds(fleet.tick(60.0))


def test_a_stranger_is_never_a_member() -> None:
    fleet = Fleet()
    fleet.status("arm-1")
    fleet.status("arm-9")
    assert not rounds(fleet.tick()) and not rounds(fleet.tick(6.0))


def test_too_few_sketches_are_asked_for_again() -> None:
    fleet = Fleet()
    fleet.everybody()
    fleet.tick()
    summary = RoundSummary(round=0, kind="statistics", members=list(AGENTS), error="x")
    fleet.campaign.on_statistics(summary, {"arm-1": {}}, fleet.now)
    assert not rounds(fleet.tick(1.0))
    fleet.everybody()
    assert rounds(fleet.tick(5.0))


def test_a_failed_build_is_recorded_and_tried_again() -> None:
    fleet = Fleet()
    fleet.everybody()
    fleet.tick()
    summary = RoundSummary(round=0, kind="statistics", members=list(AGENTS))
    fleet.campaign.on_statistics(summary, {agent: {} for agent in AGENTS}, fleet.now)
    fleet.tick()
    actions = fleet.campaign.on_built("features differ", fleet.now)
    assert notes(actions, "build_failed") == [{"reason": "features differ"}]
    assert fleet.state.phase is CampaignPhase.GATHERING


def test_ready_opens_at_the_moment_the_last_robot_has_gained_enough() -> None:
    fleet = Fleet()
    fleet.get_base_0()
    fleet.status("arm-1", 0, 50)
    fleet.status("arm-2", 0, 50)
    fleet.status("arm-3", 0, 9)
    fleet.tick(1.0)
    assert fleet.state.phase is CampaignPhase.WAITING
    fleet.status("arm-3", 0, 10)
    actions = fleet.tick(0.1)
    assert [each.closed for each in actions if isinstance(each, Announce)] == [False]


def test_a_robot_in_use_holds_up_a_window_for_interval_s_and_no_longer() -> None:
    fleet = Fleet()
    fleet.get_base_0()
    fleet.everybody(0, 50)
    fleet.status("arm-3", 0, 1, state="teleop")
    fleet.tick(9.0)
    assert fleet.state.phase is CampaignPhase.WAITING
    fleet.everybody(0, 50)
    fleet.status("arm-3", 0, 1, state="teleop")
    fleet.tick(1.0)
    assert fleet.state.phase is CampaignPhase.JOINING


def test_interval_waits_although_everybody_is_ready() -> None:
    fleet = Fleet(open_when="interval")
    fleet.get_base_0()
    fleet.everybody(0, 50)
    fleet.tick(9.9)
    assert fleet.state.phase is CampaignPhase.WAITING
    fleet.tick(0.1)
    assert fleet.state.phase is CampaignPhase.JOINING


def test_a_window_with_too_few_joins_makes_no_round_and_the_next_one_comes() -> None:
    fleet = Fleet()
    fleet.get_base_0()
    fleet.everybody(0, 50)
    fleet.tick()
    fleet.answer("arm-1")
    for agent in ("arm-2", "arm-3"):
        fleet.answer(agent, decision="decline")
    actions = fleet.tick()
    assert not rounds(actions)
    assert [each.closed for each in actions if isinstance(each, Announce)] == [True]
    assert fleet.state.round == 0
    fleet.everybody(0, 50)
    fleet.tick(1.0)
    assert fleet.state.phase is CampaignPhase.JOINING


def test_a_refused_answer_is_recorded_with_its_reason() -> None:
    fleet = Fleet()
    fleet.get_base_0()
    fleet.everybody(0, 50)
    fleet.tick()
    assert fleet.answer("arm-1", base=8) is Ineligible.UNKNOWN_BASE
    fleet.tick(3.0)
    assert fleet.state.windows[-1].refused == {"arm-1": "unknown_base"}


def test_a_failed_round_keeps_the_base_and_the_campaign_goes_on() -> None:
    fleet = Fleet()
    fleet.get_base_0()
    fleet.everybody(0, 50)
    fleet.tick()
    for agent in AGENTS:
        fleet.answer(agent)
    fleet.tick()
    summary = RoundSummary(
        round=1, kind="train", members=list(AGENTS), error="too few replies",
        replies=[accepted("arm-1", 0)],
    )  # fmt: skip
    fleet.campaign.on_trained(summary, None, fleet.now)
    assert fleet.state.phase is CampaignPhase.WAITING
    assert fleet.state.round == 0
    assert fleet.state.windows[-1].outcome == "too few replies"
    assert not fleet.state.candidates
    assert fleet.state.merged_bases == {}, "what was accepted went into no base"


def test_a_latecomer_gets_the_base_between_windows() -> None:
    fleet = Fleet(open_when="interval")
    fleet.get_base_0()
    fleet.status("arm-1", 0, 50)
    fleet.status("arm-2", 0, 50)
    fleet.status("arm-3", None)
    assert not rounds(fleet.tick(1.0)), "its status may be older than the base"
    fleet.everybody(0, 50)
    fleet.status("arm-3", None)
    (order,) = rounds(fleet.tick(6.0))
    assert (order.kind, order.members) == ("install", ("arm-3",))


def test_a_robot_that_worked_on_the_last_base_is_not_given_the_new_one_before_it_handed_over() -> (
    None
):
    fleet = Fleet(open_when="interval")
    fleet.get_base_0()
    fleet.everybody(0, 50)
    fleet.tick(10.0)
    for agent in ("arm-1", "arm-2"):
        fleet.answer(agent)
    fleet.answer("arm-3", decision="decline")
    fleet.tick()
    fleet.trained(1, ("arm-1", "arm-2"))
    for agent in ("arm-1", "arm-2"):
        fleet.status(agent, 1, 5)
    fleet.status("arm-3", 0, 80)
    assert not rounds(fleet.tick(8.0))
    fleet.everybody(1, 50)
    fleet.tick(3.0)
    assert fleet.answer("arm-3", base=0, steps=80) is None
    assert fleet.answer("arm-1", base=0, steps=80) is Ineligible.MERGED


def test_a_release_that_is_worse_than_the_last_is_refused_and_recorded() -> None:
    fleet = Fleet()
    fleet.get_base_0()
    fleet.train_round(1)
    fleet.judged(1, 5.0)
    fleet.tick()
    fleet.released()
    fleet.train_round(2)
    fleet.judged(2, 5.6)
    actions = fleet.tick()
    (note,) = notes(actions, "release_refused")
    assert note["round"] == 2 and "1.120 times the last release's" in note["reason"]
    assert [release.version for release in fleet.state.releases] == [1]
    fleet.train_round(3)
    fleet.judged(3, 4.0)
    fleet.tick()
    fleet.released()
    assert [(r.version, r.round) for r in fleet.state.releases] == [(1, 1), (2, 3)]


def test_a_release_waits_for_all_reports_until_the_deadline() -> None:
    fleet = Fleet()
    fleet.get_base_0()
    fleet.train_round(1)
    fleet.judged(1, 5.0, ("arm-1", "arm-2"))
    assert ExportRelease() not in fleet.tick(29.0)
    assert ExportRelease() in fleet.tick(1.0)
    assert fleet.state.export is not None and not fleet.state.export.evaluation.complete


def test_nobody_reported_nothing_is_released() -> None:
    fleet = Fleet()
    fleet.get_base_0()
    fleet.train_round(1)
    (note,) = notes(fleet.tick(31.0), "release_refused")
    assert note["reason"].startswith("0 robots of 3 reported")


def test_a_failed_export_is_a_refusal_and_the_number_is_used_by_the_next() -> None:
    fleet = Fleet()
    fleet.get_base_0()
    fleet.train_round(1)
    fleet.judged(1, 5.0)
    fleet.tick()
    fleet.campaign.on_exported("parity failed", fleet.now)
    assert fleet.state.refused[-1].reason == "parity failed"
    fleet.train_round(2)
    fleet.judged(2, 5.0)
    fleet.tick()
    assert fleet.state.export is not None and fleet.state.export.version == 1


def restart(fleet: Fleet) -> tuple[Fleet, list[Action]]:
    """A new coordinator on the state that the killed one had written."""
    text = fleet.state.model_dump_json()
    again = Fleet(CampaignState.model_validate_json(text), open_when="ready")
    again.now = fleet.now + 5.0
    return again, again.campaign.resume(again.now)


def test_killed_while_gathering_statistics() -> None:
    fleet = Fleet()
    fleet.everybody()
    fleet.tick()
    assert fleet.state.phase is CampaignPhase.STATISTICS
    again, _ = restart(fleet)
    again.everybody()
    assert [order.kind for order in rounds(again.tick())] == ["statistics"]


def test_killed_while_building() -> None:
    fleet = Fleet()
    fleet.everybody()
    fleet.tick()
    summary = RoundSummary(round=0, kind="statistics", members=list(AGENTS))
    fleet.campaign.on_statistics(summary, {agent: {} for agent in AGENTS}, fleet.now)
    fleet.tick()
    again, _ = restart(fleet)
    assert again.tick() == [BuildBase()]


def test_killed_while_installing() -> None:
    fleet = Fleet()
    fleet.everybody()
    fleet.tick()
    summary = RoundSummary(round=0, kind="statistics", members=list(AGENTS))
    fleet.campaign.on_statistics(summary, {agent: {} for agent in AGENTS}, fleet.now)
    fleet.tick()
    fleet.campaign.on_built(built(), fleet.now)
    fleet.tick()
    again, _ = restart(fleet)
    again.everybody()
    assert [order.kind for order in rounds(again.tick())] == ["install"]


@pytest.mark.parametrize("joined", [0, 3])
def test_killed_in_a_window_the_fleet_hears_that_it_is_closed_and_gets_another(joined: int) -> None:
    fleet = Fleet()
    fleet.get_base_0()
    fleet.everybody(0, 50)
    fleet.tick()
    for agent in AGENTS[:joined]:
        fleet.answer(agent)
    fleet.tick()
    again, actions = restart(fleet)
    assert [each.closed for each in actions if isinstance(each, Announce)] == [True]
    assert again.state.windows[-1].outcome == "the coordinator was restarted"
    again.everybody(0, 50)
    again.tick()
    assert again.state.phase is CampaignPhase.JOINING
    assert again.state.round == 0


def test_killed_while_exporting() -> None:
    fleet = Fleet()
    fleet.get_base_0()
    fleet.train_round(1)
    fleet.judged(1, 5.0)
    fleet.tick()
    again, _ = restart(fleet)
    assert ExportRelease() in again.tick()
    again.released()
    assert [release.version for release in again.state.releases] == [1]


def test_killed_while_waiting_for_reports() -> None:
    fleet = Fleet()
    fleet.get_base_0()
    fleet.train_round(1)
    fleet.judged(1, 5.0, ("arm-1",))
    fleet.tick()
    again, _ = restart(fleet)
    again.judged(1, 5.0, ("arm-2", "arm-3"))
    assert ExportRelease() in again.tick()
    assert again.state.export is not None
    evaluation = again.state.export.evaluation
    assert evaluation.reports == again.state.held_out[digest(1)]
    assert (evaluation.action_mae, evaluation.complete) == (5.0, True)


def test_an_evaluation_on_an_episode_that_was_trained_on_is_refused_by_name() -> None:
    fleet = Fleet()
    fleet.get_base_0()
    fleet.train_round(1)
    leaked = report(1.0, first=700)
    fleet.campaign.on_episodes({"arm-2": [leaked.episodes[0].key]})
    fleet.status("arm-1", 1, held_out={digest(1): leaked})
    fleet.status("arm-2", 1, held_out={digest(1): report(1.0, first=10)})
    fleet.tick(40.0)
    line = (
        "the evaluation by arm-1 is refused: "
        f"its held-out episode {leaked.episodes[0].key} was trained on by arm-2"
    )
    assert Note("evaluation_refused", {"reason": line}) in fleet.actions
    (refused,) = fleet.state.refused
    assert refused.reason.startswith("1 robots of 3 reported")
    assert refused.reason.endswith(line)
    assert list(fleet.state.held_out[digest(1)]) == ["arm-2"]


def test_a_candidate_is_compared_with_what_robots_said_last_of_the_last_release() -> None:
    fleet = Fleet()
    fleet.get_base_0()
    fleet.train_round(1)
    fleet.judged(1, 5.0)
    fleet.tick()
    fleet.released()
    fleet.judged(1, 1.0, ("arm-3",))
    fleet.train_round(2)
    fleet.judged(2, 5.0)
    (note,) = notes(fleet.tick(), "release_refused")
    assert note["reason"].startswith("arm-3 alone refuses")


def test_errors_by_episode_are_kept_only_where_a_candidate_may_be_compared() -> None:
    fleet = Fleet(rounds=9)
    fleet.get_base_0()
    for number in range(1, 8):
        fleet.train_round(number)
        fleet.judged(number, 5.0)
        fleet.tick()
        if number < 3:
            fleet.released()
        else:
            fleet.campaign.on_exported("parity failed", fleet.now)
    fleet.state.trim()
    kept = [n for n in range(1, 8) if fleet.state.held_out[digest(n)]["arm-1"].episodes]
    assert kept == [2, 4, 5, 6, 7], "the last release and the newest bases"
    first, last = fleet.state.releases
    assert not first.evaluation.reports["arm-1"].episodes
    assert last.evaluation.reports["arm-1"].episodes
    assert fleet.state.held_out[digest(1)]["arm-1"].action_mae == 5.0


def test_without_a_data_plane_no_round_is_begun() -> None:
    fleet = Fleet()
    fleet.campaign.data_plane = False
    fleet.everybody()
    assert not fleet.tick() and not fleet.tick(10.0)
