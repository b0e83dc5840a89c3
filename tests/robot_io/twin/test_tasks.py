"""Each task of the twin: its placements can be drawn, its expert does it, and no one else."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

from robot_io.twin.errors import NoSuchTask, OutOfReach
from robot_io.twin.layout import (
    PARKED,
    WHOLE_TABLE,
    CubePlacement,
    Layout,
    TableSector,
    TableState,
    table_sectors,
)
from robot_io.twin.lockstep import LockstepTwin
from robot_io.twin.objects import CUBE_SIZE_M, MAX_CUBES, MAX_MARKS
from robot_io.twin.scene import SceneCamera, build_scene
from robot_io.twin.shared import N_POSE
from robot_io.twin.tasks import TASKS, task_named
from robot_io.twin.tasks.task import TwinTask
from robot_io.twin.trials import Demonstration, demonstrate, run_trial

DRAWS = 12
SECTORS = table_sectors(3)


@pytest.fixture(scope="module", params=TASKS.values(), ids=lambda task: task.name)
def twin(request: pytest.FixtureRequest) -> Iterator[LockstepTwin]:
    with LockstepTwin(task=request.param) as twin:
        yield twin


def drawn(task: TwinTask, seed: int, sector: TableSector = WHOLE_TABLE) -> Layout:
    return task.draw(np.random.default_rng(seed), sector)


def demonstrations(twin: LockstepTwin) -> list[Demonstration]:
    return [
        demonstrate(twin, drawn(twin.task, seed, SECTORS[seed % 3]), seed) for seed in range(DRAWS)
    ]


def test_the_expert_does_nearly_every_drawn_layout(twin: LockstepTwin) -> None:
    done = demonstrations(twin)
    assert sum(each.succeeded for each in done) >= 0.95 * DRAWS
    assert all(len(each.state) / twin.control_hz < twin.task.trial_s for each in done)


def test_an_arm_that_holds_still_does_no_task(twin: LockstepTwin) -> None:
    sent = twin.sent
    layout = drawn(twin.task, 1)
    trial = run_trial(twin, lambda: lambda _observation, _tick: sent, layout, 1, duration_s=1.0)
    assert not trial.succeeded
    assert trial.ticks == 30


def test_a_hand_that_goes_where_nothing_lies_does_no_task(twin: LockstepTwin) -> None:
    elsewhere = drawn(twin.task, 2, SECTORS[0])
    twin.reset(elsewhere, 2)
    plan = twin.demonstration()

    def source(_observation: object, tick: int) -> np.ndarray:
        return twin.leader_units(plan.at(tick / twin.control_hz)[0])

    assert not run_trial(twin, lambda: source, drawn(twin.task, 5, SECTORS[2]), 5).succeeded


def test_a_layout_lies_in_its_sector_and_equal_seeds_give_equal_ones(twin: LockstepTwin) -> None:
    for seed in range(50):
        sector = SECTORS[seed % 3]
        layout = drawn(twin.task, seed, sector)
        assert layout == drawn(twin.task, seed, sector)
        moved = next(place for place in layout if not place.parked)
        azimuth = math.degrees(math.atan2(moved.y_m, moved.x_m))
        assert sector.azimuth_min_deg <= azimuth <= sector.azimuth_max_deg
    assert drawn(twin.task, 1) != drawn(twin.task, 2)


def test_a_task_is_told_in_several_ways(twin: LockstepTwin) -> None:
    words = twin.task.words
    assert len(set(words)) == len(words) >= 3
    assert {twin.task.words_for(seed) for seed in range(60)} == set(words)


def test_what_a_task_has_fits_into_shared_memory(twin: LockstepTwin) -> None:
    objects = twin.task.objects
    assert len(objects.cubes) <= MAX_CUBES and len(objects.marks) <= MAX_MARKS
    scene = build_scene(objects=objects)
    data, other = scene.new_data(), scene.new_data()
    for number, placement in enumerate(drawn(twin.task, 3)):
        scene.place(data, number, placement)
    pose = scene.pose(data)
    assert pose.shape == (N_POSE,)
    scene.set_pose(other, pose)
    np.testing.assert_array_equal(scene.pose(other), pose)


def test_every_object_is_seen_from_above(twin: LockstepTwin) -> None:
    camera = SceneCamera("overhead", 96, 72, 30)
    task = twin.task
    cubes = len(task.objects.cubes)
    far = (PARKED,) * cubes + task.start[cubes:]
    with LockstepTwin((camera,), task=task) as seeing:
        pictures = []
        for layout in (far, *(drawn(task, seed) for seed in range(6))):
            seeing.reset(layout)
            pictures.append(seeing.observe().images["overhead"].astype(int))
    assert all(np.abs(picture - pictures[0]).max() > 60 for picture in pictures[1:])


def test_layouts_that_do_not_fit_the_task_are_refused(twin: LockstepTwin) -> None:
    with pytest.raises(ValueError, match=twin.task.objects.names[-1]):
        twin.reset((*twin.task.start, CubePlacement(0.19, 0.0)))
    unreachable = (*twin.task.start[:-1], CubePlacement(0.45, 0.0))
    with pytest.raises(OutOfReach, match=r"mm off a cube at \(0.450, 0.000\)"):
        twin.reset(unreachable)


def test_an_unknown_task_is_one_line_with_those_there_are() -> None:
    with pytest.raises(NoSuchTask, match="'juggle'; it has lift, place, stack, sort, push"):
        task_named("juggle")


def lying(cube: tuple[float, ...], mark: tuple[float, float], **changes: float) -> TableState:
    return TableState(
        np.array([[*cube], [0.17, -0.1, CUBE_SIZE_M / 2]]),
        np.array([changes.get("speed", 0.0), 0.0]),
        np.array([0.08, CUBE_SIZE_M / 2]),
        np.array([mark]),
        np.array((cube[0], cube[1], cube[2] + changes.get("hand", 0.08))),
    )


HALF_M = CUBE_SIZE_M / 2


@pytest.mark.parametrize(
    ("task", "state", "done"),
    [
        ("place", lying((0.18, 0.10, HALF_M), (0.18, 0.11)), True),
        ("place", lying((0.18, 0.10, HALF_M), (0.18, 0.13)), False),
        ("place", lying((0.18, 0.10, HALF_M), (0.18, 0.10), hand=0.01), False),
        ("place", lying((0.18, 0.10, HALF_M), (0.18, 0.10), speed=0.1), False),
        ("place", lying((0.18, 0.10, 0.05), (0.18, 0.10)), False),
        ("stack", lying((0.175, -0.10, 3 * HALF_M), (0, 0)), True),
        ("stack", lying((0.19, -0.10, 3 * HALF_M), (0, 0)), False),
        ("stack", lying((0.17, -0.10, 3 * HALF_M), (0, 0), hand=0.01), False),
        ("push", lying((0.18, 0.10, HALF_M), (0.18, 0.10)), False),  # it was carried
    ],
)
def test_success_is_an_object_at_rest_in_its_place_without_a_hand(
    task: str, state: TableState, done: bool
) -> None:
    assert TASKS[task].succeeded(state) is done


@pytest.mark.parametrize(("colour", "mark"), [(0, 0), (1, 1)])
def test_the_colour_decides_the_mark(colour: int, mark: int) -> None:
    sort = TASKS["sort"]
    marks = [CubePlacement(0.15, 0.11), CubePlacement(0.15, -0.11)]
    with LockstepTwin(task=sort) as twin:
        for lies_on in (0, 1):
            cubes = [PARKED, PARKED]
            cubes[colour] = CubePlacement(marks[lies_on].x_m, marks[lies_on].y_m)
            twin.reset((*cubes, *marks))
            assert twin.succeeded is (lies_on == mark)


def test_sort_draws_either_colour() -> None:
    reds = [drawn(TASKS["sort"], seed)[1] == PARKED for seed in range(40)]
    assert 10 < sum(reds) < 30


@pytest.mark.parametrize("count", [0, 65])
def test_sectors_are_of_a_sensible_number(count: int) -> None:
    with pytest.raises(ValueError, match="1 to 64"):
        table_sectors(count)


@pytest.mark.parametrize("edges", [(10.0, 10.0), (20.0, 10.0), (-100.0, 0.0), (0.0, math.nan)])
def test_a_sector_grows_within_the_front(edges: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="azimuths grow"):
        TableSector("odd", *edges)
