"""Frames on the inference socket: a JSON header and raw little-endian arrays. Pure.

Layout: 4 bytes magic, u32 header length, u32 body length (little-endian), header (UTF-8 JSON), the
arrays' bytes one after another. The header's `arrays` lists (name, dtype, shape) in their order;
only the dtypes in DTYPES pass, and the body is exactly as long as they say. Nothing is executed
and nothing is allocated beyond the bounds, whatever arrives.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.inference.errors import BadFrame

MAGIC = b"AIF1"
MAX_HEADER_BYTES = 256 * 1024  # a spec with all its names is a few kilobytes
MAX_BODY_BYTES = 64 * 1024 * 1024  # eight 1080p frames are 50 MB
MAX_ARRAYS = 32
MAX_AXES = 4
DTYPES: dict[str, np.dtype[Any]] = {
    "f4": np.dtype("<f4"),
    "u1": np.dtype("u1"),
    "i8": np.dtype("<i8"),
}

# Beside an observation: what the arm will play from its tick on, f32 [N, A]; a policy that
# continues a chunk needs it, and with it the header's `delay_ticks`.
UPCOMING = "upcoming"

_PREFIX = struct.Struct("<4sII")
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

Array = NDArray[Any]


@dataclass(frozen=True)
class InferenceMessage:
    """One message: `header` without the array list, and the arrays by name (read-only views)."""

    header: dict[str, Any]
    arrays: dict[str, Array] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Return the kind that every header carries."""
        kind: str = self.header["kind"]
        return kind


def encode_frame(header: Mapping[str, Any], arrays: Mapping[str, Array] | None = None) -> list[Any]:
    """Return the frame as buffers to write one after another; big arrays are not copied.

    Raises BadFrame for a dtype that is not in DTYPES, or beyond the bounds.
    """
    listed: list[list[Any]] = []
    buffers: list[Any] = []
    for name, array in (arrays or {}).items():
        dtype = _NAMES.get(array.dtype.newbyteorder("<"))
        if dtype is None:
            raise BadFrame(f"array {name} is {array.dtype}: only {', '.join(DTYPES)} travel")
        contiguous = np.ascontiguousarray(array, dtype=DTYPES[dtype])
        listed.append([name, dtype, list(array.shape)])
        if contiguous.nbytes:
            buffers.append(memoryview(contiguous).cast("B"))
    text = json.dumps({**header, "arrays": listed}, separators=(",", ":")).encode()
    body = sum(len(buffer) for buffer in buffers)
    _check_sizes(len(text), body)
    return [_PREFIX.pack(MAGIC, len(text), body) + text, *buffers]


class FrameParser:
    """Fed by reading into `space()` and telling `filled(n)`; so a body is written only once."""

    def __init__(self) -> None:
        """Start before a prefix."""
        self._header: dict[str, Any] | None = None
        self._listed: list[tuple[str, np.dtype[Any], tuple[int, ...]]] = []
        self._body_bytes = 0
        self._stage: Callable[[], InferenceMessage | None] = self._take_prefix
        self._expect(_PREFIX.size)

    def space(self) -> memoryview:
        """Return where the next bytes go; never empty."""
        return memoryview(self._buffer)[self._have :]

    def filled(self, count: int) -> InferenceMessage | None:
        """Take note of `count` bytes written to `space()`; return the frame they complete.

        Raises BadFrame; the stream is then of no more use and must be closed.
        """
        self._have += count
        if self._have < len(self._buffer):
            return None
        return self._stage()

    def feed(self, data: bytes) -> list[InferenceMessage]:
        """Return the frames that `data` completes: `space` and `filled` for bytes in hand."""
        frames: list[InferenceMessage] = []
        while data:
            space = self.space()
            part, data = data[: len(space)], data[len(space) :]
            space[: len(part)] = part
            frame = self.filled(len(part))
            if frame is not None:
                frames.append(frame)
        return frames

    def _expect(self, count: int) -> None:
        self._buffer = bytearray(count)
        self._have = 0

    def _take_prefix(self) -> InferenceMessage | None:
        magic, header_bytes, self._body_bytes = _PREFIX.unpack(self._buffer)
        if magic != MAGIC:
            raise BadFrame(f"a frame begins with {bytes(magic)!r}, not {MAGIC!r}")
        if header_bytes < 2:
            raise BadFrame("a frame has no header")
        _check_sizes(header_bytes, self._body_bytes)
        self._stage = self._take_header
        self._expect(header_bytes)
        return None

    def _take_header(self) -> InferenceMessage | None:
        try:
            header = json.loads(self._buffer)
        except (ValueError, RecursionError) as error:
            raise BadFrame("a frame's header is not JSON") from error
        if not isinstance(header, dict) or not isinstance(header.get("kind"), str):
            raise BadFrame("a frame's header has no kind")
        self._listed = _read_list(header.pop("arrays", None))
        told = sum(math.prod(shape) * dtype.itemsize for _, dtype, shape in self._listed)
        if told != self._body_bytes:
            raise BadFrame(f"a frame's arrays take {told} bytes, its body {self._body_bytes}")
        self._header = header
        if self._body_bytes == 0:
            return self._finish(b"")
        self._stage = self._take_body
        self._expect(self._body_bytes)
        return None

    def _take_body(self) -> InferenceMessage | None:
        return self._finish(self._buffer)

    def _finish(self, body: bytes | bytearray) -> InferenceMessage:
        arrays: dict[str, Array] = {}
        offset = 0
        view = memoryview(body).toreadonly()
        for name, dtype, shape in self._listed:
            count = math.prod(shape)
            part = view[offset : offset + count * dtype.itemsize]
            arrays[name] = np.frombuffer(part, dtype=dtype).reshape(shape)
            offset += count * dtype.itemsize
        assert self._header is not None
        frame = InferenceMessage(self._header, arrays)
        self._stage = self._take_prefix
        self._expect(_PREFIX.size)
        return frame


def _check_sizes(header_bytes: int, body_bytes: int) -> None:
    if header_bytes > MAX_HEADER_BYTES:
        raise BadFrame(f"a header of {header_bytes} bytes is over {MAX_HEADER_BYTES}")
    if body_bytes > MAX_BODY_BYTES:
        raise BadFrame(f"a body of {body_bytes} bytes is over {MAX_BODY_BYTES}")


def _read_list(listed: object) -> list[tuple[str, np.dtype[Any], tuple[int, ...]]]:
    if not isinstance(listed, list) or len(listed) > MAX_ARRAYS:
        raise BadFrame(f"a frame's arrays are not a list of at most {MAX_ARRAYS}")
    read: list[tuple[str, np.dtype[Any], tuple[int, ...]]] = []
    for entry in listed:
        match entry:
            case [str(name), str(dtype), list(shape)] if dtype in DTYPES and _is_shape(shape):
                read.append((name, DTYPES[dtype], tuple(shape)))
            case _:
                raise BadFrame("a frame's array entry is not [name, dtype, shape]")
    if len({name for name, _, _ in read}) != len(read):
        raise BadFrame("a frame names an array twice")
    return read


def _is_shape(shape: list[object]) -> bool:
    return len(shape) <= MAX_AXES and all(
        isinstance(axis, int) and not isinstance(axis, bool) and 0 <= axis <= MAX_BODY_BYTES
        for axis in shape
    )
