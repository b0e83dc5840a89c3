"""Statistics that can be merged without showing the data, and the normaliser made of them.

A sketch holds, for each component of a feature, count, mean, sum of squared deviations (M2) and a
histogram with fixed bins over stated bounds. It holds no minimum, no maximum and no sample. Merging
follows Chan, Golub and LeVeque (1979): the sketch of all data equals the merge of the sketches of
its parts, so every robot can normalise by the whole fleet's statistics.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from policy.errors import BadStatistics

type Array = NDArray[Any]

BINS = 64
# Of the bounds' width: 3.6 degrees of 360, 1 of a gripper's 100. An arm may stand a degree beside
# where it was demonstrated: to a policy whose joint never moved, that must be little.
STD_FLOOR = 1e-2


@dataclass(frozen=True)
class Component:
    """One number of a vector: its name and the bounds of its histogram, in its own unit."""

    name: str
    low: float
    high: float


@dataclass(frozen=True)
class FeatureSketch:
    """Statistics of one vector feature with D components, from ``count`` samples."""

    components: tuple[Component, ...]
    count: int
    mean: Array  # float64 [D]
    m2: Array  # float64 [D], sum of squared deviations from the mean
    histogram: Array  # int64 [D, BINS]; samples outside the bounds count in the edge bins

    @classmethod
    def measure(cls, components: Iterable[Component], values: Array) -> Self:
        """Sketch of ``values`` [N, D]. Raises BadStatistics: not finite, or a wrong shape."""
        parts = tuple(components)
        data = np.asarray(values, dtype=np.float64)
        if data.ndim != 2 or data.shape[1] != len(parts):
            raise BadStatistics(f"values {list(data.shape)} do not fit {len(parts)} components")
        if not np.isfinite(data).all():
            worst = parts[int(np.argwhere(~np.isfinite(data))[0, 1])]
            raise BadStatistics(f"{worst.name}: a value is not finite")
        count = data.shape[0]
        mean = data.mean(axis=0) if count else np.zeros(len(parts))
        histogram = np.zeros((len(parts), BINS), dtype=np.int64)
        for row, part in enumerate(parts):
            if not part.high > part.low:
                raise BadStatistics(f"{part.name}: bounds {part.low}..{part.high} are empty")
            position = (data[:, row] - part.low) / (part.high - part.low) * BINS
            bins = np.clip(np.floor(position), 0, BINS - 1).astype(np.int64)
            histogram[row] = np.bincount(bins, minlength=BINS)
        return cls(parts, count, mean, ((data - mean) ** 2).sum(axis=0), histogram)

    def merge(self, other: FeatureSketch) -> FeatureSketch:
        """The sketch of both sets of samples. Raises BadStatistics: names or bounds differ."""
        if self.components != other.components:
            mine, theirs = _first_difference(self.components, other.components)
            raise BadStatistics(f"sketches of different features: {mine} and {theirs}")
        count = self.count + other.count
        if count == 0:
            return self
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        m2 = self.m2 + other.m2 + delta**2 * (self.count * other.count / count)
        return FeatureSketch(self.components, count, mean, m2, self.histogram + other.histogram)

    @property
    def std(self) -> Array:
        """Population standard deviation, float64 [D]."""
        return np.sqrt(self.m2 / max(self.count, 1))

    def to_json(self) -> dict[str, Any]:
        return {
            "components": [[part.name, part.low, part.high] for part in self.components],
            "count": self.count,
            "mean": self.mean.tolist(),
            "m2": self.m2.tolist(),
            "histogram": self.histogram.tolist(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Raises BadStatistics when a field is missing, not finite or of a wrong shape."""
        try:
            components = tuple(
                Component(str(name), float(low), float(high))
                for name, low, high in data["components"]
            )
            count = int(data["count"])
            mean = np.asarray(data["mean"], dtype=np.float64)
            m2 = np.asarray(data["m2"], dtype=np.float64)
            histogram = np.asarray(data["histogram"], dtype=np.int64)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise BadStatistics(f"sketch: {type(error).__name__} {error}") from error
        size = len(components)
        if mean.shape != (size,) or m2.shape != (size,) or histogram.shape != (size, BINS):
            raise BadStatistics(f"sketch: arrays do not fit {size} components and {BINS} bins")
        if not (np.isfinite(mean).all() and np.isfinite(m2).all() and (m2 >= 0).all()):
            raise BadStatistics("sketch: mean or M2 is not a finite number >= 0")
        if count < 0 or (histogram < 0).any() or (histogram.sum(axis=1) != count).any():
            raise BadStatistics(f"sketch: histogram does not add up to count {count}")
        return cls(components, count, mean, m2, histogram)


