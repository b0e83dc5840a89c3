"""A small vision trunk: where in the picture are the things that matter, and nothing else.

Four convolutions and a spatial soft-argmax (Levine et al. 2016, "End-to-end training of deep
visuomotor policies") turn a picture into the places of a few learned points. Models trained on
different data can be averaged far better over such a bottleneck than over a grid of features, once
the points mean the same at every robot: see docs/learning.md.
"""

from __future__ import annotations

import torch

CHANNELS = (16, 32, 32, 32)
STRIDES = (2, 2, 1, 1)
KERNELS = (5, 3, 3, 3)
POINTS = 32
OUT_CHANNELS = 2 * POINTS
_GROUPS = 4  # of the norms: of each picture alone, so that there are no statistics to average


class KeypointTrunk(torch.nn.Module):
    """Pictures [B,3,H,W] to ``feature_map`` [B,64,1,1]: x, then y, of 32 points in -1..1."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[torch.nn.Module] = []
        inputs = 3
        for channels, stride, kernel in zip(CHANNELS, STRIDES, KERNELS, strict=True):
            layers += [
                torch.nn.Conv2d(inputs, channels, kernel, stride, kernel // 2),
                torch.nn.GroupNorm(_GROUPS, channels),
                torch.nn.ReLU(),
            ]
            inputs = channels
        self.convolutions = torch.nn.Sequential(*layers)
        self.points = torch.nn.Conv2d(inputs, POINTS, 1)

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        points = self.places_of(self.maps(pictures))
        return {"feature_map": torch.cat((points[:, :, 0], points[:, :, 1]), 1)[:, :, None, None]}

    def maps(self, pictures: torch.Tensor) -> torch.Tensor:
        """Where each point may be, [B,32,H/4,W/4]: the logarithm of its share, but for a sum."""
        maps: torch.Tensor = self.points(self.convolutions(pictures))
        return maps

    @staticmethod
    def places_of(maps: torch.Tensor) -> torch.Tensor:
        """Mean x and y of each point: [B,32,2]."""
        return maps.flatten(2).softmax(dim=2) @ cell_places(maps)


def cell_places(maps: torch.Tensor) -> torch.Tensor:
    """x and y of the centres of all cells, between -1 and 1: [H*W, 2]."""
    y, x = (
        (torch.arange(count, device=maps.device, dtype=maps.dtype) * 2 + 1) / count - 1
        for count in maps.shape[-2:]
    )
    return torch.stack((x.repeat(len(y)), y.repeat_interleave(len(x))), dim=1)
