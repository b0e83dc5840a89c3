"""What a robot reports of its held-out episodes."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic_pick import frames_of, normalizer_of, tiny_spec

from agent.training.held_out import HeldOutEpisodes
from policy.batches import Frames
from policy.train import ErrorSum
from protocol.episode_keys import episode_key
from protocol.messages import MAX_ACTION_ERROR, MAX_REPORTED_EPISODES

SPEC = tiny_spec()
FRAMES = frames_of(5, length=12)
NORMALIZER = normalizer_of(FRAMES, SPEC)


SECRET = "5" * 64


def digest(index: int) -> str:
    return f"{index:064x}"


def measured(held_out: Frames, digests: dict[int, str] | None = None) -> HeldOutEpisodes:
    known = digests or {index: digest(index) for index in held_out.episodes}
    return HeldOutEpisodes.measure(held_out, FRAMES.select([0, 2]), SPEC, NORMALIZER, known)


def errors(episodes: HeldOutEpisodes, maes: list[float]) -> dict[str, ErrorSum]:
    """Of each episode the same error at every frame, an eighth in normalised units."""
    found = {}
    for (index, key), mae in zip(episodes.digests.items(), maes, strict=True):
        frames = int((episodes.episode == index).sum())
        numbers = 6 * frames
        joints = tuple(mae * frames * joint for joint in range(6))
        found[key] = ErrorSum(
            mae * numbers / 8.0, mae * numbers, numbers, mae * frames, frames, joints
        )
    return found


def test_each_episode_is_reported_with_its_own_error_and_those_of_the_baselines() -> None:
    episodes = measured(FRAMES.select([1, 4]))
    report = episodes.report(errors(episodes, [2.0, 6.0]), 3, SECRET)
    assert (report.round, report.action_mae, report.frames) == (3, 4.0, 24)
    assert report.loss == 0.5
    assert [each.error for each in report.episodes] == [2.0, 6.0]
    assert [each.frames for each in report.episodes] == [12, 12]
    for each, rows in zip(report.episodes, (slice(0, 12), slice(12, 24)), strict=True):
        assert each.hold_still == pytest.approx(episodes.hold_still[rows].mean(), rel=1e-5)
        assert each.nearest == pytest.approx(episodes.nearest[rows].mean(), rel=1e-5)
        assert 0 < each.nearest < each.hold_still


def test_each_joint_is_reported_over_all_episodes() -> None:
    episodes = measured(FRAMES.select([1, 4]))
    report = episodes.report(errors(episodes, [2.0, 6.0]), 3, SECRET)
    assert report.joints == (0.0, 4.0, 8.0, 12.0, 16.0, 20.0)


def test_only_the_newest_episodes_are_reported_one_by_one() -> None:
    many = frames_of(MAX_REPORTED_EPISODES + 3, length=2, seed=5)
    frames = len(many.episode)
    episodes = measured(many)
    maes = [float(index) for index in episodes.digests]
    report = episodes.report(errors(episodes, maes), 0, SECRET)
    assert len(report.episodes) == MAX_REPORTED_EPISODES
    assert report.frames == frames
    assert report.episodes[-1].key == episode_key(SECRET, digest(MAX_REPORTED_EPISODES + 2))


def test_an_episode_that_was_recorded_twice_counts_once() -> None:
    twice = FRAMES.select([1])
    doubled = Frames(
        {name: np.concatenate([values, values]) for name, values in twice.vectors.items()},
        np.repeat([1, 4], 12),
        30,
    )
    episodes = measured(doubled, {1: digest(1), 4: digest(1)})
    report = episodes.report(errors(episodes, [1.0, 1.0]), 0, SECRET)
    assert len(report.episodes) == 1


def test_an_error_beyond_what_may_be_claimed_is_claimed_as_that() -> None:
    episodes = measured(FRAMES.select([1, 4]))
    report = episodes.report(errors(episodes, [1e30, 1e30]), 0, SECRET)
    assert report.action_mae == report.episodes[0].error == MAX_ACTION_ERROR
