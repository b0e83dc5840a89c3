"""The update codec: what goes in comes out, and nothing else ever gets in."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from protocol.errors import BadUpdate
from protocol.update import (
    UpdateLimits,
    decode_update,
    encode_update,
    fits_float16,
)

shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
tensors = hnp.arrays(np.float32, shapes, elements=st.floats(width=32))
weight_sets = st.dictionaries(st.text(min_size=1, max_size=30), tensors, max_size=5)


def forged(payload: bytes, header: dict[str, object]) -> bytes:
    """An update with whatever header an attacker likes."""
    text = json.dumps(header).encode()
    frame = zstandard.ZstdCompressor().compress(payload)
    return struct.pack("<4sBI", b"ARMU", 1, len(text)) + text + frame


def header_for(payload: bytes, **changes: object) -> dict[str, object]:
    header: dict[str, object] = {
        "precision": "float32",
        "tensors": [{"name": "a", "shape": [len(payload) // 4]}],
        "payload_bytes": len(payload),
        "payload_sha256": hashlib.sha256(payload).hexdigest(),
        "meta": {},
    }
    return header | changes


@given(
    weight_sets, st.dictionaries(st.text(max_size=5), st.integers(-5, 5) | st.text(), max_size=3)
)
def test_float32_comes_back_bit_for_bit_in_order(weights, meta):
    update = decode_update(encode_update(weights, meta))
    assert list(update.weights) == list(weights)
    assert update.meta == meta
    for name, value in weights.items():
        assert update.weights[name].dtype == np.float32
        assert update.weights[name].shape == value.shape
        assert update.weights[name].tobytes() == value.tobytes()


@given(hnp.arrays(np.float32, 20, elements=st.floats(-60000, 60000, width=32)))
def test_float16_is_within_half_a_step(values):
    decoded = decode_update(encode_update({"a": values}, precision="float16")).weights["a"]
    np.testing.assert_allclose(decoded, values, rtol=2**-11, atol=2**-25)


def test_float16_halves_the_bytes():
    weights = {"a": np.random.default_rng(0).standard_normal(100_000).astype(np.float32)}
    assert len(encode_update(weights, precision="float16")) < 0.55 * len(encode_update(weights))


def test_a_number_too_large_for_float16_is_seen_beforehand():
    assert fits_float16({"a": np.array([65504.0], np.float32), "b": np.zeros(0, np.float32)})
    assert not fits_float16({"a": np.array([-70000.0], np.float32)})
    assert not fits_float16({"a": np.array([np.inf], np.float32)})


def test_only_float32_is_encoded():
    with pytest.raises(BadUpdate, match="tensor a is int64"):
        encode_update({"a": np.arange(3)})


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_update_is_refused_and_never_read_as_another(data):
    weights = {"a": np.arange(50, dtype=np.float32), "b": np.ones((2, 3), np.float32)}
    good = bytearray(encode_update(weights, {"steps": 3}))
    where = data.draw(st.integers(0, len(good) - 1))
    good[where] ^= data.draw(st.integers(1, 255))
    try:
        update = decode_update(bytes(good))
    except BadUpdate:
        return
    # What the checksum does not cover: names and meta in the header. The numbers are intact.
    flat = np.concatenate([value.ravel() for value in update.weights.values()])
    assert flat.tobytes() == np.concatenate([v.ravel() for v in weights.values()]).tobytes()


@given(st.integers(0, 200))
def test_a_cut_off_update_is_refused(length):
    good = encode_update({"a": np.arange(50, dtype=np.float32)})
    cut = good[: min(length, len(good) - 1)]
    with pytest.raises(BadUpdate):
        decode_update(cut)


@given(st.binary(max_size=300))
def test_noise_is_refused(data):
    with pytest.raises(BadUpdate):
        decode_update(data)


def test_a_bomb_stops_at_the_size_its_header_admits():
    bomb = forged(bytes(64 << 20), header_for(b"\0" * 400))
    assert len(bomb) < 64_000
    with pytest.raises(BadUpdate, match="longer than its header says"):
        decode_update(bomb)


def test_an_update_larger_than_the_limit_is_refused_before_it_is_unpacked():
    update = encode_update({"a": np.zeros(1000, np.float32)})
    with pytest.raises(BadUpdate, match="4000 bytes; at most 3999"):
        decode_update(update, UpdateLimits(max_payload_bytes=3999))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"payload_bytes": 404}, "do not add up"),
        ({"tensors": [{"name": "a", "shape": [2**40, 2**40]}]}, "do not add up"),
        ({"tensors": [{"name": "a", "shape": [-1]}]}, "greater than or equal"),
        (
            {"tensors": [{"name": "a", "shape": [50]}, {"name": "a", "shape": [50]}]},
            "names a tensor twice",
        ),
        ({"tensors": [{"name": "a", "shape": [1] * 9 + [100]}]}, "more than 8 dimensions"),
        ({"precision": "object"}, "precision"),
        ({"payload_sha256": "0" * 64}, "SHA-256"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_header_that_lies_is_refused(changes, what):
    payload = bytes(400)
    with pytest.raises(BadUpdate, match=what):
        decode_update(forged(payload, header_for(payload, **changes)))


def test_too_many_tensors_and_too_long_a_header_are_refused():
    update = encode_update({str(i): np.zeros(1, np.float32) for i in range(5)})
    with pytest.raises(BadUpdate, match="5 tensors; 4 allowed"):
        decode_update(update, UpdateLimits(max_tensors=4))
    with pytest.raises(BadUpdate, match="too long"):
        decode_update(update, UpdateLimits(max_header_bytes=10))


def test_another_format_version_is_named():
    update = bytearray(encode_update({}))
    update[4] = 9
    with pytest.raises(BadUpdate, match="format 9 is unknown"):
        decode_update(bytes(update))


def test_a_pickle_is_not_an_update():
    with pytest.raises(BadUpdate, match="magic"):
        decode_update(pickle.dumps({"a": np.zeros(3)}))
