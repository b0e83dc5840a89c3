"""The inference socket's codec: what is written is read, and nothing else gets through."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.inference.errors import BadFrame
from agent.inference.wire import (
    DTYPES,
    MAGIC,
    MAX_BODY_BYTES,
    FrameParser,
    InferenceMessage,
    encode_frame,
)


def raw(header: Any, body: bytes = b"", *, magic: bytes = MAGIC, told: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(body) if told is None else told
    return struct.pack("<4sII", magic, len(text), size) + text + body


def joined(frame: list[Any]) -> bytes:
    return b"".join(bytes(buffer) for buffer in frame)


@st.composite
def arrays(draw: st.DrawFn) -> dict[str, np.ndarray]:
    names = draw(st.lists(st.text(min_size=1, max_size=12), max_size=4, unique=True))
    made = {}
    for name in names:
        dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
        count = int(np.prod(shape))
        content = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
        made[name] = np.frombuffer(content, dtype=dtype).reshape(shape)
    return made


@settings(max_examples=150, deadline=None)
@given(st.lists(arrays(), min_size=1, max_size=3), st.data())
def test_frames_come_out_as_they_went_in_however_the_bytes_are_cut(
    sent: list[dict[str, np.ndarray]], data: st.DataObject
) -> None:
    stream = b"".join(
        joined(encode_frame({"kind": "infer", "id": index}, made))
        for index, made in enumerate(sent)
    )
    parser = FrameParser()
    got: list[InferenceMessage] = []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        got += parser.feed(stream[:cut])
        stream = stream[cut:]
    assert [frame.header for frame in got] == [
        {"kind": "infer", "id": index} for index in range(len(sent))
    ]
    for frame, made in zip(got, sent, strict=True):
        assert list(frame.arrays) == list(made)
        for name, array in made.items():
            assert frame.arrays[name].dtype == array.dtype
            assert frame.arrays[name].shape == array.shape
            assert frame.arrays[name].tobytes() == array.tobytes()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_refused_or_waited_on_and_never_anything_else(noise: bytes) -> None:
    parser = FrameParser()
    try:
        frames = parser.feed(noise)
    except BadFrame:
        return
    assert frames == []  # no noise of this length makes a whole frame


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_flipped_byte_is_a_bad_frame_or_another_frame_never_a_crash(data: st.DataObject) -> None:
    frame = {"state": np.arange(6, dtype=np.float32), "im": np.zeros((2, 2, 3), np.uint8)}
    stream = bytearray(joined(encode_frame({"kind": "infer", "id": 7}, frame)))
    stream[data.draw(st.integers(0, len(stream) - 1))] ^= data.draw(st.integers(1, 255))
    parser = FrameParser()
    try:
        frames = parser.feed(bytes(stream))
    except BadFrame:
        return
    assert all(isinstance(one.kind, str) for one in frames)


F4 = np.dtype("<f4")


@pytest.mark.parametrize(
    ("stream", "says"),
    [
        (raw({"kind": "x", "arrays": []}, magic=b"\x80\x04\x95\x00"), "begins with"),
        (raw(b""), "no header"),
        (raw(b"not json"), "not JSON"),
        (raw(b"[" * 5000), "not JSON"),
        (raw([]), "no kind"),
        (raw({"kind": 3, "arrays": []}), "no kind"),
        (raw({"kind": "x"}), "not a list"),
        (raw({"kind": "x", "arrays": [["a", "O", [1]]]}, b"12345678"), "array entry"),
        (raw({"kind": "x", "arrays": [["a", "f4", [-1]]]}), "array entry"),
        (raw({"kind": "x", "arrays": [["a", "f4", [True]]]}, b"1234"), "array entry"),
        (raw({"kind": "x", "arrays": [["a", "f4", [1] * 9]]}, b"1234"), "array entry"),
        (raw({"kind": "x", "arrays": [["a", "f4", [2]]]}, b"1234"), "take 8 bytes, its body 4"),
        (raw({"kind": "x", "arrays": [["a", "u1", [0]]] * 33}), "not a list"),
        (raw({"kind": "x", "arrays": [["a", "u1", [1]]] * 2}, b"12"), "twice"),
        (raw({"kind": "x", "arrays": []}, told=MAX_BODY_BYTES + 1), "is over"),
        (struct.pack("<4sII", MAGIC, 1 << 31, 0), "is over"),
    ],
)
def test_what_is_no_frame_is_refused_with_its_reason(stream: bytes, says: str) -> None:
    with pytest.raises(BadFrame, match=says):
        FrameParser().feed(stream)


def test_a_body_as_large_as_the_numbers_overflow_to_is_refused_before_it_is_allocated() -> None:
    shape = [MAX_BODY_BYTES] * 4
    with pytest.raises(BadFrame, match="take"):
        FrameParser().feed(raw({"kind": "x", "arrays": [["a", "f4", shape]]}, told=4))


@pytest.mark.parametrize("dtype", ["float64", "object", "complex64", "int16"])
def test_only_the_listed_dtypes_are_sent(dtype: str) -> None:
    with pytest.raises(BadFrame, match="only"):
        encode_frame({"kind": "x"}, {"a": np.zeros(1, dtype=dtype)})


def test_other_byte_orders_and_strides_arrive_as_the_same_numbers() -> None:
    big_endian = np.arange(6, dtype=">f4").reshape(2, 3)[:, ::-1]
    (frame,) = FrameParser().feed(joined(encode_frame({"kind": "x"}, {"a": big_endian})))
    assert frame.arrays["a"].tolist() == big_endian.tolist()
