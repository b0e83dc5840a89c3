"""Trials of one policy at one task, on one robot's scene: the shell around the lockstep twin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from agent.config import ControlConfig
from deploy.closed_loop.chunked_policy import ChunkedPolicy, cameras_of
from deploy.closed_loop.errors import CannotTry
from policy.release.folder import PolicyFolder, read_policy_folder
from policy.release.trial import load_graph
from policy.session import OnnxPolicy
from protocol.trials import TrialRecord, TrialsReport, success_rate
from robot_io.calibration import Vector
from robot_io.limits import Limits
from robot_io.twin.layout import WHOLE_TABLE, Layout, TableSector, table_sectors
from robot_io.twin.lockstep import LockstepTwin, TwinObservation
from robot_io.twin.ready_arm import ReadyArm
from robot_io.twin.scene import SceneCamera, build_scene, joint_ranges_rad
from robot_io.twin.tasks.task import TwinTask
from robot_io.twin.trials import run_trial
from robot_io.twin.variation import SceneVariation, scene_of

_CONTROL = ControlConfig()
# Joint units. The starts of 48 demonstrations over the wire lay 0.3 (RMS) beside the rest pose.
PARKED_SPREAD = 0.5


class TrialSource(Protocol):
    """Drives one trial."""

    @property
    def held_ticks(self) -> int:
        """On so many it had no action."""

    def __call__(self, observation: TwinObservation, tick: int) -> Vector:
        """The goal [6] of a tick."""


@dataclass(frozen=True, slots=True)
class TrialSetup:
    """What is tried where. ``trials`` in all, dealt out to the sectors in turn."""

    task: TwinTask
    sectors: tuple[TableSector, ...]
    trials: int
    seed: int
    latency_ms: float
    robot_seed: int | None = None

    def sector(self, number: int) -> TableSector:
        """Of the trial with this number."""
        return self.sectors[number % len(self.sectors)]

    def layout(self, number: int) -> Layout:
        """Of the trial with this number: from seed and number alone."""
        return self.task.draw(np.random.default_rng([self.seed, number]), self.sector(number))


@dataclass(frozen=True, slots=True)
class LoadedFolder:
    """A policy folder that was checked, and its graph."""

    folder: PolicyFolder
    model: OnnxPolicy


def load_folder(path: Path, threads: int) -> LoadedFolder:
    """Check the folder as an agent does, and load its graph.

    Raises:
        BadPolicyFolder, BadModelFile: one line that names what does not fit.
    """
    folder = read_policy_folder(path)
    return LoadedFolder(folder, load_graph(folder, threads))


def named_sectors(
    names: list[str], count: int, variation: SceneVariation
) -> tuple[TableSector, ...]:
    """The sectors of these names, or all ``count`` slices of the table.

    ``own`` is the robot's, ``whole`` the whole table.

    Raises:
        CannotTry: there is none of that name.
    """
    try:
        slices = table_sectors(count)
    except ValueError as error:
        raise CannotTry(str(error)) from error
    known = {sector.name: sector for sector in (*slices, WHOLE_TABLE)}
    known["own"] = variation.sector
    for name in names:
        if name not in known:
            raise CannotTry(f"no sector {name!r}; there are {', '.join(known)}")
    return tuple(known[name] for name in names) if names else slices


def open_twin(
    loaded: LoadedFolder,
    task: TwinTask,
    robot_seed: int | None,
    *,
    start_spread: float = PARKED_SPREAD,
    beside: Sequence[SceneCamera] = (),
) -> LockstepTwin:
    """The lockstep twin that gives what the policy sees, behind the agent's limits.

    ``beside`` are cameras that the policy does not have; ``start_spread`` as for the twin.

    Raises:
        CannotTry, BadCameraSpec: it cannot.
    """
    spec = loaded.folder.spec
    cameras = (*cameras_of(spec), *beside)
    calibration = ReadyArm(joint_ranges_rad(build_scene().model)).calibration
    limits = Limits.within(calibration, _CONTROL.max_step, _CONTROL.max_velocity_per_s)
    return LockstepTwin(
        cameras,
        control_hz=spec.fps,
        limits=limits,
        start_spread=start_spread,
        task=task,
        variation=scene_of(robot_seed),
    )


def try_policy(loaded: LoadedFolder, setup: TrialSetup) -> TrialsReport:
    """Every trial of the setup.

    Raises:
        CannotTry, TwinError: the twin cannot try this policy, or these placements.
        PolicyError: the graph cannot be run.
    """
    spec = loaded.folder.spec
    with open_twin(loaded, setup.task, setup.robot_seed) as twin:

        def new_source(words: str) -> ChunkedPolicy:
            return ChunkedPolicy(loaded.model, spec, setup.latency_ms, lambda: twin.sent, words)

        records = record_trials(twin, new_source, setup)
    return report_of(loaded.folder, setup, spec.fps, records)


def record_trials(
    twin: LockstepTwin, new_source: Callable[[str], TrialSource], setup: TrialSetup
) -> tuple[TrialRecord, ...]:
    """The trials of the setup on a twin of its task and scene; a source is told the words."""
    return tuple(_record_trial(twin, new_source, setup, number) for number in range(setup.trials))


def report_of(
    folder: PolicyFolder, setup: TrialSetup, control_hz: float, records: tuple[TrialRecord, ...]
) -> TrialsReport:
    """The records with their rates. Of at least one record."""
    names = dict.fromkeys(record.sector for record in records)
    return TrialsReport(
        policy_version=folder.manifest.version,
        policy_digest=folder.onnx_digest,
        task=setup.task.name,
        seed=setup.seed,
        robot_seed=setup.robot_seed,
        latency_ms=setup.latency_ms,
        control_hz=float(control_hz),
        overall=success_rate(records),
        sectors={
            name: success_rate([record for record in records if record.sector == name])
            for name in names
        },
        trials=records,
    )


def _record_trial(
    twin: LockstepTwin, new_source: Callable[[str], TrialSource], setup: TrialSetup, number: int
) -> TrialRecord:
    seed, layout = setup.seed + number, setup.layout(number)
    words = setup.task.words_for(seed)
    sources: list[TrialSource] = []

    def source() -> TrialSource:
        sources.append(new_source(words))
        return sources[-1]

    trial = run_trial(twin, source, layout, seed)
    moved = next(place for place in layout if not place.parked)
    return TrialRecord(
        number=number,
        seed=seed,
        sector=setup.sector(number).name,
        x_m=moved.x_m,
        y_m=moved.y_m,
        yaw_rad=moved.yaw_rad,
        words=words,
        succeeded=trial.succeeded,
        seconds=trial.ticks / twin.control_hz,
        held_ticks=sources[0].held_ticks,
    )
