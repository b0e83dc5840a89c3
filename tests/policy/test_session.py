"""A graph that loads may still fail when it is run; that is one named error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from synthetic_pick import tiny_spec

from policy.errors import BadModelFile, BadObservation, InferenceFailed
from policy.session import OnnxPolicy, as_observation, blank_observation, input_shapes
from policy.spec import STATE, CameraSpec

CAMERA = CameraSpec(name="overhead", height=4, width=6)


def reshaping_graph(path: Path) -> Path:
    """Four numbers in the shape that the state asks for."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", [STATE], ["rows"], to=TensorProto.INT64),
            helper.make_node("Squeeze", ["rows", "first"], ["shape"]),
            helper.make_node("Reshape", ["four", "shape"], ["action"]),
        ],
        "reshaping",
        [helper.make_tensor_value_info(STATE, TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("action", TensorProto.FLOAT, [1, 2, 2])],
        [
            numpy_helper.from_array(np.zeros(4, np.float32), "four"),
            numpy_helper.from_array(np.array([0], np.int64), "first"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, {"armada": "{}"})
    onnx.save(model, str(path))
    return path


def test_a_graph_that_fails_when_it_is_run_is_one_line(tmp_path: Path) -> None:
    policy = OnnxPolicy(reshaping_graph(tmp_path / "policy.onnx"))
    assert policy.infer({STATE: np.array([1, 2, 2], np.float32)}).shape == (2, 2)
    with pytest.raises(InferenceFailed, match="cannot be run") as failed:
        policy.infer({STATE: np.array([1, 2, 3], np.float32)})
    assert "\n" not in str(failed.value)
    assert policy.infer({STATE: np.array([1, 2, 2], np.float32)}).shape == (2, 2)


def test_a_graph_of_another_spec_is_refused_with_both_sides(tmp_path: Path) -> None:
    policy = OnnxPolicy(reshaping_graph(tmp_path / "policy.onnx"))
    with pytest.raises(BadModelFile, match=r"takes observation.state \[3\], its manifest says"):
        policy.require(tiny_spec())


def test_inputs_are_in_the_graphs_order_and_blank_ones_fit_them() -> None:
    spec = tiny_spec(cameras=[CAMERA])
    blank = blank_observation(spec)
    assert {name: value.shape for name, value in blank.items()} == input_shapes(spec)
    assert list(blank) == [*(name for name in spec.vectors if name != "action"), CAMERA.key]
    assert blank[CAMERA.key].dtype == np.uint8
    assert blank[STATE].dtype == np.float32


@pytest.mark.parametrize(
    "values",
    [
        {STATE: [1.0, [2.0]]},
        {STATE: ["a", "b"]},
        {STATE: [None, {}]},
        {CAMERA.key: [[[0, 0, 256]]]},
        {CAMERA.key: [[[0, 0, -1]]]},
    ],
)
def test_lists_that_are_no_observation_are_refused(values: dict[str, list[object]]) -> None:
    with pytest.raises(BadObservation, match="not made of numbers"):
        as_observation(tiny_spec(cameras=[CAMERA]), values)
