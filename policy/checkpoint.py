"""A training run on the disk: tensors and the facts about them in one safetensors file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from host.files import write_durable
from policy.build import Tensors
from policy.errors import BadCheckpoint

_META = "armada.meta"


def save_checkpoint(path: Path, tensors: Tensors, meta: str) -> None:
    """Write both, durably and atomically. Raises OSError when the disk refuses."""
    write_durable(path, save(tensors, metadata={_META: meta}))


def load_checkpoint(path: Path) -> tuple[Tensors, str]:
    """What was saved. Raises BadCheckpoint, FileNotFoundError."""
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, _meta(path, file)  # noqa: SIM118


def checkpoint_facts(path: Path) -> str:
    """The facts alone; no tensor is read. Raises BadCheckpoint, FileNotFoundError."""
    with _opened(path) as file:
        return _meta(path, file)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise BadCheckpoint(f"{path}: not a readable safetensors file ({error})") from error


def _meta(path: Path, file: Any) -> str:
    meta: str | None = (file.metadata() or {}).get(_META)
    if meta is None:
        raise BadCheckpoint(f"{path}: no facts in it")
    return meta
