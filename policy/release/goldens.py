"""Golden observations and the actions that a policy must give for them, as two safetensors files.

Observations: each input of the graph by name, [N, ...] as it is fed; actions: `action` f32 [N,C,A]
in raw joint units. Both are named by their content and listed in the manifest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from policy.errors import BadPolicyFolder
from policy.release.layout import write_named_by_content
from policy.release.manifest import FileEntry, GoldenFiles
from policy.session import blank_observation
from policy.spec import ACTION, PolicySpec
from policy.weights import Array

MAX_GOLDENS = 64
MAX_GOLDEN_BYTES = 256 * 1024 * 1024
_SUFFIX = ".safetensors"
# safetensors' names of what a graph is fed with.
_DTYPES = {"F32": "float32", "U8": "uint8", "I64": "int64", "BOOL": "bool"}


@dataclass(frozen=True)
class Golden:
    """One observation (no batch axis) with the chunk [C,A] that it must give, raw joint units."""

    observation: dict[str, Array]
    action: Array


def write_goldens(
    folder: Path, goldens: Sequence[Golden]
) -> tuple[GoldenFiles, dict[str, FileEntry]]:
    """Write both files durably; their names, and their entries. Raises OSError."""
    inputs = list(goldens[0].observation) if goldens else []
    stacked = {name: np.stack([golden.observation[name] for golden in goldens]) for name in inputs}
    actions = {ACTION: np.stack([golden.action for golden in goldens])} if goldens else {}
    (first, first_entry), (second, second_entry) = (
        write_named_by_content(folder, save(tensors), _SUFFIX) for tensors in (stacked, actions)
    )
    files = GoldenFiles(observations=first, actions=second)
    return files, {first: first_entry, second: second_entry}


def read_goldens(observations: Path, actions: Path, spec: PolicySpec) -> list[Golden]:
    """Both files, each tensor of the spec's shape and kind; at least one golden.

    Raises BadPolicyFolder with one line that names the file.
    """
    inputs = {
        name: (value.shape, str(value.dtype)) for name, value in blank_observation(spec).items()
    }
    chunk = ((spec.chunk_size, len(spec.action_names)), "float32")
    seen = _read(observations, inputs)
    wanted = _read(actions, {ACTION: chunk})[ACTION]
    counts = {len(value) for value in (*seen.values(), wanted)}
    if len(counts) != 1:
        raise BadPolicyFolder(f"{actions}: not as many actions as {observations.name} has goldens")
    return [
        Golden({name: value[index] for name, value in seen.items()}, wanted[index])
        for index in range(counts.pop())
    ]


def _read(path: Path, like: Mapping[str, tuple[tuple[int, ...], str]]) -> dict[str, Array]:
    """The tensors of `like`, name -> (shape without the leading axis, dtype); nothing else."""
    try:
        size = path.stat().st_size
        if size > MAX_GOLDEN_BYTES:
            raise BadPolicyFolder(f"{path} has {size} bytes, allowed are {MAX_GOLDEN_BYTES}")
        with safe_open(str(path), framework="numpy") as file:
            if set(file.keys()) != set(like):
                raise BadPolicyFolder(
                    f"{path} holds {_listed(file.keys())}, its policy wants {_listed(like)}"
                )
            for name, (shape, dtype) in like.items():
                told = file.get_slice(name)
                count, *found = told.get_shape() or [0]
                kind = _DTYPES.get(told.get_dtype(), told.get_dtype())
                if (tuple(found), kind) != (shape, dtype) or not 1 <= count <= MAX_GOLDENS:
                    raise BadPolicyFolder(
                        f"{path}: {name} is {kind} {told.get_shape()}, its policy wants "
                        f"{dtype} [1 to {MAX_GOLDENS}, {', '.join(map(str, shape))}]"
                    )
            return {name: file.get_tensor(name) for name in like}
    except (SafetensorError, OSError) as error:
        raise BadPolicyFolder(f"{path}: not readable golden observations ({error})") from error


def _listed(names: object) -> str:
    return ", ".join(sorted(names)) or "nothing"  # type: ignore[call-overload]
