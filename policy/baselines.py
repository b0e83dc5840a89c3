"""What a policy must beat: holding still, and replaying the nearest demonstration. numpy only.

Both are scored as a policy is: mean absolute error of a frame's chunk against the demonstrated
actions, in raw joint units, what would lie beyond the end of the episode left out.
"""

from __future__ import annotations

import numpy as np

from policy.batches import Frames, last_frames
from policy.spec import ACTION, STATE, PolicySpec
from policy.statistics import Normalizer
from policy.weights import Array

# Rows at a time, and demonstrated rows that are looked through: 8192 are four minutes at 30 Hz.
BLOCK_ROWS = 256
MOST_DEMONSTRATED_ROWS = 8192


def hold_still_mae(frames: Frames, spec: PolicySpec) -> Array:
    """Error of staying where the joints are at the chunk's first frame; float64 [N].

    An action that no joint bears the name of is held at its own first value.
    """
    held = frames.vectors[ACTION].copy()
    for column, name in enumerate(spec.action_names):
        if name in spec.state_names:
            held[:, column] = frames.vectors[STATE][:, spec.state_names.index(name)]
    return np.concatenate(
        [
            _chunk_mae(frames, rows, held[rows][:, None, :], spec.chunk_size)
            for rows in _blocks(len(held))
        ]
    )


def nearest_demonstration_mae(
    frames: Frames, demonstrated: Frames, spec: PolicySpec, normalizer: Normalizer
) -> Array:
    """Error of what followed the nearest frame of the demonstrations; float64 [N].

    Nearest by the normalised vectors that the policy sees; pictures do not count.
    """
    wanted, known = _inputs(frames, spec, normalizer), _inputs(demonstrated, spec, normalizer)
    step = -(-len(known) // MOST_DEMONSTRATED_ROWS)
    candidates = np.arange(0, len(known), step)
    known = known[candidates]
    half_square = 0.5 * (known**2).sum(axis=1)
    actions, last = (
        demonstrated.vectors[ACTION],
        last_frames(demonstrated.episode, demonstrated.numbers),
    )
    errors = []
    for rows in _blocks(len(wanted)):
        nearest = candidates[np.argmin(half_square - wanted[rows] @ known.T, axis=1)]
        followed = np.minimum(nearest[:, None] + np.arange(spec.chunk_size), last[nearest, None])
        errors.append(_chunk_mae(frames, rows, actions[followed], spec.chunk_size))
    return np.concatenate(errors)


def _inputs(frames: Frames, spec: PolicySpec, normalizer: Normalizer) -> Array:
    return np.concatenate(
        [
            (frames.vectors[name] - normalizer.mean(name)) / normalizer.std(name)
            for name in spec.vectors
            if name != ACTION
        ],
        axis=1,
    )


def _chunk_mae(frames: Frames, rows: Array, predicted: Array, chunk_size: int) -> Array:
    """Mean over joints and the chunk [n, C, A] that begins at each of the rows; float64 [n]."""
    last = last_frames(frames.episode, frames.numbers)[rows, None]
    wanted = rows[:, None] + np.arange(chunk_size)
    valid = wanted <= last
    error = np.abs(predicted - frames.vectors[ACTION][np.minimum(wanted, last)])
    per_step = error.mean(axis=2, dtype=np.float64) * valid
    return per_step.sum(axis=1) / valid.sum(axis=1)


def _blocks(rows: int) -> list[Array]:
    return np.split(np.arange(rows), np.arange(BLOCK_ROWS, rows, BLOCK_ROWS))
