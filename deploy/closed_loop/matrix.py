"""Policies by robots by tasks: what generalises, in numbers. Pure.

Terms: a cell is one policy on one robot's scene at one task. It is seen when robot and task are
both among those that the policy was trained on. All means are over cells, so that a cell with more
trials counts no more than another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from protocol.fields import Count, WireModel
from protocol.trials import Share, SuccessRate, TrialLabel

type Actions = NDArray[np.float32]

Degrees = Annotated[float, Field(ge=0.0, le=1e6)]


class MatrixCell(WireModel):
    """`action_error_deg`: mean absolute error of each joint, beside the expert's actions on the
    same observations; None where the policy could not be asked on any of them.
    """

    policy: TrialLabel
    round: Count | None
    robot: TrialLabel
    task: TrialLabel
    seen: bool
    success: SuccessRate
    action_error_deg: dict[str, Degrees] | None


class PolicySummary(WireModel):
    """One row a policy.

    cross_task: mean over the tasks of each one's mean success over the robots.
    generalisation: mean success of the unseen cells by that of the seen; None without either, or
    where nothing seen succeeds.
    """

    policy: TrialLabel
    round: Count | None
    seen: Share | None
    unseen: Share | None
    generalisation: Annotated[float, Field(ge=0.0)] | None
    cross_task: Share
    by_task: dict[TrialLabel, Share]
    by_robot: dict[TrialLabel, Share]
    action_error_deg: dict[str, Degrees] | None


class EvaluationMatrix(WireModel):
    """All cells, and a summary of each policy in the order in which they were given."""

    trials_a_cell: Annotated[int, Field(ge=1)]
    seed: Count
    latency_ms: Annotated[float, Field(ge=0.0)]
    cells: tuple[MatrixCell, ...]
    policies: tuple[PolicySummary, ...]


def action_error_deg(
    predict: Callable[[int], Actions | None],
    expert: Actions,
    degrees_a_unit: NDArray[np.float64],
    every_ticks: int,
) -> NDArray[np.float64] | None:
    """Mean absolute error of each joint [A], over all actions of chunks asked along one episode.

    ``predict`` gives the chunk [C, A] for the observation of a tick, or None; row i is compared
    with what the expert did i ticks later, as far as the episode goes. ``expert``: [T, A].
    """
    errors: list[NDArray[np.float64]] = []
    for tick in range(0, len(expert), every_ticks):
        chunk = predict(tick)
        if chunk is not None:
            done = expert[tick : tick + len(chunk)]
            errors.append(np.abs(chunk[: len(done)].astype(np.float64) - done))
    if not errors:
        return None
    mean: NDArray[np.float64] = np.concatenate(errors).mean(axis=0) * np.abs(degrees_a_unit)
    return mean


def summarise(cells: Sequence[MatrixCell]) -> tuple[PolicySummary, ...]:
    """A summary of each policy, in the order of its first cell."""
    names = dict.fromkeys(cell.policy for cell in cells)
    return tuple(_summary([cell for cell in cells if cell.policy == name]) for name in names)


def _summary(cells: Sequence[MatrixCell]) -> PolicySummary:
    seen = _mean(cell.success.rate for cell in cells if cell.seen)
    unseen = _mean(cell.success.rate for cell in cells if not cell.seen)
    by_task = _means_by([(cell.task, cell.success.rate) for cell in cells])
    told = [cell.action_error_deg for cell in cells if cell.action_error_deg is not None]
    return PolicySummary(
        policy=cells[0].policy,
        round=cells[0].round,
        seen=seen,
        unseen=unseen,
        generalisation=unseen / seen if seen and unseen is not None else None,
        cross_task=sum(by_task.values()) / len(by_task),
        by_task=by_task,
        by_robot=_means_by([(cell.robot, cell.success.rate) for cell in cells]),
        action_error_deg=_means_by([pair for each in told for pair in each.items()]) or None,
    )


def _mean(values: Iterable[float]) -> float | None:
    listed = list(values)
    return sum(listed) / len(listed) if listed else None


def _means_by(pairs: Sequence[tuple[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for name, _ in pairs)
    sums = {name: [value for other, value in pairs if other == name] for name in names}
    return {name: sum(values) / len(values) for name, values in sums.items()}
