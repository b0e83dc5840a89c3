from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from synthetic_pick import frames_of, sketch_of, tiny_spec

from policy.errors import BadStatistics
from policy.spec import ACTION, STATE
from policy.statistics import (
    Component,
    FeatureSketch,
    Normalizer,
    Sketch,
    merge,
)

PARTS = (Component("pan.pos", -180.0, 180.0), Component("cube.x_m", -1.0, 1.0))
VALUES = hnp.arrays(
    np.float64,
    st.tuples(st.integers(0, 30), st.just(2)),
    elements=st.floats(-400.0, 400.0, allow_nan=False),
)


def sketch(values: np.ndarray) -> Sketch:
    return Sketch({STATE: FeatureSketch.measure(PARTS, values)})


@given(parts=st.lists(VALUES, min_size=1, max_size=4))
def test_the_merge_of_sketches_is_the_sketch_of_all_data(parts: list[np.ndarray]) -> None:
    merged = merge(sketch(values) for values in parts).features[STATE]
    whole = sketch(np.concatenate(parts)).features[STATE]
    assert merged.count == whole.count
    np.testing.assert_allclose(merged.mean, whole.mean, atol=1e-9)
    np.testing.assert_allclose(merged.m2, whole.m2, rtol=1e-9, atol=1e-6)
    assert np.array_equal(merged.histogram, whole.histogram)


@given(values=VALUES)
def test_a_sketch_comes_back_from_its_json(values: np.ndarray) -> None:
    one = sketch(values)
    for data in (one.to_json(), json.dumps(one.to_json())):
        again = Sketch.from_json(data)
        assert json.dumps(again.to_json()) == json.dumps(one.to_json())


def test_a_sketch_shows_no_extreme_sample() -> None:
    values = np.zeros((100, 2))
    values[7] = [123.456, 0.789]
    text = json.dumps(sketch(values).to_json())
    assert "123.456" not in text
    assert "0.789" not in text


@pytest.mark.parametrize(
    "change",
    [
        {"count": 5},
        {"mean": [0.0]},
        {"mean": [float("nan"), 0.0]},
        {"m2": [-1.0, 0.0]},
        {"histogram": [[0] * 64]},
        {"components": [["pan.pos", "left", 3]]},
    ],
)
def test_a_damaged_sketch_is_refused(change: dict[str, object]) -> None:
    data = sketch(np.zeros((4, 2))).to_json()
    data["features"][STATE] |= change
    with pytest.raises(BadStatistics):
        Sketch.from_json(data)


def test_sketches_with_other_bounds_or_features_are_not_merged() -> None:
    one = sketch(np.zeros((4, 2)))
    wide = Sketch(
        {
            STATE: FeatureSketch.measure(
                (Component("pan.pos", -90.0, 90.0), PARTS[1]), np.zeros((4, 2))
            )
        }
    )
    with pytest.raises(BadStatistics, match=r"pan\.pos"):
        one.merge(wide)
    with pytest.raises(BadStatistics, match="different features"):
        one.merge(Sketch({ACTION: one.features[STATE]}))
    with pytest.raises(BadStatistics, match="no sketch"):
        merge([])


def test_a_value_that_is_not_finite_is_named() -> None:
    with pytest.raises(BadStatistics, match=r"cube\.x_m"):
        FeatureSketch.measure(PARTS, np.array([[0.0, np.inf]]))


def test_all_robots_normalise_by_the_same_numbers_in_whatever_order_they_report() -> None:
    spec = tiny_spec()
    sketches = [sketch_of(frames_of(2, seed=seed), spec) for seed in range(3)]
    one = Normalizer.from_sketches(sketches)
    again = Normalizer.from_json(json.dumps(one.to_json()))
    assert again == one
    assert again.digest() == one.digest()
    backwards = Normalizer.from_sketches(sketches[::-1])
    np.testing.assert_allclose(backwards.mean(ACTION), one.mean(ACTION), rtol=1e-5)


def test_a_joint_that_never_moves_is_not_blown_up() -> None:
    normalizer = Normalizer.from_sketches([sketch(np.full((50, 2), 0.25))])
    assert normalizer.std(STATE).tolist() == pytest.approx([3.6, 0.02])


def test_a_degree_beside_where_a_joint_always_stood_is_small_to_the_policy() -> None:
    scale = Normalizer.from_sketches([sketch(np.full((50, 2), 0.25))])
    assert 1.0 / scale.std(STATE)[0] < 0.5


@given(spread=st.floats(0.0, 100.0))
def test_the_floor_raises_no_joint_that_was_moved(spread: float) -> None:
    values = np.array([[-spread, 0.0], [spread, 0.0]] * 20)
    assert Normalizer.from_sketches([sketch(values)]).std(STATE)[0] == pytest.approx(
        max(spread, 3.6), rel=1e-3
    )


def test_a_normaliser_of_other_names_or_of_nothing_is_refused() -> None:
    normalizer = Normalizer.from_sketches([sketch(np.zeros((4, 2)))])
    with pytest.raises(BadStatistics, match="no statistics of action"):
        normalizer.require({ACTION: ("pan.pos",)})
    with pytest.raises(BadStatistics, match="the policy wants"):
        normalizer.require({STATE: ("cube.x_m", "pan.pos")})
    with pytest.raises(BadStatistics, match="no frames"):
        Normalizer.from_sketches([sketch(np.zeros((0, 2)))])
    with pytest.raises(BadStatistics):
        Normalizer.from_json({"features": {STATE: {"names": ["a"], "mean": [0.0], "std": None}}})
