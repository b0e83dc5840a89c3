"""The matrix of rounds and robots shows what robots reported, and on whose data a base is."""

from __future__ import annotations

import pytest
from held_out_reports import report

from coordinator.campaign.evaluation import evaluate_rounds
from coordinator.campaign.reply import AnyReply, ContributionReply, Reply
from coordinator.campaign.state import Base, CampaignState, RoundSummary
from coordinator.cli import evaluation_lines
from protocol.messages import HeldOutReport

NAMES = ["shoulder_pan.pos", "gripper.pos"]


def digest(number: int) -> str:
    return f"{number:064x}"


def contributed(agent: str, accepted: bool = True) -> ContributionReply:
    return ContributionReply(
        agent_id=agent, accepted=accepted, base_digest=digest(0), base_round=0, steps=10,
        examples=100, loss=0.1, sequence=1,
    )  # fmt: skip


def campaign(
    held_out: dict[int, dict[str, HeldOutReport]], rounds: dict[int, list[AnyReply]]
) -> CampaignState:
    last = max([*held_out, *rounds])
    return CampaignState(
        spec={"action_names": NAMES},
        bases=[Base(round=n, digest=digest(n), weights=f"{n}") for n in range(last + 1)],
        held_out={digest(number): reports for number, reports in held_out.items()},
        rounds=[
            RoundSummary(round=number, kind="train", members=[], replies=replies)
            for number, replies in rounds.items()
        ],
    )


def test_a_row_holds_each_robots_error_and_its_joints_by_name() -> None:
    reports = {"arm-1": report(2.0, joints=(1.0, 3.0)), "arm-2": report(4.0, joints=(2.0, 6.0))}
    (row,) = evaluate_rounds(campaign({1: reports}, {}), 50)
    assert row.round == 1
    assert row.robots["arm-1"].joints == {"shoulder_pan.pos": 1.0, "gripper.pos": 3.0}
    assert row.mean == 3.0
    assert row.joints == {"shoulder_pan.pos": 1.5, "gripper.pos": 4.5}


def test_the_mean_is_over_robots_whatever_their_frames() -> None:
    reports = {"arm-1": report(2.0, frames=1), "arm-2": report(4.0, frames=10_000)}
    (row,) = evaluate_rounds(campaign({1: reports}, {}), 50)
    assert row.mean == 3.0


def test_generalisation_sets_robots_that_contributed_beside_those_that_never_did() -> None:
    reports = {agent: report(error) for agent, error in (("a", 1.0), ("b", 3.0), ("late", 8.0))}
    rounds: dict[int, list[AnyReply]] = {
        1: [
            contributed("a"),
            contributed("late", accepted=False),
            Reply(agent_id="b", accepted=False),
        ],
        2: [contributed("b")],
        3: [contributed("late")],
    }
    rows = evaluate_rounds(campaign(dict.fromkeys(range(4), reports), rounds), 50)
    assert [row.generalisation for row in rows] == [None, 1.0 / 5.5, 2.0 / 8.0, None]
    assert [agent for agent, robot in rows[1].robots.items() if robot.seen] == ["a"]


@pytest.mark.parametrize("joints", [(), (1.0,), (1.0, 2.0, 3.0)])
def test_joints_of_another_number_are_shown_as_none(joints: tuple[float, ...]) -> None:
    (row,) = evaluate_rounds(campaign({1: {"arm-1": report(2.0, joints=joints)}}, {}), 50)
    assert row.robots["arm-1"].joints == {} and row.joints == {}


def test_a_report_of_no_frames_and_a_base_of_no_report_make_no_row() -> None:
    state = campaign({1: {"arm-1": report([])}, 2: {"arm-1": report(1.0)}}, {})
    assert [row.round for row in evaluate_rounds(state, 50)] == [2]


def test_the_newest_rows_are_shown_oldest_first() -> None:
    state = campaign({n: {"arm-1": report(1.0)} for n in range(9)}, {})
    assert [row.round for row in evaluate_rounds(state, 3)] == [6, 7, 8]


def test_people_see_a_line_a_round_and_the_last_rounds_joints() -> None:
    reports = {"arm-1": report(2.0, joints=(1.0, 3.0))}
    rows = evaluate_rounds(campaign({1: reports, 2: reports | {"arm-2": report(4.0)}}, {}), 50)
    lines = evaluation_lines([row.model_dump(mode="json") for row in rows])
    assert [line.split() for line in lines] == [
        ["round", "arm-1", "arm-2", "mean", "elsewhere"],
        ["1", "2", "-", "2", "-"],
        ["2", "2", "4", "3", "-"],
        ["shoulder_pan.pos:", "1"],
        ["gripper.pos:", "3"],
    ]
    assert evaluation_lines([]) == ["no robot has reported a held-out error yet"]
