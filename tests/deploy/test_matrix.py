"""The matrix: what the numbers mean, and that every cell is run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_policy import write_policy

from deploy.closed_loop.cli import main
from deploy.closed_loop.errors import CannotTry
from deploy.closed_loop.matrix import (
    EvaluationMatrix,
    MatrixCell,
    action_error_deg,
    summarise,
)
from deploy.closed_loop.matrix_file import read_matrix_file
from protocol.trials import SuccessRate, wilson_interval


def cell(robot: str, task: str, successes: int, *, seen: bool, policy: str = "p") -> MatrixCell:
    low, high = wilson_interval(successes, 10)
    return MatrixCell(
        policy=policy,
        round=4,
        robot=robot,
        task=task,
        seen=seen,
        success=SuccessRate(
            trials=10,
            successes=successes,
            rate=successes / 10,
            low=low,
            high=high,
            success_s=3.0 if successes else None,
        ),
        action_error_deg={"shoulder_pan.pos": float(successes)},
    )


def test_a_summary_is_of_means_over_cells() -> None:
    cells = [
        cell("arm-1", "lift", 10, seen=True),
        cell("arm-2", "lift", 6, seen=True),
        cell("arm-1", "stack", 4, seen=False),
        cell("arm-2", "stack", 2, seen=False),
        cell("arm-3", "lift", 3, seen=False),
        cell("arm-1", "lift", 5, seen=True, policy="other"),
    ]
    first, second = summarise(cells)
    assert (first.policy, first.round) == ("p", 4)
    assert first.seen == pytest.approx(0.8)
    assert first.unseen == pytest.approx(0.3)
    assert first.generalisation == pytest.approx(0.375)
    assert first.by_task == pytest.approx({"lift": 19 / 30, "stack": 0.3})
    assert first.by_robot == pytest.approx({"arm-1": 0.7, "arm-2": 0.4, "arm-3": 0.3})
    assert first.cross_task == pytest.approx((19 / 30 + 0.3) / 2)
    assert first.action_error_deg == pytest.approx({"shoulder_pan.pos": 5.0})
    assert (second.policy, second.seen, second.unseen) == ("other", 0.5, None)
    assert second.generalisation is None


def test_where_nothing_seen_succeeds_there_is_no_generalisation() -> None:
    (row,) = summarise([cell("a", "lift", 0, seen=True), cell("b", "lift", 0, seen=False)])
    assert (row.seen, row.unseen, row.generalisation) == (0.0, 0.0, None)


def test_an_action_error_is_beside_the_experts_actions_of_the_same_ticks() -> None:
    expert = np.arange(24, dtype=np.float32)[:, None] * np.ones(2, np.float32)
    degrees = np.array([1.0, -2.0])

    def off_by(amount: float) -> np.ndarray | None:
        def predict(tick: int) -> np.ndarray:
            rows = np.arange(tick, tick + 10, dtype=np.float32)[:, None]
            return rows * np.ones(2, np.float32) + np.float32(amount)

        return action_error_deg(predict, expert, degrees, 7)

    np.testing.assert_allclose(off_by(0.0), [0.0, 0.0])
    np.testing.assert_allclose(off_by(-1.5), [1.5, 3.0])
    assert action_error_deg(lambda _tick: None, expert, degrees, 7) is None


PLAN = """
trials = 2
demonstrations = 1
[[policy]]
name = "round-1"
round = 1
folder = "one"
[[policy]]
name = "round-2"
round = 2
folder = "two"
[[robot]]
name = "arm-1"
sectors = ["left"]
[[robot]]
name = "arm-9"
seed = 9
seen = false
[[task]]
name = "lift"
"""


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    write_policy(tmp_path / "one", version=1)
    write_policy(tmp_path / "two", version=2)
    path = tmp_path / "matrix.toml"
    path.write_text(PLAN)
    return path


def test_every_policy_is_tried_on_every_robot_at_every_task(
    plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--matrix", str(plan), "--json", "-"]) == 0
    out, error = capsys.readouterr()
    matrix = EvaluationMatrix.model_validate_json(out)
    assert [(each.policy, each.robot, each.seen) for each in matrix.cells] == [
        ("round-1", "arm-1", True),
        ("round-1", "arm-9", False),
        ("round-2", "arm-1", True),
        ("round-2", "arm-9", False),
    ]
    assert [row.round for row in matrix.policies] == [1, 2]
    assert error.count("\n") == 4, "a line a cell"
    errors = matrix.cells[0].action_error_deg
    assert errors is not None and len(errors) == 6
    assert 5.0 < errors["shoulder_lift.pos"] < 100.0, "the tiny policy stays where it is"


def test_the_table_names_every_policy(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--matrix", str(plan)]) == 0
    out = capsys.readouterr().out
    assert "round-1" in out and "round-2" in out and "unseen" in out


@pytest.mark.parametrize(
    ("before", "after", "names"),
    [
        ('name = "lift"', 'name = "juggle"', "juggle"),
        ('folder = "two"', 'folder = "three"', "three"),
        ('["left"]', '["north"]', "north"),
        ('name = "round-2"', 'name = "round-1"', "name of another"),
        ("seed = 9", "sead = 9", "sead"),
        ("trials = 2", "trials = 0", "trials"),
        ("[[task]]", "[[task]", "not TOML"),
    ],
)
def test_a_wrong_file_is_one_line_before_anything_is_run(
    plan: Path, capsys: pytest.CaptureFixture[str], before: str, after: str, names: str
) -> None:
    plan.write_text(PLAN.replace(before, after))
    assert main(["--matrix", str(plan), "--json", "-"]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1
    assert names in error


def test_a_file_beyond_its_size_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "big.toml"
    path.write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(CannotTry, match="bytes"):
        read_matrix_file(path)


def test_a_report_reads_back_as_it_was_written() -> None:
    cells = (cell("arm-1", "lift", 3, seen=True),)
    matrix = EvaluationMatrix(
        trials_a_cell=10, seed=1, latency_ms=60.0, cells=cells, policies=summarise(cells)
    )
    assert EvaluationMatrix.model_validate_json(matrix.model_dump_json()) == matrix
    assert json.loads(matrix.model_dump_json())["cells"][0]["seen"] is True
