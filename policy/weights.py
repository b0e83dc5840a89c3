"""Weights as plain arrays: order, digests, files and differences. No torch in here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from host.files import write_durable
from policy.errors import BadWeights

type Array = NDArray[Any]

# Ordered: the insertion order is the stated order of the tensors.
type Weights = dict[str, Array]

_ORDER = "armada.order"  # safetensors sorts its tensors, so the stated order is kept beside them


def save_weights(
    path: Path, weights: Mapping[str, Array], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors and metadata as one safetensors file, durably and atomically.

    Raises BadWeights for a tensor that is not floating, OSError when the disk refuses.
    """
    for name, array in weights.items():
        if not np.issubdtype(array.dtype, np.floating):
            raise BadWeights(f"tensor {name}: {array.dtype} is not floating and is never averaged")
    header = {**(metadata or {}), _ORDER: json.dumps(list(weights))}
    # ascontiguousarray would make a vector of a scalar.
    arrays = {name: np.asarray(array, order="C") for name, array in weights.items()}
    write_durable(Path(path), save(arrays, metadata=header))


def load_weights(path: Path) -> Weights:
    """Read all tensors in their stated order. Raises BadWeights, FileNotFoundError."""
    return load_weights_with_metadata(path)[0]


def load_weights_with_metadata(path: Path) -> tuple[Weights, dict[str, str]]:
    """Tensors and metadata from one open of the file, so that they belong together."""
    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            names = json.loads(metadata.pop(_ORDER, "null")) or sorted(file.keys())
            if set(names) != set(file.keys()):
                raise BadWeights(f"{path}: the stated order does not name the tensors in the file")
            return {name: file.get_tensor(name) for name in names}, metadata
    except (SafetensorError, json.JSONDecodeError) as error:
        raise BadWeights(f"{path}: not a readable safetensors file ({error})") from error


def load_metadata(path: Path) -> dict[str, str]:
    """Only the metadata; no tensor is read. Raises BadWeights, FileNotFoundError."""
    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = dict(file.metadata() or {})
    except SafetensorError as error:
        raise BadWeights(f"{path}: not a readable safetensors file ({error})") from error
    metadata.pop(_ORDER, None)
    return metadata


def weights_digest(weights: Mapping[str, Array]) -> str:
    """SHA-256 (hex) over name, dtype, shape and bytes of every tensor, in order."""
    digest = hashlib.sha256()
    for name, array in weights.items():
        digest.update(_signature(name, array))
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def schema_digest(weights: Mapping[str, Array]) -> str:
    """SHA-256 (hex) over name, dtype and shape in order: equal schemas can be averaged."""
    digest = hashlib.sha256()
    for name, array in weights.items():
        digest.update(_signature(name, array))
    return digest.hexdigest()


def subtract(left: Mapping[str, Array], right: Mapping[str, Array]) -> Weights:
    """``left - right``, tensor by tensor, in ``left``'s order. Raises BadWeights."""
    _require_same_schema(left, right)
    return {name: array - right[name] for name, array in left.items()}


def add(left: Mapping[str, Array], right: Mapping[str, Array]) -> Weights:
    """``left + right``, tensor by tensor, in ``left``'s order. Raises BadWeights."""
    _require_same_schema(left, right)
    return {name: array + right[name] for name, array in left.items()}


def scale(weights: Mapping[str, Array], factor: float) -> Weights:
    """``factor * weights``, in their own types."""
    return {name: array * array.dtype.type(factor) for name, array in weights.items()}


def _signature(name: str, array: Array) -> bytes:
    little_endian = array.dtype.newbyteorder("<").str
    return json.dumps([name, little_endian, list(array.shape)]).encode() + b"\n"


def _require_same_schema(left: Mapping[str, Array], right: Mapping[str, Array]) -> None:
    if list(left) != list(right):
        odd = sorted(set(left) ^ set(right))
        what = f"only on one side: {', '.join(odd[:3])}" if odd else "the order differs"
        raise BadWeights(f"the two sets of weights have different tensors ({what})")
    for name, array in left.items():
        other = right[name]
        if array.shape != other.shape or array.dtype != other.dtype:
            raise BadWeights(
                f"tensor {name}: {array.dtype}{list(array.shape)} "
                f"does not match {other.dtype}{list(other.shape)}"
            )
