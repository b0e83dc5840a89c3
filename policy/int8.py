"""A graph in int8, from the float32 one: static for pictures, dynamic for a flow's products.

Static (QDQ): convolutions and products with weights, a scale a channel, ranges of activations
calibrated on given observations. Dynamic: products with weights alone, the range of each activation
measured when it runs; it also reaches the body of a flow's Loop, which no calibration sees. The
softmax, attention's own products and the head stay float.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from policy.release.layout import read_graph
from policy.weights import Array

PRODUCTS = ("Conv", "MatMul", "Gemm")
_WIDEST = 127.0
_LEAST_WEIGHTS = 4096  # a smaller product gains nothing


def static_int8(
    source: Path,
    target: Path,
    observations: Sequence[Mapping[str, Array]],
    operations: Collection[str] = PRODUCTS,
) -> None:
    """Write ``target``: calibrated on ``observations`` (a batch axis in front), metadata kept.

    The head and what has no weights stay float. Raises OSError, ValueError, RuntimeError.
    """
    metadata = onnx.load(source, load_external_data=False).metadata_props
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        inlined, whole = Path(scratch) / "inlined.onnx", Path(scratch) / "folded.onnx"
        onnx.save(read_graph(source), inlined)
        _fold(inlined, whole)
        quantize_static(
            whole,
            target,
            _Observations(observations),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(operations),
            nodes_to_exclude=[*_head(whole), *_without_weights(whole)],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            calibration_providers=["CPUExecutionProvider"],
        )
    model = onnx.load(target)
    del model.metadata_props[:]
    model.metadata_props.extend(metadata)
    onnx.save(model, target)


def _fold(source: Path, target: Path) -> None:
    """Write the graph as ONNX Runtime simplifies it on any host: constants and norms folded."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def _without_weights(path: Path) -> list[str]:
    """Products of two activations: attention, whose rounding the softmax would multiply."""
    graph = onnx.load(path, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    return [
        node.name
        for node in graph.node
        if node.op_type in PRODUCTS and node.input[1] not in constants
    ]


def _head(path: Path) -> tuple[str, ...]:
    """The product nearest to the output: the head, whose rounding nothing evens out."""
    graph = onnx.load(path, load_external_data=False).graph
    makers = {name: node for node in graph.node for name in node.output}
    wave = [value.name for value in graph.output]
    while wave:
        nodes = [makers[name] for name in wave if name in makers]
        heads = tuple(node.name for node in nodes if node.op_type in PRODUCTS)
        if heads:
            return heads
        wave = [name for node in nodes for name in node.input]
    return ()


def dynamic_int8(source: Path, target: Path) -> None:
    """Write ``target``: each product with constant weights in int8, in the Loop's body too.

    Raises OSError, BadModelFile.
    """
    model = read_graph(source)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    replaced: dict[str, list[TensorProto]] = {}
    _replace_products(model.graph, weights, replaced)
    used = set(_names_read(model.graph))
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    kept += [part for parts in replaced.values() for part in parts]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.save(model, target)


def _replace_products(
    graph: GraphProto,
    weights: Mapping[str, TensorProto],
    replaced: dict[str, list[TensorProto]],
) -> None:
    nodes: list[NodeProto] = []
    for node in graph.node:
        for inner in _bodies(node):
            _replace_products(inner, weights, replaced)
        factor = weights.get(node.input[1]) if node.op_type == "MatMul" else None
        if (
            factor is None
            or len(factor.dims) != 2
            or factor.data_type != TensorProto.FLOAT
            or int(np.prod(factor.dims)) < _LEAST_WEIGHTS
        ):
            nodes.append(node)
            continue
        if factor.name not in replaced:
            replaced[factor.name] = _rounded(factor)
        nodes += _dynamic_product(node, [part.name for part in replaced[factor.name]])
    del graph.node[:]
    graph.node.extend(nodes)


def _rounded(factor: TensorProto) -> list[TensorProto]:
    """Weights [K,N] as int8 with a scale a column, and their zero point."""
    values = numpy_helper.to_array(factor)
    scales = np.maximum(np.abs(values).max(axis=0), 1e-12) / _WIDEST
    whole = np.clip(np.rint(values / scales), -_WIDEST, _WIDEST).astype(np.int8)
    return [
        numpy_helper.from_array(whole, f"{factor.name}/int8"),
        numpy_helper.from_array(scales.astype(np.float32), f"{factor.name}/scale"),
        numpy_helper.from_array(np.zeros(values.shape[1], np.int8), f"{factor.name}/zero"),
    ]


def _dynamic_product(node: NodeProto, factor: list[str]) -> list[NodeProto]:
    """The pattern that ONNX Runtime runs as one product (DynamicQuantizeMatMul)."""
    name, (values, scales, zero) = node.name, factor
    parts = [f"{name}/{part}" for part in ("u8", "scale", "zero", "i32", "f32", "scales")]
    whole, scale, point, product, floats, both = parts
    return [
        helper.make_node("DynamicQuantizeLinear", [node.input[0]], [whole, scale, point]),
        helper.make_node("MatMulInteger", [whole, values, point, zero], [product]),
        helper.make_node("Cast", [product], [floats], to=TensorProto.FLOAT),
        helper.make_node("Mul", [scale, scales], [both]),
        helper.make_node("Mul", [floats, both], [node.output[0]]),
    ]


def _bodies(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g


def _names_read(graph: GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from node.input
        for inner in _bodies(node):
            yield from _names_read(inner)


class _Observations(CalibrationDataReader):
    def __init__(self, observations: Sequence[Mapping[str, Array]]) -> None:
        self._left = iter(observations)

    def get_next(self) -> dict[str, Any] | None:
        feed = next(self._left, None)
        return None if feed is None else dict(feed)
