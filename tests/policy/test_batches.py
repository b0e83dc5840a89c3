from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from synthetic_pick import frames_of, normalizer_of, tiny_spec

from policy.batches import PADDING, Frames, VectorBatches, is_held_out, split_episodes
from policy.errors import NoEpisodes
from policy.spec import ACTION, ENVIRONMENT, STATE


def numbered(lengths: list[int]) -> Frames:
    """Every action carries 1000 * episode + tick, so that a batch tells where it came from."""
    rows = [1000 * episode + tick for episode, n in enumerate(lengths) for tick in range(n)]
    values = np.repeat(np.array(rows, np.float32)[:, None], 6, axis=1)
    episode = np.repeat(np.arange(len(lengths)), lengths)
    return Frames({STATE: values, ENVIRONMENT: values[:, :2], ACTION: values}, episode, 30)


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_a_chunk_never_crosses_into_the_next_episode(lengths: list[int], seed: int) -> None:
    frames = numbered(lengths)
    spec = tiny_spec(chunk_size=5)
    normalizer = normalizer_of(frames_of(2), spec)
    batches = VectorBatches(frames, spec, normalizer, seed)
    mean, std = normalizer.mean(ACTION), normalizer.std(ACTION)
    for batch in [batches.draw(), *batches.ordered(7)]:
        rows = (batch[STATE].numpy() * normalizer.std(STATE) + normalizer.mean(STATE))[:, 0]
        chunks = (batch[ACTION].numpy() * std + mean)[:, :, 0]
        for here, chunk, padding in zip(
            np.rint(rows).astype(int), np.rint(chunks).astype(int), batch[PADDING], strict=True
        ):
            episode, tick = divmod(here, 1000)
            left = min(5, lengths[episode] - tick)
            assert chunk[:left].tolist() == list(range(here, here + left))
            assert padding.tolist() == [False] * left + [True] * (5 - left)
            assert (chunk[left:] == here + left - 1).all()  # the last action, held


def test_every_frame_is_drawn_once_before_any_is_drawn_twice() -> None:
    frames = numbered([10, 6])
    spec = tiny_spec(batch_size=4)
    normalizer = normalizer_of(frames_of(2), spec)
    batches = VectorBatches(frames, spec, normalizer, seed=3)
    assert batches.examples == 16
    drawn = torch.cat([batches.draw()[STATE][:, 0] for _ in range(4)])
    assert len(set(drawn.tolist())) == 16


def test_a_batch_is_never_larger_than_the_dataset() -> None:
    frames = numbered([3])
    spec = tiny_spec(batch_size=64)
    batch = VectorBatches(frames, spec, normalizer_of(frames_of(2), spec)).draw()
    assert batch[STATE].shape == (3, 6)
    assert batch[PADDING].dtype == torch.bool


def test_no_frames_are_no_batches() -> None:
    spec = tiny_spec()
    with pytest.raises(NoEpisodes):
        VectorBatches(frames_of(2).select([]), spec, normalizer_of(frames_of(2), spec))


@given(every=st.integers(2, 9), now=st.integers(2, 60), later=st.integers(0, 60))
def test_an_episode_never_changes_sides_as_the_dataset_grows(
    every: int, now: int, later: int
) -> None:
    training, held_out = split_episodes(range(now), every)
    more_training, more_held_out = split_episodes(range(now + later), every)
    assert set(training) <= set(more_training)
    assert set(held_out) <= set(more_held_out)
    assert not set(more_training) & set(more_held_out)
    assert held_out, "with two episodes there is one to evaluate on"
    assert training
    assert all(is_held_out(episode, every) for episode in held_out)
