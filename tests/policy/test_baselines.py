"""What a policy must beat: holding still, and replaying the nearest demonstration."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic_pick import frames_of, normalizer_of, tiny_spec

from policy import baselines
from policy.baselines import hold_still_mae, nearest_demonstration_mae
from policy.batches import Frames
from policy.spec import ACTION, STATE, PolicySpec

SPEC = tiny_spec()
FRAMES = frames_of(4, length=20, seed=1)
NORMALIZER = normalizer_of(FRAMES, SPEC)


def test_holding_still_is_scored_against_each_action_of_the_chunk_padding_left_out() -> None:
    errors = hold_still_mae(FRAMES, SPEC)
    assert errors.shape == (80,)
    for row, last in ((0, 19), (17, 19), (19, 19), (20, 39)):
        actions = FRAMES.vectors[ACTION][row : min(row + SPEC.chunk_size, last + 1)]
        exact = np.abs(actions - FRAMES.vectors[STATE][row]).mean()
        assert errors[row] == pytest.approx(exact, rel=1e-5)


def test_an_action_without_a_joint_of_its_name_is_held_at_its_first_value() -> None:
    names = ("speed", *SPEC.action_names[1:])
    spec = PolicySpec.from_json(SPEC.to_json() | {"action_names": names})
    errors = hold_still_mae(FRAMES, spec)
    actions = FRAMES.vectors[ACTION][: SPEC.chunk_size]
    held = FRAMES.vectors[STATE][0].copy()
    held[0] = actions[0, 0]
    assert errors[0] == pytest.approx(np.abs(actions - held).mean(), rel=1e-5)


def test_a_demonstration_that_was_seen_is_replayed_without_error() -> None:
    assert not nearest_demonstration_mae(FRAMES, FRAMES, SPEC, NORMALIZER).any()


def test_the_nearest_demonstration_is_found_by_brute_force_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(baselines, "BLOCK_ROWS", 7)
    unseen = frames_of(1, length=20, seed=9)
    errors = nearest_demonstration_mae(unseen, FRAMES, SPEC, NORMALIZER)

    def inputs(frames: Frames) -> np.ndarray:
        return np.concatenate(
            [
                (frames.vectors[name] - NORMALIZER.mean(name)) / NORMALIZER.std(name)
                for name in list(SPEC.vectors)[:-1]
            ],
            axis=1,
        )

    for row in (0, 8, 16, 19):
        nearest = int(((inputs(FRAMES) - inputs(unseen)[row]) ** 2).sum(axis=1).argmin())
        last = (nearest // 20) * 20 + 19
        length = min(SPEC.chunk_size, 20 - row)
        followed = FRAMES.vectors[ACTION][np.minimum(nearest + np.arange(length), last)]
        exact = np.abs(followed - unseen.vectors[ACTION][row : row + length]).mean()
        assert errors[row] == pytest.approx(exact, rel=1e-5)
    assert errors.mean() < hold_still_mae(unseen, SPEC).mean()


def test_of_many_demonstrations_a_bounded_number_of_frames_is_looked_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(baselines, "MOST_DEMONSTRATED_ROWS", 27)  # of 80, every third
    errors = nearest_demonstration_mae(FRAMES, FRAMES, SPEC, NORMALIZER)
    assert not errors[::3].any()
    assert errors.any()
