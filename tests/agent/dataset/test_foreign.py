"""Datasets that somebody else recorded: read as they are, refused where they lie."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import foreign_datasets as foreign
import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.dataset.errors import BadForeignDataset, BadImportPlan, HubUnreachable
from agent.dataset.foreign.hub import locate
from agent.dataset.foreign.joints import CONVENTIONS, convention_for, to_ours
from agent.dataset.foreign.layout import ForeignDataset
from agent.dataset.foreign.pictures import pictures
from agent.dataset.foreign.plan import read_plan, shipped_plans


@pytest.fixture(scope="module", params=["v2.1", "v3.0", "pictures in rows"])
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("foreign") / "dataset"
    if request.param == "v2.1":
        return foreign.write_v21(folder)
    dtype = "video" if request.param == "v3.0" else "image"
    return foreign.write_v30(folder, names=foreign.OLD_NAMES, dtype=dtype)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return foreign.write_v21(tmp_path / "old", lengths=(5, 4))


def test_every_number_and_every_picture_of_every_episode_comes_out(root: Path) -> None:
    dataset = ForeignDataset(root)
    assert len(dataset) == 2
    assert dataset.camera_keys == ("observation.images.top", "observation.images.wrist")
    for episode in dataset.episodes():
        state, action = foreign.numbers(episode.index, (12, 9)[episode.index])
        assert np.array_equal(episode.state, state)
        assert np.array_equal(episode.action, action)
        assert episode.task == foreign.TASKS[episode.index]
        for place, key in enumerate(dataset.camera_keys):
            shown = list(pictures(episode, key, foreign.FPS))
            assert len(shown) == episode.frames
            for tick, picture in enumerate(shown):
                wanted = foreign.frame(episode.index, tick, place)
                assert np.abs(picture.astype(int) - wanted).max() <= 2


def test_a_picture_that_is_missing_is_told_of(root: Path) -> None:
    dataset = ForeignDataset(root)
    episode = list(dataset.episodes())[-1]
    longer = type(episode)(**{**vars(episode), "state": np.zeros((99, 6), np.float32)})
    with pytest.raises(BadForeignDataset, match="has 9 pictures for 99 frames"):
        list(pictures(longer, dataset.camera_keys[0], foreign.FPS))


def _change_info(root: Path, **changes: object) -> None:
    path = root / "meta" / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"codebase_version": "v1.6"}, "codebase_version"),
        ({"fps": 0}, "fps"),
        ({"total_episodes": 3}, "2 episodes are described, info.json says 3"),
        ({"data_path": "../../{episode_index:0999999999d}"}, "not lie where LeRobot puts them"),
        ({"video_path": "/etc/passwd"}, "not lie where LeRobot puts them"),
        ({"features": {}}, "it has no observation.state"),
        ({"features": {"observation.images.../../x": {"dtype": "video"}}}, "may not be called"),
    ],
)
def test_a_description_that_is_not_what_it_should_be_is_refused(
    old: Path, changes: dict[str, object], complaint: str
) -> None:
    _change_info(old, **changes)
    with pytest.raises(BadForeignDataset, match=complaint):
        len(ForeignDataset(old))


def test_rows_that_lack_are_told_of_with_the_episode(old: Path) -> None:
    path = old / "data" / "chunk-000" / "episode_000001.parquet"
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(path).slice(0, 3), path)
    with pytest.raises(BadForeignDataset, match="episode 1 has 3 rows, its description says 4"):
        list(ForeignDataset(old).episodes())


def test_a_number_that_is_none_is_refused(old: Path) -> None:
    path = old / "data" / "chunk-000" / "episode_000000.parquet"
    table = pyarrow.parquet.read_table(path)
    bad = np.zeros((5, 6), np.float32)
    bad[2, 1] = np.nan
    column = pyarrow.FixedSizeListArray.from_arrays(bad.ravel(), 6)
    place = table.column_names.index("action")
    pyarrow.parquet.write_table(table.set_column(place, "action", column), path)
    with pytest.raises(BadForeignDataset, match=r"episode 0: action has a number .* not finite"):
        list(ForeignDataset(old).episodes())


@pytest.mark.parametrize("name", ["meta/episodes.jsonl", "meta/info.json"])
@given(data=st.data())
def test_no_bytes_of_a_description_do_more_than_refuse(
    name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.getbasetemp() / "fuzzed" / name.replace("/", "-")
    if not root.exists():
        foreign.write_v21(root, lengths=(2,))
        shutil.copy(root / name, root / "whole")
    content = bytearray((root / "whole").read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place : place + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    (root / name).write_bytes(content)
    with contextlib.suppress(BadForeignDataset):
        list(ForeignDataset(root).episodes())


def test_video_that_is_cut_is_refused(old: Path) -> None:
    path = old / "videos" / "chunk-000" / "observation.images.top" / "episode_000000.mp4"
    path.write_bytes(path.read_bytes()[:200])
    episode = next(ForeignDataset(old).episodes())
    with pytest.raises(BadForeignDataset, match="cannot be decoded"):
        list(pictures(episode, "observation.images.top", foreign.FPS))


def test_the_zero_of_the_old_convention_is_the_arm_stretched_out() -> None:
    theirs = np.array([[0.0, 0.0, 0.0, 0.0, 0.0, 50.0]], np.float32)
    ours = to_ours(theirs, foreign.OLD_NAMES, "before-777")
    assert ours.tolist() == [[0.0, 90.0, -90.0, 0.0, 0.0, 50.0]]


def test_joints_are_found_by_name_whatever_their_order() -> None:
    names = foreign.NEW_NAMES[::-1]
    theirs = np.arange(6, dtype=np.float32)[None]
    assert to_ours(theirs, names, "degrees").tolist() == [[5.0, 4.0, 3.0, 2.0, 1.0, 0.0]]


def test_names_tell_the_old_convention_and_leave_the_new_units_open() -> None:
    assert convention_for(foreign.OLD_NAMES) == "before-777"
    with pytest.raises(BadForeignDataset, match="--convention degrees or --convention normalised"):
        convention_for(foreign.NEW_NAMES)
    with pytest.raises(BadForeignDataset, match="no convention is known"):
        convention_for(("a", "b"))


def test_a_wrong_convention_shows_by_positions_that_no_joint_has() -> None:
    theirs = np.array([[0.0, -150.0, 0.0, 0.0, 0.0, 0.0]], np.float32)
    with pytest.raises(BadForeignDataset, match=r"shoulder_lift.pos would go from 240"):
        to_ours(theirs, foreign.OLD_NAMES, "before-777")


@given(st.sampled_from(sorted(CONVENTIONS)), st.lists(st.floats(-50, 50), min_size=5, max_size=5))
def test_every_convention_can_be_undone(convention: str, body: list[float]) -> None:
    lines = CONVENTIONS[convention]
    theirs = np.array([[*body, 40.0]], np.float32)
    ours = to_ours(theirs, tuple(line.theirs for line in lines.values()), convention)
    back = [(v - line.offset) / line.scale for v, line in zip(ours[0], lines.values(), strict=True)]
    assert np.allclose(back, theirs[0], atol=1e-4)


def test_every_shipped_plan_reads_and_keeps_evaluation_apart() -> None:
    assert "so100-field.toml" in shipped_plans()
    for name in shipped_plans():
        plan = read_plan(name.removesuffix(".toml"))
        assert len(plan.robots) == 4
        assert len(plan.evaluation) == 6


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('[robots.a]\ndataset = "x/y"\n[evaluation.b]\ndataset = "x/y"', "evaluation.b is trained"),
        ('[robots.a]\ndataset = "x/y"\n[evaluation.a]\ndataset = "x/z"', "both a robot's and"),
        ('[robots.a]\ndataset = "x/y"\nconvention = "mine"', "convention"),
        ("[robots.a", "toml"),
    ],
)
def test_a_plan_that_cannot_be_used_is_told_of_in_one_line(
    tmp_path: Path, text: str, complaint: str
) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    with pytest.raises(BadImportPlan, match=complaint) as caught:
        read_plan(str(path))
    assert "\n" not in str(caught.value)


def test_a_row_that_is_not_there_is_told_of_with_those_that_are() -> None:
    with pytest.raises(BadImportPlan, match="no row 'juggling'; it has stacking, sorting"):
        read_plan("so100-field").row("juggling")


def test_a_hub_that_is_not_there_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnreachable, match="the hub cannot be reached") as caught:
        locate("nobody/nothing-at-all", None)
    assert "\n" not in str(caught.value)


def test_what_is_neither_a_folder_nor_a_repository_is_refused() -> None:
    with pytest.raises(BadForeignDataset, match="neither a folder nor the id of a repository"):
        locate("no-such-folder", None)
