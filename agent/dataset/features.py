"""From the names of a robot's numbers to their bounds, and to a LeRobot dataset's features."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from agent.dataset.errors import UnknownUnit
from agent.recording.journal import EpisodeMeta
from agent.training.demonstrations import INTERVENTION
from policy.batches import Frames
from policy.spec import ACTION, ENVIRONMENT, IMAGES, STATE
from policy.statistics import Component, FeatureSketch, Sketch

# Measured seconds since the episode's first observation. LeRobot's own `timestamp` column is
# frame_index / fps, so it cannot tell a slow tick from a punctual one.
OBSERVED = "measured.observed_s"
SENT = "measured.sent_s"

# Histogram bounds by unit; every robot of a fleet must use the same ones.
_GRIPPER = (0.0, 100.0)
_DEGREES = (-180.0, 180.0)
_METRES = (-1.0, 1.0)
_RADIANS = (-math.pi, math.pi)


def component(name: str) -> Component:
    """Name with the bounds of its unit. Raises UnknownUnit when the name does not tell the unit."""
    if name.endswith("_m"):
        low, high = _METRES
    elif name.endswith("_rad"):
        low, high = _RADIANS
    elif name == "gripper.pos":
        low, high = _GRIPPER
    elif name.endswith(".pos"):
        low, high = _DEGREES
    else:
        raise UnknownUnit(f"{name}: the name must end in .pos, _m or _rad to tell its unit")
    return Component(name, low, high)


def sketch_frames(frames: Frames, names: dict[str, tuple[str, ...]]) -> Sketch:
    """Mergeable statistics of a dataset's vectors; ``names`` gives each feature's components.

    Raises UnknownUnit, BadStatistics.
    """
    return Sketch(
        {
            feature: FeatureSketch.measure(map(component, parts), frames.vectors[feature])
            for feature, parts in names.items()
            if feature in frames.vectors
        }
    )


def dataset_features(meta: EpisodeMeta) -> dict[str, dict[str, Any]]:
    """LeRobot's description of what one episode of this robot holds."""
    features: dict[str, dict[str, Any]] = {STATE: _vector(meta.state_names)}
    if meta.environment_names:
        features[ENVIRONMENT] = _vector(meta.environment_names)
    features[ACTION] = _vector(meta.action_names)
    for name, (height, width) in meta.cameras.items():
        features[f"{IMAGES}.{name}"] = {
            "dtype": "video",
            "shape": (height, width, 3),
            "names": ["height", "width", "channels"],
        }
    for name in (OBSERVED, SENT):
        features[name] = {"dtype": "float64", "shape": (1,), "names": None}
    features[INTERVENTION] = {"dtype": "bool", "shape": (1,), "names": None}
    return features


def vector_names(features: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Names of the vectors' components, out of a dataset's ``info.json`` features."""
    return {
        name: tuple(features[name]["names"])
        for name in (STATE, ENVIRONMENT, ACTION)
        if name in features
    }


def _vector(names: Iterable[str]) -> dict[str, Any]:
    listed = list(names)
    return {"dtype": "float32", "shape": (len(listed),), "names": listed}
