"""Train the keypoint trunk to find the cube, the fingertips and the arm in pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from policy.build import IMAGE_MEAN, IMAGE_STD
from policy.keypoints import OUT_CHANNELS, KeypointTrunk, cell_places

_RATE = 3e-3
_BATCH = 32
_BLUR_CELLS = 0.7  # of the map that a point should have, as a standard deviation

type Scenes = tuple[NDArray[np.uint8], NDArray[np.float32]]


def train_trunk(
    scenes: Sequence[Scenes], steps: int, seed: int
) -> tuple[KeypointTrunk, NDArray[np.float64]]:
    """A trunk whose first points lie on the things, and the error of each step in picture widths.

    The other points are free: every place is also read off all points by a linear map, which is
    thrown away. Equal scenes, steps and seeds give equal weights on one machine.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trunk = KeypointTrunk()
        things = scenes[0][1].shape[1]
        read_off = torch.nn.Linear(OUT_CHANNELS - 2 * things, 2 * things)
    parameters = [*trunk.parameters(), *read_off.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=_RATE, weight_decay=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, steps)
    random = np.random.default_rng(seed)
    errors = np.zeros(steps)
    for step in range(steps):
        pictures, places = scenes[step % len(scenes)]
        rows = random.integers(len(pictures), size=_BATCH)
        wanted = torch.from_numpy(places[rows])
        maps = trunk.maps(scaled(pictures[rows]))
        points = trunk.places_of(maps)
        own, free = points[:, :things], points[:, things:]
        guess = read_off(free.flatten(1)).unflatten(1, (things, 2))
        loss = _cross_entropy(maps[:, :things], wanted)
        loss = loss + 2 * (own - wanted).abs().mean() + (guess - wanted).abs().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        errors[step] = float((own - wanted).detach()[:, 0].abs().mean()) / 2
    return trunk, errors


def _cross_entropy(maps: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Between each map's softmax and a blurred spot at its place."""
    height, width = maps.shape[-2:]
    cells = torch.tensor([width, height]) / 2
    away = (wanted[:, :, None] - cell_places(maps)) * cells / _BLUR_CELLS
    spot = (-0.5 * away.square().sum(dim=3)).softmax(dim=2)
    return -(spot * maps.flatten(2).log_softmax(dim=2)).sum(dim=2).mean()


def scaled(pictures: NDArray[np.uint8]) -> torch.Tensor:
    """As every policy gets its pictures."""
    mean = torch.tensor(IMAGE_MEAN).reshape(3, 1, 1)
    std = torch.tensor(IMAGE_STD).reshape(3, 1, 1)
    return (torch.from_numpy(pictures).float() / 255.0 - mean) / std
