"""An ONNX graph on disk: the graph in one file, each of its large tensors in another beside it.

A tensor's file is named by the SHA-256 of its content, so a release that shares tensors with
another shares files, and a model may be larger than the 2 GB that one protobuf can hold. ONNX
Runtime maps such files into memory and takes plain names beside the graph alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from host.files import write_durable
from policy.errors import BadModelFile
from policy.release.manifest import MAX_FILES, FileEntry

TENSOR_SUFFIX = ".bin"
# Below this a tensor is not worth a file and a request: biases and norms, which also change most.
INLINE_BYTES = 64 * 1024
MAX_TENSOR_FILES = MAX_FILES - 16  # the rest is for the graph, the goldens, and what else is named
_MAX_GRAPH_BYTES = 2**31 - 1


def write_graph(path: Path, model: onnx.ModelProto) -> dict[str, FileEntry]:
    """Write the graph to `path` and its large tensors beside it, durably; each file's entry.

    `model` loses those tensors' bytes. Raises BadModelFile when what is left is over 2 GB, OSError.
    """
    files: dict[str, FileEntry] = {}
    for tensor in _large_tensors(model):
        content = tensor.raw_data
        entry = entry_of(content)
        name = f"{entry.sha256}{TENSOR_SUFFIX}"
        if name not in files:
            write_durable(path.parent / name, content)
            files[name] = entry
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", name), ("offset", "0"), ("length", str(entry.size))):
            tensor.external_data.add(key=key, value=value)
    if model.ByteSize() > _MAX_GRAPH_BYTES:
        raise BadModelFile(f"{path}: {model.ByteSize()} bytes besides its large tensors")
    content = model.SerializeToString(deterministic=True)
    write_durable(path, content)
    return {**files, path.name: entry_of(content)}


def read_graph(path: Path) -> onnx.ModelProto:
    """The graph with all its tensors in memory. For a folder whose files were checked.

    onnx's own loader refuses files with several hard links, which is how the versions of a policy
    share their tensors. Raises BadModelFile, OSError.
    """
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except DecodeError as error:
        raise BadModelFile(f"{path}: not an ONNX graph") from error
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        where = {entry.key: entry.value for entry in tensor.external_data}
        name = where.get("location", "")
        if Path(name).name != name or not name.endswith(TENSOR_SUFFIX):
            raise BadModelFile(f"{path}: tensor {tensor.name} lies in {name!r}, not beside it")
        tensor.raw_data = (path.parent / name).read_bytes()
        tensor.ClearField("external_data")
        tensor.data_location = onnx.TensorProto.DEFAULT
    return model


def write_files(folder: Path, contents: Mapping[str, bytes]) -> dict[str, FileEntry]:
    """Write what a host needs beside the graph, durably; each file's entry. Raises OSError."""
    for name, content in contents.items():
        write_durable(folder / name, content)
    return {name: entry_of(content) for name, content in contents.items()}


def write_named_by_content(folder: Path, content: bytes, suffix: str) -> tuple[str, FileEntry]:
    """Write a file that is named by its digest, durably; its name and entry. Raises OSError."""
    entry = entry_of(content)
    name = f"{entry.sha256}{suffix}"
    write_durable(folder / name, content)
    return name, entry


def entry_of(content: bytes) -> FileEntry:
    """A file's line in the manifest."""
    return FileEntry(sha256=hashlib.sha256(content).hexdigest(), size=len(content))


def _large_tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Those that get a file; where they are too many, the largest."""
    large = [tensor for tensor in model.graph.initializer if len(tensor.raw_data) >= INLINE_BYTES]
    return sorted(large, key=lambda tensor: -len(tensor.raw_data))[:MAX_TENSOR_FILES]
