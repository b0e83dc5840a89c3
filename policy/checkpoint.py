"""A training run on the disk: tensors and the facts about them in one safetensors file."""

from __future__ import annotations

from pathlib import Path

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
    try:
        with safe_open(str(path), framework="pt") as file:
            meta = (file.metadata() or {}).get(_META)
            if meta is None:
                raise BadCheckpoint(f"{path}: no facts in it")
            return {name: file.get_tensor(name) for name in file.keys()}, meta  # noqa: SIM118
    except SafetensorError as error:
        raise BadCheckpoint(f"{path}: not a readable safetensors file ({error})") from error
