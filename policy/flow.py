"""A policy that integrates a velocity from noise to actions, as one ONNX graph.

What is seen is encoded once; the Euler steps are a Loop whose body holds their nodes and weights
once. Unrolled, ONNX Runtime would pack the expert's weights again for every step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

from policy.weights import Array

if TYPE_CHECKING:
    import torch

MAX_GUIDANCE = 10.0  # LeRobot's RTCConfig
X, NEXT_X, TIME, GUIDANCE = "x", "next_x", "time", "guidance"


@dataclass(frozen=True)
class Flow:
    """The two parts of a flow policy; time runs from 1 (noise) to 0 (actions)."""

    steps: int
    width: int
    """Size to which an action is padded."""
    encode: Callable[[dict[str, torch.Tensor]], tuple[torch.Tensor, ...]]
    """An arranged batch -> what every step looks at."""
    velocity: Callable[[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]], torch.Tensor]
    """Actions so far [B,C,width], time [B], what ``encode`` gave -> velocity [B,C,width]."""


def times(steps: int) -> Array:
    """Float32 [steps]: when each Euler step begins."""
    return np.array([1.0 - step / steps for step in range(steps)], np.float32)


def guidance(steps: int, most: float = MAX_GUIDANCE) -> Array:
    """Float32 [steps]: how strongly each step is pulled to the previous chunk.

    Real-time chunking (Black et al. 2025), eq. 2, as LeRobot's ``RTCProcessor`` computes it.
    """
    left = 1.0 - np.arange(steps) / steps  # 1 - tau
    done = 1.0 - left
    with np.errstate(divide="ignore"):
        weight = left / done * (left**2 + done**2) / left**2
    return np.minimum(weight, most).astype(np.float32)


def guided_step(
    x: torch.Tensor,
    velocity: torch.Tensor,
    time: torch.Tensor,
    guidance: torch.Tensor,
    previous: torch.Tensor,
    weights: torch.Tensor,
    steps: int,
) -> torch.Tensor:
    """One Euler step, pulled to the previous chunk [B,C,width] where weights [B,C,1] say so.

    LeRobot's correction is the error itself: its graph of gradients ends at the velocity.
    """
    error = (previous - (x - time * velocity)) * weights
    return x - (velocity - guidance * error) / steps


def join(encoder: ModelProto, step: ModelProto, noise: str, steps: int) -> ModelProto:
    """The encoder, then a Loop of ``step`` from the input ``noise`` to the output ``NEXT_X``.

    ``step`` takes X, TIME [1], GUIDANCE [1] and outputs of the encoder by name, and gives NEXT_X.
    The encoder's model is changed and returned; weights of the step become its initialisers.
    """
    outer = {value.name for value in encoder.graph.output}
    graph = step.graph
    _rename(graph, keep=outer)
    ticks = {TIME: times(steps), GUIDANCE: guidance(steps)}
    tables = [numpy_helper.from_array(table, f"{name}s") for name, table in ticks.items()]
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Unsqueeze", ["index", "first_axis"], ["indices"]),
            *(
                helper.make_node("Gather", [f"{name}s", "indices"], [_inner(name)], axis=0)
                for name in ticks
            ),
            *graph.node,
        ],
        "step",
        [
            helper.make_tensor_value_info("index", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            _as(graph.input[0], _inner(X)),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            _as(graph.output[0], _inner(NEXT_X)),
        ],
    )
    loop: NodeProto = helper.make_node("Loop", ["steps", "", noise], [NEXT_X], body=body)
    whole = encoder.graph
    whole.node.append(loop)
    whole.initializer.extend(graph.initializer)
    whole.initializer.extend(
        [
            *tables,
            numpy_helper.from_array(np.array([0], np.int64), "first_axis"),
            numpy_helper.from_array(np.array(steps, np.int64), "steps"),
        ]
    )
    last = _as(graph.output[0], NEXT_X)
    start = _as(graph.input[0], noise)
    del whole.output[:]
    whole.output.append(last)
    whole.input.append(start)
    return encoder


def _inner(name: str) -> str:
    return f"step/{name}"


def _rename(graph: GraphProto, keep: set[str]) -> None:
    """Give every name of the step its own space, but for what comes from the encoder."""
    for node in graph.node:
        node.name = _inner(node.name)
        for names in (node.input, node.output):
            names[:] = [name if name in keep or not name else _inner(name) for name in names]
    for tensor in graph.initializer:
        tensor.name = _inner(tensor.name)


def _as(value: ValueInfoProto, name: str) -> ValueInfoProto:
    named = ValueInfoProto()
    named.CopyFrom(value)
    named.name = name
    return named
