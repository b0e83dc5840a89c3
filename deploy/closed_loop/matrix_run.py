"""Runs every cell of a matrix in the lockstep twin."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from agent.config import FEATURES
from deploy.closed_loop.chunked_policy import cameras_of, observed
from deploy.closed_loop.matrix import (
    Actions,
    EvaluationMatrix,
    MatrixCell,
    action_error_deg,
    summarise,
)
from deploy.closed_loop.matrix_file import MatrixPlan, MatrixPolicy, MatrixRobot, MatrixTask
from deploy.closed_loop.trials import (
    LoadedFolder,
    TrialSetup,
    load_folder,
    named_sectors,
    open_twin,
    try_policy,
)
from policy.release.folder import read_policy_folder
from robot_io.twin.lockstep import TwinObservation
from robot_io.twin.tasks import task_named
from robot_io.twin.trials import Demonstration, demonstrate
from robot_io.twin.variation import scene_of

_ASKED_EVERY_TICKS = 10


def run_matrix(
    plan: MatrixPlan, folder: Path, threads: int, progress: Callable[[MatrixCell], None]
) -> EvaluationMatrix:
    """All cells; ``progress`` hears of each. Policy folders are meant from ``folder``.

    Raises:
        CannotTry, TwinError, PolicyError: one line that names what does not fit.
    """
    _check(plan, folder)
    cells = []
    for cell in _cells(plan, folder, threads):
        cells.append(cell)
        progress(cell)
    return EvaluationMatrix(
        trials_a_cell=plan.trials,
        seed=plan.seed,
        latency_ms=plan.latency_ms,
        cells=tuple(cells),
        policies=summarise(cells),
    )


def _check(plan: MatrixPlan, folder: Path) -> None:
    """Refuse what is wrong in the last row before the first cell is run."""
    for policy in plan.policy:
        cameras_of(read_policy_folder(folder / policy.folder).spec)
    for task in plan.task:
        task_named(task.name)
    for robot in plan.robot:
        named_sectors(list(robot.sectors), plan.sector_count, scene_of(robot.seed))


def _cells(plan: MatrixPlan, folder: Path, threads: int) -> Iterator[MatrixCell]:
    for policy in plan.policy:
        loaded = load_folder(folder / policy.folder, threads)
        for robot in plan.robot:
            for task in plan.task:
                yield _run_cell(plan, policy, loaded, robot, task)


def _run_cell(
    plan: MatrixPlan,
    policy: MatrixPolicy,
    loaded: LoadedFolder,
    robot: MatrixRobot,
    task: MatrixTask,
) -> MatrixCell:
    setup = TrialSetup(
        task_named(task.name),
        named_sectors(list(robot.sectors), plan.sector_count, scene_of(robot.seed)),
        plan.trials,
        plan.seed,
        plan.latency_ms,
        robot.seed,
    )
    errors = _action_errors(loaded, setup, plan.demonstrations)
    return MatrixCell(
        policy=policy.name,
        round=policy.round,
        robot=robot.name,
        task=task.name,
        seen=robot.seen and task.seen,
        success=try_policy(loaded, setup).overall,
        action_error_deg=errors,
    )


def _action_errors(
    loaded: LoadedFolder, setup: TrialSetup, demonstrations: int
) -> dict[str, float] | None:
    """The policy beside the expert on the layouts of the first trials."""
    found = []
    with open_twin(loaded, setup.task, setup.robot_seed) as twin:
        for number in range(demonstrations):
            shown = demonstrate(twin, setup.layout(number), setup.seed + number)
            predict = partial(_predict, loaded, shown, setup.task.words_for(setup.seed + number))
            found.append(
                action_error_deg(predict, shown.action, twin.degrees_a_unit, _ASKED_EVERY_TICKS)
            )
    told = [each for each in found if each is not None]
    if not told:
        return None
    return dict(zip(FEATURES, np.mean(told, axis=0).tolist(), strict=True))


def _predict(loaded: LoadedFolder, shown: Demonstration, words: str, tick: int) -> Actions | None:
    images = {name: pictures[tick] for name, pictures in shown.images.items()}
    observation = TwinObservation(
        tick, shown.state[tick], shown.environment[tick], np.full(3, np.nan), images
    )
    inputs = observed(loaded.folder.spec, observation)
    return None if inputs is None else loaded.model.infer(inputs, words)
