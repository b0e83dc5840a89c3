"""Recorded frames as the raw observations that a graph takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from policy.batches import read_info, require_features
from policy.errors import NoEpisodes
from policy.kinds import LANGUAGE_INPUTS, NOISE, PREFIX_WEIGHTS, PREVIOUS
from policy.session import input_shapes
from policy.spec import ACTION, TASK, PolicySpec
from policy.weights import Array
from policy.words import TaskReader


def recorded_observations(
    root: Path, spec: PolicySpec, episodes: Sequence[int], count: int, words: TaskReader | None
) -> list[dict[str, Array]]:
    """At most ``count`` frames spread evenly over the episodes, without a batch axis.

    Noise is drawn from a fixed seed; no chunk comes before. Raises NoEpisodes, BadDataset.
    """
    # Imported here: it opens the video libraries.
    from lerobot.datasets import LeRobotDataset

    require_features(read_info(root), spec)
    if not episodes:
        raise NoEpisodes(f"{root}: no episodes to take frames of")
    dataset = LeRobotDataset(
        f"local/{root.name}", root=root, episodes=sorted(episodes), return_uint8=True
    )
    rows = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int))
    random = np.random.default_rng(0)
    return [_observation(dataset[int(row)], spec, random, words) for row in rows]


def _observation(
    item: dict[str, Any], spec: PolicySpec, random: np.random.Generator, words: TaskReader | None
) -> dict[str, Array]:
    seen: dict[str, Array] = {
        name: item[name].numpy().astype(np.float32) for name in spec.vectors if name != ACTION
    }
    for camera in spec.cameras:
        seen[camera.key] = np.ascontiguousarray(item[camera.key].numpy().transpose(1, 2, 0))
    for name, shape in input_shapes(spec).items():
        if name == NOISE:
            seen[name] = random.standard_normal(shape, np.float32)
        elif name in (PREVIOUS, PREFIX_WEIGHTS):
            seen[name] = np.zeros(shape, np.float32)
    if words is not None:
        seen |= words.inputs(item[TASK])
    assert seen.keys() >= input_shapes(spec).keys() - LANGUAGE_INPUTS
    return seen
