"""`armada trials`: a policy folder in, one bounded report out, or one clear line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_policy import change_manifest, expected_chunk, tiny_spec, write_policy

from deploy.closed_loop.chunked_policy import ChunkedPolicy, observed
from deploy.closed_loop.cli import main
from deploy.closed_loop.trials import (
    TrialSetup,
    load_folder,
    named_sectors,
    open_twin,
    record_trials,
    report_of,
)
from policy.spec import STATE, PolicySpec
from protocol.trials import parse_trials_report
from robot_io.twin.layout import WHOLE_TABLE, table_sectors
from robot_io.twin.lockstep import LockstepTwin, TwinObservation
from robot_io.twin.scene import SceneCamera
from robot_io.twin.tasks import TASKS
from robot_io.twin.variation import PLAIN, draw_variation

LIFT = TASKS["lift"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy(tmp_path_factory.mktemp("policies") / "3", version=3)


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy(tmp_path_factory.mktemp("policies") / "4", tiny_spec(camera=(24, 32)))


class ExpertChunks:
    """A model that knows the expert's plan: the chunk for the twin's present tick."""

    def __init__(self, twin: LockstepTwin) -> None:
        self._twin = twin
        self._plan = twin.demonstration()

    def infer(self, observation: Mapping[str, Any], task: str = "") -> np.ndarray:
        assert observation[STATE].shape == (6,)
        ticks = range(self._twin.tick, self._twin.tick + tiny_spec().chunk_size)
        return np.stack(
            [self._twin.leader_units(self._plan.at(t / self._twin.control_hz)[0]) for t in ticks]
        )


def setup(**changes: Any) -> TrialSetup:
    fields = {"task": LIFT, "sectors": table_sectors(3), "trials": 6, "seed": 5, "latency_ms": 60.0}
    return TrialSetup(**(fields | changes))


def test_an_expert_behind_the_agents_schedule_succeeds_and_is_reported(folder: Path) -> None:
    twin = LockstepTwin()

    def new_source(_words: str) -> ChunkedPolicy:
        return ChunkedPolicy(ExpertChunks(twin), tiny_spec(), 60.0, lambda: twin.sent)

    records = record_trials(twin, new_source, setup())
    report = report_of(load_folder(folder, 1).folder, setup(), 30.0, records)
    assert parse_trials_report(report.model_dump_json().encode()) == report
    assert report.overall.successes == 6
    assert 2.0 < (report.overall.success_s or 0.0) < 4.0
    assert {name: rate.trials for name, rate in report.sectors.items()} == {
        "right": 2,
        "centre": 2,
        "left": 2,
    }
    assert {record.held_ticks for record in records} == {2}, "60 ms are 1.8 ticks at 30 Hz"
    assert [record.seed for record in records] == list(range(5, 11))


@pytest.mark.parametrize(("latency_ms", "ticks"), [(0.0, 0), (1.0, 1), (100.0, 3), (101.0, 4)])
def test_a_chunk_is_played_as_late_as_stated_and_past_rows_are_skipped(
    latency_ms: float, ticks: int
) -> None:
    class FromState:
        def infer(self, observation: Mapping[str, Any], task: str = "") -> np.ndarray:
            return expected_chunk(tiny_spec(), observation[STATE])

    held = np.full(6, -7.0, np.float32)
    source = ChunkedPolicy(FromState(), tiny_spec(), latency_ms, lambda: held)
    goals = []
    for tick in range(ticks + 1):
        state = np.full(6, 0.0, np.float32)
        seen = TwinObservation(tick, state, np.zeros(2, np.float32), np.zeros(3))
        goals.append(source(seen, tick))
    assert all(np.array_equal(goal, held) for goal in goals[:-1])
    np.testing.assert_allclose(goals[-1], expected_chunk(tiny_spec(), state)[ticks])
    assert source.held_ticks == ticks


def test_a_policy_is_asked_in_the_words_of_its_trial() -> None:
    told = []

    class Listening:
        def infer(self, observation: Mapping[str, Any], task: str = "") -> np.ndarray:
            told.append(task)
            return expected_chunk(tiny_spec(), observation[STATE])

    with LockstepTwin((), task=LIFT) as twin:
        records = record_trials(
            twin,
            lambda words: ChunkedPolicy(Listening(), tiny_spec(), 0.0, lambda: twin.sent, words),
            setup(trials=2),
        )
    assert set(told) == {record.words for record in records} <= set(LIFT.words)


def test_while_the_cube_is_not_seen_the_policy_is_not_asked() -> None:
    class Refusing:
        def infer(self, observation: Mapping[str, Any], task: str = "") -> np.ndarray:
            raise AssertionError("asked without a place")

    held = np.ones(6, np.float32)
    source = ChunkedPolicy(Refusing(), tiny_spec(), 0.0, lambda: held)
    blind = TwinObservation(0, held, np.full(2, np.nan, np.float32), np.zeros(3))
    assert np.array_equal(source(blind, 0), held)


def test_an_arm_that_starts_parked_starts_so_whatever_the_seed(folder: Path) -> None:
    place = LIFT.draw(np.random.default_rng(0), WHOLE_TABLE)
    with open_twin(load_folder(folder, 1), LIFT, None, start_spread=0.0) as twin:
        parked, again = (twin.reset(place, seed).state for seed in (0, 1))
    with open_twin(load_folder(folder, 1), LIFT, None) as twin:
        moved = twin.reset(place, 0).state
    np.testing.assert_array_equal(parked, again)
    assert 0.1 < np.abs(moved - parked).max() < 1.0


def test_a_camera_beside_changes_nothing_that_the_policy_sees(seeing: Path) -> None:
    place = LIFT.draw(np.random.default_rng(0), WHOLE_TABLE)
    loaded = load_folder(seeing, 1)
    beside = SceneCamera("bystander", 640, 480, 30)
    pictures = []
    for cameras in ((), (beside,)):
        with open_twin(loaded, LIFT, None, beside=cameras) as twin:
            pictures.append(observed(loaded.folder.spec, twin.reset(place)))
    alone, watched = pictures
    assert alone is not None
    assert watched is not None
    assert alone.keys() == watched.keys()
    assert all(np.array_equal(alone[key], watched[key]) for key in alone)


def test_equal_seeds_try_the_same_places_whatever_the_policy(
    folder: Path, seeing: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = []
    for policy in (folder, folder, seeing):
        assert main([str(policy), "--trials", "3", "--seed", "9", "--json", "-"]) == 0
        reports.append(parse_trials_report(capsys.readouterr().out.encode()))
    assert reports[0] == reports[1]
    places = [[(trial.x_m, trial.y_m) for trial in report.trials] for report in reports]
    assert places[0] == places[2]
    assert reports[0].policy_digest != reports[2].policy_digest
    assert reports[0].policy_version == 3
    assert reports[0].overall.successes == 0, "the tiny policy lifts nothing"


def test_a_robots_own_scene_and_sector_are_told(
    seeing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.json"
    arguments = ["--robot-seed", "2", "--sector", "own", "--trials", "2", "--task", "place"]
    assert main([str(seeing), *arguments, "--json", str(path)]) == 0
    report = parse_trials_report(path.read_bytes())
    assert (report.robot_seed, report.task, list(report.sectors)) == (2, "place", ["own"])
    sector = draw_variation(2).sector
    for trial in report.trials:
        azimuth = np.degrees(np.arctan2(trial.y_m, trial.x_m))
        assert sector.azimuth_min_deg <= azimuth <= sector.azimuth_max_deg
    assert "0/2" in capsys.readouterr().out


def test_sectors_are_named() -> None:
    assert [sector.name for sector in named_sectors([], 5, PLAIN)] == ["s1", "s2", "s3", "s4", "s5"]
    assert named_sectors(["whole"], 3, PLAIN) == (WHOLE_TABLE,)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], "POLICY_DIR"),
        (["{policy}", "--matrix", "m.toml"], "POLICY_DIR"),
        (["{policy}", "--task", "juggle"], "lift, place, stack, sort, push"),
        (["{policy}", "--sector", "north"], "right, centre, left, whole, own"),
        (["{policy}", "--sector-count", "0"], "1 to 64"),
        (["{policy}", "--trials", "0"], "--trials"),
        (["{policy}", "--seed", str(2**53)], "--seed"),
        (["{policy}", "--latency-ms", "-1"], "--latency-ms"),
        (["/nowhere"], "/nowhere"),
        (["{broken}"], "broken"),
        (["{ceiling}"], "ceiling"),
        (["--matrix", "/nowhere.toml"], "/nowhere.toml"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_2(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    names: str,
) -> None:
    broken = write_policy(tmp_path / "broken")
    change_manifest(broken, spec={})
    ceiling = tiny_spec(camera=(24, 32)).to_json()
    ceiling["cameras"][0]["name"] = "ceiling"
    odd = write_policy(tmp_path / "ceiling", PolicySpec.from_json(ceiling))
    paths = {"policy": folder, "broken": broken, "ceiling": odd}
    assert main([argument.format(**paths) for argument in arguments]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1
    assert names in error
