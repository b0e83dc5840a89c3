"""Pictures out of real LeRobot datasets, by way of the cache."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_pick import frames_of, normalizer_of, tiny_spec
from written_episodes import CAMERA, configured, write_episode

from agent.dataset.ingest import Ingest
from policy import frame_cache
from policy.batches import (
    Sampler,
    batches_of,
    hold_pictures,
    last_frames,
    load_frames,
    open_batches,
    read_info,
)
from policy.build import build_processors
from policy.errors import BadDataset
from policy.frame_cache import FrameCache, file_bytes
from policy.pictures import EpisodePictures, episode_pictures
from policy.spec import CameraSpec, PolicySpec

SMALL = CameraSpec(name=CAMERA, height=24, width=32)
WHOLE = CameraSpec(name=CAMERA, height=48, width=64)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A dataset of three episodes in two video files: 10, 14 and 12 frames."""
    folder = tmp_path_factory.mktemp("pictures")
    config = configured(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
        ingest = Ingest(config)
        for numbers in ((0, 1), (2,)):
            for number in numbers:
                write_episode(config.journal_dir, number, frames=(10, 14, 12)[number])
            ingest.take(ingest.waiting())
    yield config.dataset_dir.resolve()


def pictures_of(root: Path, camera: CameraSpec = WHOLE) -> list[EpisodePictures]:
    return episode_pictures(root, read_info(root), [camera], [0, 1, 2])


def spec_of(camera: CameraSpec = SMALL, **fields: object) -> PolicySpec:
    return tiny_spec(cameras=[camera], **fields)


def fetched(cache: FrameCache, episode: int, rows: list[int], camera: CameraSpec) -> np.ndarray:
    out = np.zeros((len(rows), 3, camera.height, camera.width), np.uint8)
    cache.read(episode, camera.key, rows, list(out))
    return out


def test_every_picture_is_lerobots_own(root: Path) -> None:
    from lerobot.datasets import LeRobotDataset

    theirs = LeRobotDataset("local/x", root=root, return_uint8=True, video_backend="pyav")
    ours = np.concatenate(
        [np.stack([picture for _, picture in each.decode()]) for each in pictures_of(root)]
    )
    assert len(ours) == len(theirs) == 36
    for row in range(36):
        assert np.array_equal(theirs[row][WHOLE.key].numpy(), ours[row])


@settings(deadline=None, max_examples=20)
@given(rows=st.lists(st.integers(0, 13), min_size=1, max_size=6))
def test_a_picture_that_is_sought_is_the_one_that_comes_by(root: Path, rows: list[int]) -> None:
    episode = pictures_of(root)[1]
    whole = dict(episode.decode())
    found = dict(episode.decode(rows))
    assert list(found) == sorted(set(rows))
    assert all(np.array_equal(found[row], whole[row]) for row in found)


def test_the_cache_gives_what_the_video_gives_and_decodes_it_once(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, cache = FrameCache(None), FrameCache(tmp_path)
    for each in (plain, cache):
        each.hold(pictures_of(root, SMALL))
    said = []
    while (line := cache.prepare()) is not None:
        said.append(line)
    assert said == [(1, 3), (2, 3), (3, 3)]
    expected = fetched(plain, 1, [13, 0, 0, 5], SMALL)
    monkeypatch.setattr("policy.pictures.EpisodeVideo.decode", None)
    assert np.array_equal(fetched(cache, 1, [13, 0, 0, 5], SMALL), expected)
    again = FrameCache(tmp_path)
    again.hold(pictures_of(root, SMALL))
    cache.expect(1, SMALL.key, [3])
    assert np.array_equal(fetched(again, 1, [13, 0, 0, 5], SMALL), expected)


@pytest.mark.parametrize("damage", ["a picture", "the checks", "the end", "the head", "gone"])
def test_a_damaged_file_is_noticed_and_made_anew(root: Path, tmp_path: Path, damage: str) -> None:
    pictures = pictures_of(root, SMALL)[:1]
    cache = FrameCache(tmp_path)
    cache.hold(pictures)
    assert cache.prepare()
    expected = fetched(cache, 0, [4], SMALL)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    size = 3 * 24 * 32
    place = {"a picture": 4096 + 4 * size + 7, "the checks": 4096 + 10 * size, "the head": 3}
    if damage == "gone":
        path.unlink()
    elif damage == "the end":
        path.write_bytes(content[:-size])
    else:
        content[place[damage]] ^= 0x10
        path.write_bytes(content)
    if damage != "gone":
        cache = reopened(tmp_path, pictures)  # a process looks at each picture once
    assert np.array_equal(fetched(cache, 0, [4], SMALL), expected)
    assert np.array_equal(fetched(reopened(tmp_path, pictures), 0, [4], SMALL), expected)


def reopened(folder: Path, pictures: list[EpisodePictures]) -> FrameCache:
    cache = FrameCache(folder)
    cache.hold(pictures)
    return cache


def test_files_of_another_size_and_what_a_kill_left_are_deleted(root: Path, tmp_path: Path) -> None:
    cache = reopened(tmp_path, pictures_of(root, SMALL))
    while cache.prepare() is not None:
        pass
    before = {path.name for path in tmp_path.iterdir()}
    (tmp_path / ".half.frames.xyz").write_bytes(b"half")
    cache.hold(pictures_of(root, WHOLE)[:2])
    while cache.prepare() is not None:
        pass
    after = {path.name for path in tmp_path.iterdir()}
    assert len(after) == 2
    assert not after & before


def test_beyond_its_bound_and_on_a_full_disk_it_decodes_instead(root: Path, tmp_path: Path) -> None:
    pictures = pictures_of(root, SMALL)
    plain = reopened(tmp_path / "plain", pictures)
    bound = file_bytes(pictures[0]) + file_bytes(pictures[1])
    bounded = FrameCache(tmp_path / "bounded", max_bytes=bound)
    full = FrameCache(tmp_path / "full", keep_free_bytes=1 << 60)
    for cache in (bounded, full):
        cache.hold(pictures)
        while cache.prepare() is not None:
            pass
        for episode in range(3):
            expected = fetched(plain, episode, [1, 9], SMALL)
            assert np.array_equal(fetched(cache, episode, [1, 9], SMALL), expected)
    stored = sum(path.stat().st_size for path in (tmp_path / "bounded").iterdir())
    assert 0 < stored <= bound
    assert not list((tmp_path / "full").iterdir())


def test_a_version_that_shares_the_videos_needs_no_new_file(root: Path) -> None:
    copy = root.parent / "shared"
    for path in root.rglob("*"):
        if path.is_file():
            place = copy / path.relative_to(root)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, place)
    names = [[each.identity() for each in pictures_of(folder)] for folder in (root, copy)]
    assert names[0] == names[1]
    assert len(set(names[0])) == 3
    assert not set(names[0]) & {each.identity() for each in pictures_of(root, SMALL)}


def test_a_batch_holds_the_pictures_as_lerobots_processor_makes_them(
    root: Path, tmp_path: Path
) -> None:
    spec = spec_of(batch_size=7)
    normalizer = normalizer_of(frames_of(2), spec)
    frames = load_frames(root, list(spec.vectors))
    cache = hold_pictures(FrameCache(tmp_path), root, spec, frames.episodes)
    batches = batches_of(frames, spec, normalizer, cache)
    rows = [0, 9, 10, 23, 24, 35]
    batch = batches.at(rows)
    raw = []
    for row in rows:
        episode = int(frames.episode[row])
        raw.append(fetched(cache, episode, [int(frames.numbers[row])], SMALL)[0])
    preprocess, _ = build_processors(spec, normalizer)
    pictures = torch.from_numpy(np.stack(raw)).to(torch.float32) / 255.0
    exact = preprocess({SMALL.key: pictures})[SMALL.key]
    torch.testing.assert_close(batch[SMALL.key], exact, rtol=0.0, atol=2e-6)
    without = open_batches(root, spec, normalizer, [0, 1, 2])
    torch.testing.assert_close(without.at(rows), batch, rtol=0.0, atol=0.0)


def test_a_camera_of_another_shape_and_one_that_is_missing_are_said(root: Path) -> None:
    normalizer = normalizer_of(frames_of(2), spec_of())
    with pytest.raises(BadDataset, match="recorded 64x48, which cannot be scaled"):
        open_batches(root, spec_of(CameraSpec(name=CAMERA, height=48, width=48)), normalizer, [0])
    with pytest.raises(BadDataset, match="no camera wrist"):
        open_batches(root, spec_of(CameraSpec(name="wrist", height=48, width=64)), normalizer, [0])


def test_a_video_that_ends_too_early_is_said(root: Path) -> None:
    last = pictures_of(root)[2]
    longer = type(last)(**{**vars(last), "frames": 15})
    with pytest.raises(BadDataset, match="no picture 12 of camera overhead"):
        list(longer.decode())


@given(sizes=st.integers(1, 30), batch=st.integers(1, 12), drawn=st.integers(0, 9))
def test_a_restored_sampler_draws_what_it_would_have_drawn(
    sizes: int, batch: int, drawn: int
) -> None:
    one = Sampler(sizes, batch, seed=4)
    for _ in range(drawn):
        one.next()
    two = Sampler(sizes, batch, seed=9)
    two.restore(one.state())
    for _ in range(5):
        assert torch.equal(one.peek(), two.next())
        one.next()


def test_a_chunk_ends_where_frames_are_missing() -> None:
    episode = np.array([0, 0, 0, 0, 1, 1])
    number = np.array([0, 1, 5, 6, 0, 1])
    assert last_frames(episode, number).tolist() == [1, 1, 3, 3, 5, 5]


def test_nearby_pictures_are_decoded_in_one_pass() -> None:
    assert list(frame_cache._runs([30, 1, 2, 9, 2])) == [[1, 2, 9], [30]]
