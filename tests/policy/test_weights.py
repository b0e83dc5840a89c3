from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from host.files import write_durable
from policy.errors import BadWeights
from policy.weights import (
    add,
    load_metadata,
    load_weights,
    load_weights_with_metadata,
    save_weights,
    schema_digest,
    subtract,
    weights_digest,
)

NAMES = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=12),
    min_size=1,
    max_size=5,
    unique=True,
).filter(lambda names: "__metadata__" not in names)


@st.composite
def weight_sets(draw: st.DrawFn) -> dict[str, np.ndarray]:
    return {
        name: draw(
            hnp.arrays(
                draw(st.sampled_from([np.float16, np.float32, np.float64])),
                hnp.array_shapes(min_dims=0, max_dims=3, max_side=4),
                elements=st.integers(-2048, 2048).map(lambda number: number / 8),
            )
        )
        for name in draw(NAMES)
    }


@given(weights=weight_sets())
def test_weights_come_back_from_a_file_bit_for_bit_and_in_order(
    weights: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_weights(path, weights, {"armada.meta": "{}"})
    loaded, metadata = load_weights_with_metadata(path)
    assert list(loaded) == list(weights)
    assert weights_digest(loaded) == weights_digest(weights)
    assert metadata == load_metadata(path) == {"armada.meta": "{}"}
    for name, array in weights.items():
        assert loaded[name].dtype == array.dtype
        assert np.array_equal(loaded[name], array)


@given(weights=weight_sets())
def test_base_plus_gain_is_the_trained_weights(weights: dict[str, np.ndarray]) -> None:
    base = {name: np.zeros_like(array) for name, array in weights.items()}
    assert weights_digest(add(base, subtract(weights, base))) == weights_digest(
        {name: array + 0 for name, array in weights.items()}  # no negative zeros left
    )


def test_the_digest_sees_value_name_order_shape_and_dtype() -> None:
    one = {"a": np.zeros((2, 3), np.float32), "b": np.ones(2, np.float32)}
    others = [
        {"a": one["a"], "b": one["b"] * 2},
        {"b": one["b"], "a": one["a"]},
        {"a": one["a"].reshape(3, 2), "b": one["b"]},
        {"a": one["a"].astype(np.float64), "b": one["b"]},
        {"c": one["a"], "b": one["b"]},
    ]
    assert weights_digest(one) == weights_digest({name: a.copy() for name, a in one.items()})
    assert len({weights_digest(weights) for weights in [one, *others]}) == 6
    assert schema_digest(one) == schema_digest(others[0])
    assert len({schema_digest(weights) for weights in [one, *others[1:]]}) == 5


def test_a_transposed_view_has_the_digest_of_its_values() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert weights_digest({"a": array.T}) == weights_digest({"a": array.T.copy()})


def test_sets_of_different_tensors_are_not_subtracted() -> None:
    one = {"a": np.zeros(2, np.float32)}
    with pytest.raises(BadWeights, match="only on one side: b"):
        subtract(one, {"a": one["a"], "b": one["a"]})
    with pytest.raises(BadWeights, match="tensor a"):
        add(one, {"a": np.zeros(3, np.float32)})


def test_integers_are_never_saved_as_weights(tmp_path: Path) -> None:
    with pytest.raises(BadWeights, match="not floating"):
        save_weights(tmp_path / "w", {"steps": np.zeros(1, np.int64)})


def test_a_truncated_file_is_refused_and_a_missing_one_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(FileNotFoundError):
        load_weights(path)
    save_weights(path, {"a": np.arange(100, dtype=np.float32)})
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(BadWeights, match="not a readable"):
        load_weights(path)
    with pytest.raises(BadWeights):
        load_metadata(path)


def test_a_refused_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "state.json"
    write_durable(target, b"old")
    blocked = tmp_path / "state.json" / "below"  # its folder is a file
    with pytest.raises(OSError):
        write_durable(blocked, b"new")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
