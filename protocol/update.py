"""Weights and deltas as bytes: a JSON header, then one zstd frame of plain little-endian numbers.

    b"ARMU" | version u8 | header length u32 LE | header JSON | zstd(payload)

The header names every tensor with its shape, the number format, the size of the payload and its
SHA-256, and a small dictionary of the caller's. Nothing is ever unpickled, and a decoder never
allocates more than its limits allow: sizes are computed from the header and checked before the
payload is touched, and decompression stops at that size (zstd expands some 10,000-fold).

`float16` halves a delta on the wire at a relative error of 2**-11; a base travels as `float32`,
bit for bit, so that its digest can be checked.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import zstandard
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from host.complaints import first_complaint
from protocol.errors import BadUpdate

MAGIC = b"ARMU"
VERSION = 1
PREFIX = struct.Struct("<4sBI")
ZSTD_LEVEL = 3  # higher levels gain about 1% on floats

Array = NDArray[np.float32]
Precision = Literal["float16", "float32"]
FLOAT16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class UpdateLimits:
    """What a decoder accepts. `max_payload_bytes` counts decompressed bytes."""

    max_payload_bytes: int = 2 << 30
    max_header_bytes: int = 1 << 20
    max_tensors: int = 4096
    max_dimensions: int = 8


class _Tensor(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Annotated[str, Field(min_length=1, max_length=300)]
    shape: list[Annotated[int, Field(ge=0, le=2**40)]]


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    precision: Precision
    tensors: list[_Tensor]
    payload_bytes: Annotated[int, Field(ge=0)]
    payload_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    meta: dict[str, JsonValue]


@dataclass(frozen=True)
class Update:
    """A decoded update: float32 tensors in the sender's order, and the sender's dictionary."""

    weights: dict[str, Array]
    meta: dict[str, JsonValue]
    precision: Precision


def fits_float16(weights: Mapping[str, Array]) -> bool:
    """Whether no number would become infinite as float16."""
    return all(
        value.size == 0 or float(np.max(np.abs(value))) <= FLOAT16_MAX for value in weights.values()
    )


def encode_update(
    weights: Mapping[str, Array],
    meta: Mapping[str, JsonValue] | None = None,
    precision: Precision = "float32",
) -> bytes:
    """Encode float32 tensors; raises BadUpdate for another dtype or a meta that is not JSON."""
    for name, value in weights.items():
        if value.dtype != np.float32:
            raise BadUpdate(f"tensor {name} is {value.dtype}; only float32 is encoded")
    wire = np.dtype(precision).newbyteorder("<")
    with np.errstate(over="ignore"):  # too large for float16 becomes inf, which the gate refuses
        payload = b"".join(
            np.ascontiguousarray(value).astype(wire).tobytes() for value in weights.values()
        )
    try:
        header = _Header(
            precision=precision,
            tensors=[_Tensor(name=n, shape=list(v.shape)) for n, v in weights.items()],
            payload_bytes=len(payload),
            payload_sha256=hashlib.sha256(payload).hexdigest(),
            meta=dict(meta or {}),
        )
    except ValidationError as error:
        raise BadUpdate(f"update cannot be encoded: {error.errors()[0]['msg']}") from error
    text = header.model_dump_json().encode()
    frame = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(payload)
    return PREFIX.pack(MAGIC, VERSION, len(text)) + text + frame


def decode_update(data: bytes, limits: UpdateLimits = UpdateLimits()) -> Update:
    """Decode within `limits`; raises BadUpdate with what is wrong."""
    header, offset = _read_header(data, limits)
    size = np.dtype(header.precision).itemsize
    counts = [math.prod(tensor.shape) for tensor in header.tensors]
    if sum(counts) * size != header.payload_bytes:
        raise BadUpdate("update header contradicts itself: shapes do not add up to the payload")
    if header.payload_bytes > limits.max_payload_bytes:
        raise BadUpdate(
            f"update of {header.payload_bytes} bytes; at most {limits.max_payload_bytes} allowed"
        )
    payload = _decompress(data[offset:], header.payload_bytes)
    if hashlib.sha256(payload).hexdigest() != header.payload_sha256:
        raise BadUpdate("update payload does not match its SHA-256: damaged on the way")
    wire = np.dtype(header.precision).newbyteorder("<")
    weights: dict[str, Array] = {}
    start = 0
    for tensor, count in zip(header.tensors, counts, strict=True):
        flat = np.frombuffer(payload, dtype=wire, count=count, offset=start)
        weights[tensor.name] = flat.astype(np.float32).reshape(tensor.shape)
        start += count * size
    return Update(weights, header.meta, header.precision)


def _read_header(data: bytes, limits: UpdateLimits) -> tuple[_Header, int]:
    if len(data) < PREFIX.size:
        raise BadUpdate(f"update of {len(data)} bytes is shorter than its prefix")
    magic, version, length = PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise BadUpdate("not an armada update: wrong magic bytes")
    if version != VERSION:
        raise BadUpdate(f"update format {version} is unknown here; this side speaks {VERSION}")
    if length > limits.max_header_bytes or PREFIX.size + length > len(data):
        raise BadUpdate(f"update header of {length} bytes is too long or cut off")
    end = PREFIX.size + length
    try:
        header = _Header.model_validate_json(data[PREFIX.size : end])
    except ValidationError as error:
        raise BadUpdate(f"update header: {first_complaint(error)}") from error
    if len(header.tensors) > limits.max_tensors:
        raise BadUpdate(f"update of {len(header.tensors)} tensors; {limits.max_tensors} allowed")
    if len({tensor.name for tensor in header.tensors}) != len(header.tensors):
        raise BadUpdate("update names a tensor twice")
    if any(len(tensor.shape) > limits.max_dimensions for tensor in header.tensors):
        raise BadUpdate(f"update has a tensor of more than {limits.max_dimensions} dimensions")
    return header, end


def _decompress(frame: bytes, expected_bytes: int) -> bytes:
    """Exactly `expected_bytes` out of one zstd frame, never more; raises BadUpdate."""
    try:
        with zstandard.ZstdDecompressor().stream_reader(frame, read_across_frames=False) as reader:
            payload = reader.read(expected_bytes)
            if len(payload) < expected_bytes:
                raise BadUpdate("update payload is cut off")
            if reader.read(1):
                raise BadUpdate("update payload is longer than its header says")
    except zstandard.ZstdError as error:
        raise BadUpdate(f"update payload is not a zstd frame: {error}") from error
    return payload