@dataclass(frozen=True)
class Sketch:
    """Sketches of all vector features of one robot's dataset (or of a fleet's, once merged)."""

    features: dict[str, FeatureSketch]

    @property
    def count(self) -> int:
        """Frames behind the sketch."""
        return max((feature.count for feature in self.features.values()), default=0)

    def merge(self, other: Sketch) -> Sketch:
        """Raises BadStatistics when the two do not describe the same features."""
        if list(self.features) != list(other.features):
            mine, theirs = ", ".join(self.features), ", ".join(other.features)
            raise BadStatistics(f"sketches of different features: [{mine}] and [{theirs}]")
        return Sketch(
            {name: mine.merge(other.features[name]) for name, mine in self.features.items()}
        )

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain JSON values."""
        return {"features": {name: part.to_json() for name, part in self.features.items()}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | str | bytes) -> Self:
        """Read from the dictionary or its JSON text. Raises BadStatistics."""
        document = _parse(data)
        features = document.get("features")
        if not isinstance(features, Mapping) or not features:
            raise BadStatistics("sketch: no features in it")
        return cls({str(name): FeatureSketch.from_json(part) for name, part in features.items()})


def merge(sketches: Iterable[Sketch]) -> Sketch:
    """One sketch of everything that the given ones have seen. Raises BadStatistics."""
    parts = list(sketches)
    if not parts:
        raise BadStatistics("no sketch to merge")
    return functools.reduce(Sketch.merge, parts)


class FeatureScale(BaseModel):
    """Mean and standard deviation of one feature, a number for each component."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Normalizer(BaseModel):
    """What every robot of a fleet normalises by: the same numbers for all, with a digest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    features: dict[str, FeatureScale]

    @classmethod
    def from_sketches(cls, sketches: Iterable[Sketch], std_floor: float = STD_FLOOR) -> Self:
        """Merge and take mean and std; a std below ``std_floor`` of the bounds' width is raised.

        A component that hardly moves would otherwise be blown up to unit noise.
        Raises BadStatistics: nothing to merge, different features, or no frames.
        """
        whole = merge(sketches)
        if whole.count == 0:
            raise BadStatistics("the sketches hold no frames: record an episode first")
        scales = {}
        for name, feature in whole.features.items():
            floor = np.array([(part.high - part.low) * std_floor for part in feature.components])
            std = np.maximum(feature.std, floor)
            scales[name] = FeatureScale(
                names=tuple(part.name for part in feature.components),
                # Rounded to float32 once, so that graph, trainer and digest hold one number.
                mean=tuple(float(value) for value in feature.mean.astype(np.float32)),
                std=tuple(float(value) for value in std.astype(np.float32)),
            )
        return cls(features=scales)

    def mean(self, feature: str) -> Array:
        """float32 [D]."""
        return np.array(self.features[feature].mean, dtype=np.float32)

    def std(self, feature: str) -> Array:
        """float32 [D], above zero."""
        return np.array(self.features[feature].std, dtype=np.float32)

    def require(self, vectors: Mapping[str, tuple[str, ...]]) -> None:
        """Raise BadStatistics unless every feature is here, with these names in this order."""
        for name, names in vectors.items():
            scale = self.features.get(name)
            if scale is None:
                raise BadStatistics(f"the normaliser has no statistics of {name}")
            if scale.names != names or not len(scale.mean) == len(scale.std) == len(names):
                raise BadStatistics(
                    f"{name}: the normaliser is of {', '.join(scale.names)}, "
                    f"the policy wants {', '.join(names)}"
                )
            if min(scale.std) <= 0.0:
                raise BadStatistics(f"{name}: a standard deviation is not above zero")

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain JSON values."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | str | bytes) -> Self:
        """Read from the dictionary or its JSON text. Raises BadStatistics."""
        try:
            return cls.model_validate_json(json.dumps(_parse(data)))
        except (ValidationError, TypeError, ValueError) as error:
            raise BadStatistics(f"normaliser: {str(error).splitlines()[0]}") from error

    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON."""
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def _parse(data: Mapping[str, Any] | str | bytes) -> Mapping[str, Any]:
    if isinstance(data, Mapping):
        return data
    try:
        document = json.loads(data)
    except json.JSONDecodeError as error:
        raise BadStatistics(f"not JSON ({error})") from error
    if not isinstance(document, Mapping):
        raise BadStatistics("not a JSON object")
    return document


def _first_difference(left: tuple[Component, ...], right: tuple[Component, ...]) -> tuple[str, str]:
    for mine, theirs in zip(left, right, strict=False):
        if mine != theirs:
            return f"{mine.name} [{mine.low}, {mine.high}]", (
                f"{theirs.name} [{theirs.low}, {theirs.high}]"
            )
    return f"{len(left)} components", f"{len(right)}"
