"""A trained policy as one ONNX file that takes raw observations and gives raw actions.

``export_policy`` is the only way from weights to a file that may drive an arm: it writes the file,
asks LeRobot's own pipeline for the actions to made-up observations, and refuses a file that says
anything else.
"""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from policy.build import IMAGE_MEAN, IMAGE_STD, build_processors, read_weights
from policy.errors import ParityFailed
from policy.flow import GUIDANCE, NEXT_X, TIME, Flow, X, guided_step, join
from policy.kinds import LANGUAGE_INPUTS, NOISE, PREFIX_WEIGHTS, PREVIOUS, kind_of
from policy.kinds.adapter import MEAN_STD
from policy.release.goldens import Golden, write_goldens
from policy.release.layout import write_files, write_graph
from policy.session import METADATA_KEY, OnnxPolicy, blank_observation, input_shapes
from policy.spec import ACTION, TASK, PolicySpec
from policy.statistics import Normalizer
from policy.train import evaluating
from policy.weights import Array, weights_digest

# Largest difference from LeRobot's own actions, raw joint units: for the exporter and for every
# host. A servo tells 360°/4096 = 0.088° apart; rounding on other kernels stayed below 0.001.
TOLERANCE = 1e-2
_GOLDENS = 5
_OPSET = 17  # the newest that torch's tracing exporter writes without a conversion
_EPSILON = 1e-8  # LeRobot divides by std + 1e-8

type Observation = Mapping[str, Array]


@dataclass(frozen=True)
class ExportedPolicy:
    """What was written.

    ``described`` is plain JSON data, the part of a manifest that follows from the policy: version,
    round, base_digest, spec, normalizer, files, golden, tolerance. ``max_abs_error`` is the largest
    difference found, in raw joint units.
    """

    described: dict[str, Any]
    max_abs_error: float


def export_policy(
    policy: torch.nn.Module,
    spec: PolicySpec,
    normalizer: Normalizer,
    path: Path,
    *,
    version: int = 0,
    round_number: int = 0,
) -> ExportedPolicy:
    """Write the graph to ``path`` and its other files beside it, durably; check what it computes.

    It must be what LeRobot's own pipeline computes. Frozen parts in bfloat16 become float32, with
    the same values: so is the graph. Raises BadStatistics, MissingArtefact, ParityFailed,
    BadModelFile, OSError; what was written then stays.
    """
    policy.float()
    about = {
        "version": version,
        "round": round_number,
        "base_digest": weights_digest(read_weights(policy)),
        "spec": spec.to_json(),
    }
    model = onnx_model(policy, spec, normalizer, about | {"normalizer_digest": normalizer.digest()})
    files = write_graph(path, model) | write_files(path.parent, kind_of(spec.kind).files(spec))
    observations = golden_observations(spec, normalizer, _GOLDENS)
    chunks = lerobot_chunks(policy, spec, normalizer, observations)
    worst = check_parity(path, observations, chunks)
    golden, golden_files = write_goldens(
        path.parent, [Golden(*pair) for pair in zip(observations, chunks, strict=True)]
    )
    described = about | {
        "normalizer": normalizer.to_json(),
        "files": {name: entry.model_dump() for name, entry in {**files, **golden_files}.items()},
        "golden": golden.model_dump(),
        "tolerance": TOLERANCE,
    }
    return ExportedPolicy(described, worst)


def onnx_model(
    policy: torch.nn.Module,
    spec: PolicySpec,
    normalizer: Normalizer,
    metadata: Mapping[str, Any],
) -> onnx.ModelProto:
    """The graph with its tensors: normaliser inside, inputs fed by name, any batch size.

    Inputs ``observation.state`` f32 [B,S], ``observation.environment_state`` f32 [B,E] (if any),
    ``observation.images.<camera>`` u8 [B,H,W,3], then those of its kind, such as ``noise`` f32
    [B,C,A]; output ``action`` f32 [B,C,A] in raw units. ``metadata`` travels as JSON under the key
    "armada". Raises BadStatistics.
    """
    normalizer.require(spec.vectors)
    # Two rows: an example of one row would be folded into the graph as a constant.
    examples = {
        name: torch.from_numpy(np.stack([value, value]))
        for name, value in blank_observation(spec).items()
    }
    flow = kind_of(spec.kind).flow(policy)
    with evaluating(policy), _merged(policy), _quiet():
        model = (
            _trace(_Deployed(policy, spec, normalizer), examples, [ACTION])
            if flow is None
            else _flow_model(policy, flow, spec, normalizer, examples)
        )
    # The tracer names a dimension that it could not prove; it is the spec's.
    for axis, size in zip((1, 2), (spec.chunk_size, len(spec.action_names)), strict=True):
        model.graph.output[0].type.tensor_type.shape.dim[axis].dim_value = size
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, json.dumps(dict(metadata), sort_keys=True)
    return model


def lerobot_chunks(
    policy: torch.nn.Module,
    spec: PolicySpec,
    normalizer: Normalizer,
    observations: Sequence[Observation],
) -> list[Array]:
    """Each observation's actions, f32 [C,A] in raw units, by LeRobot's own pipeline in torch.

    That is its preprocessor, ``predict_action_chunk`` and postprocessor. No batch axis.
    """
    preprocess, postprocess = build_processors(spec, normalizer)
    kind = kind_of(spec.kind)
    cameras = {camera.key for camera in spec.cameras}
    mean, std = torch.from_numpy(normalizer.mean(ACTION)), torch.from_numpy(normalizer.std(ACTION))
    chunks = []
    with evaluating(policy):
        for observation in observations:
            raw = {}
            for name in input_shapes(spec):
                value = torch.from_numpy(np.ascontiguousarray(observation[name])).unsqueeze(0)
                if name in cameras:
                    value = value.movedim(-1, -3).to(torch.float32) / 255.0
                raw[name] = value
            extra = {name: raw.pop(name) for name in kind.extra_inputs(spec)}
            words = {name: extra.pop(name) for name in LANGUAGE_INPUTS & extra.keys()}
            if words:
                raw[TASK] = [""]  # what is made of it is among the inputs
            if PREVIOUS in extra:
                extra[PREVIOUS] = (extra[PREVIOUS] - mean) / (std + _EPSILON)
            batch = kind.arrange(dict(preprocess(raw)) | words)
            chunk = postprocess(kind.predict(policy, batch, extra))[0]
            chunks.append(chunk.to(torch.float32).numpy())
    return chunks


def check_parity(path: Path, observations: Sequence[Observation], chunks: Sequence[Array]) -> float:
    """Largest difference (raw joint units) between the ONNX file's actions and ``chunks``.

    Raises ParityFailed above TOLERANCE or when it is no number, BadModelFile.
    """
    session = OnnxPolicy(path)
    differences = [
        np.abs(session.infer(observation) - chunk).max()
        for observation, chunk in zip(observations, chunks, strict=True)
    ]
    worst = float(np.max(differences))  # not a number when one of them is not
    if not worst <= TOLERANCE:
        raise ParityFailed(f"{path}: differs from the policy by {worst:.3g}, more than {TOLERANCE}")
    return worst


def golden_observations(
    spec: PolicySpec, normalizer: Normalizer, count: int, seed: int = 0
) -> list[dict[str, Array]]:
    """Made-up raw observations around the fleet's mean, with which a file can be checked.

    They are drawn from the normaliser, so they show nobody's data. No batch axis: state [S], image
    u8 [H,W,3].
    """
    random = np.random.default_rng(seed)
    observations = []
    for _ in range(count):
        observation: dict[str, Array] = {}
        for name, names in spec.vectors.items():
            if name != ACTION:
                noise = random.standard_normal(len(names))
                value = normalizer.mean(name) + noise * normalizer.std(name)
                observation[name] = value.astype(np.float32)
        for camera in spec.cameras:
            shape = (camera.height, camera.width, 3)
            observation[camera.key] = random.integers(0, 256, shape, dtype=np.uint8)
        observations.append(observation | kind_of(spec.kind).draw_extra_inputs(spec, random))
    return observations


def _trace(
    module: torch.nn.Module,
    examples: Mapping[str, torch.Tensor],
    outputs: Sequence[str],
    fixed: Collection[str] = (),
) -> onnx.ModelProto:
    """The module as ONNX; the first axis of all is the batch, but for inputs in ``fixed``."""
    names = list(examples)
    buffer = io.BytesIO()
    torch.onnx.export(
        module.eval(),
        tuple(examples.values()),
        buffer,
        input_names=names,
        output_names=list(outputs),
        dynamic_axes={name: {0: "batch"} for name in [*names, *outputs] if name not in fixed},
        opset_version=_OPSET,
        dynamo=False,
    )
    model = onnx.load_from_string(buffer.getvalue())
    _drop_aliases(model.graph)
    return model


def _drop_aliases(graph: onnx.GraphProto) -> None:
    """The tracer writes weights used twice (two cameras, one trunk) as Identity of the first."""
    weights = {tensor.name for tensor in graph.initializer}
    aliases: dict[str, str] = {}
    nodes = []
    for node in graph.node:
        if node.op_type == "Identity" and node.input[0] in weights:
            aliases[node.output[0]] = node.input[0]
        else:
            nodes.append(node)
    for node in nodes:
        node.input[:] = [aliases.get(name, name) for name in node.input]
    del graph.node[:]
    graph.node.extend(nodes)


def _flow_model(
    policy: torch.nn.Module,
    flow: Flow,
    spec: PolicySpec,
    normalizer: Normalizer,
    examples: Mapping[str, torch.Tensor],
) -> onnx.ModelProto:
    seen = {name: value for name, value in examples.items() if name != NOISE}
    encoder = _Encoder(policy, flow, spec, normalizer, list(seen))
    context = encoder(*seen.values())
    names = [f"context_{index}" for index in range(len(context))]
    first = _trace(encoder, seen, names)
    step = {
        X: torch.zeros(2, spec.chunk_size, flow.width),
        TIME: torch.ones(1),
        GUIDANCE: torch.ones(1),
        **dict(zip(names, context, strict=True)),
    }
    model = join(
        first, _trace(_Step(policy, flow), step, [NEXT_X], (TIME, GUIDANCE)), NOISE, flow.steps
    )
    return _in_raw_units(model, spec, normalizer)


def _in_raw_units(
    model: onnx.ModelProto, spec: PolicySpec, normalizer: Normalizer
) -> onnx.ModelProto:
    """The flow's last actions without their padding, times the deviation, plus the mean."""
    constants = {
        "first_action": np.array([0], np.int64),
        "past_actions": np.array([len(spec.action_names)], np.int64),
        "last_axis": np.array([2], np.int64),
        "action_std": normalizer.std(ACTION),
        "action_mean": normalizer.mean(ACTION),
    }
    graph = model.graph
    graph.initializer.extend(numpy_helper.from_array(v, name) for name, v in constants.items())
    graph.node.extend(
        [
            helper.make_node(
                "Slice", [NEXT_X, "first_action", "past_actions", "last_axis"], ["unpadded"]
            ),
            helper.make_node("Mul", ["unpadded", "action_std"], ["scaled"]),
            helper.make_node("Add", ["scaled", "action_mean"], [ACTION]),
        ]
    )
    del graph.output[:]
    shape = ["batch", spec.chunk_size, len(spec.action_names)]
    graph.output.append(helper.make_tensor_value_info(ACTION, TensorProto.FLOAT, shape))
    return model


class _Inputs(torch.nn.Module):
    """Raw inputs as an arranged, normalised batch, and those of the kind beside it."""

    def __init__(
        self,
        policy: torch.nn.Module,
        spec: PolicySpec,
        normalizer: Normalizer,
        names: Sequence[str],
    ) -> None:
        super().__init__()
        self._policy = policy
        self._kind = kind_of(spec.kind)
        self._names = names
        self._extra = self._kind.extra_inputs(spec)
        self._cameras = {camera.key for camera in spec.cameras}
        self._scales: dict[str, tuple[torch.Tensor, torch.Tensor]] = {
            name: (
                torch.from_numpy(normalizer.mean(name)),
                torch.from_numpy(normalizer.std(name)) + _EPSILON,
            )
            for name in spec.vectors
        }
        self._image_scale = (
            (torch.tensor(IMAGE_MEAN), torch.tensor(IMAGE_STD) + _EPSILON)
            if self._kind.pictures == MEAN_STD
            else (torch.zeros(3), torch.ones(3))
        )

    def read(self, raw: Sequence[torch.Tensor]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        batch: dict[str, Any] = {}
        extra = {}
        for name, value in zip(self._names, raw, strict=True):
            if name == PREVIOUS:
                mean, std = self._scales[ACTION]
                extra[name] = (value - mean) / std
            elif name in LANGUAGE_INPUTS:
                batch[name] = value
            elif name in self._extra:
                extra[name] = value
            elif name in self._cameras:
                mean, std = self._image_scale  # as one product and one sum a pixel
                scaled = value.to(torch.float32) * (1.0 / (255.0 * std)) - mean / std
                batch[name] = scaled.permute(0, 3, 1, 2)
            else:
                mean, std = self._scales[name]
                batch[name] = (value - mean) / std
        return self._kind.arrange(batch), extra


class _Deployed(_Inputs):
    """Normalise, predict, bring the actions back to raw units."""

    def __init__(self, policy: torch.nn.Module, spec: PolicySpec, normalizer: Normalizer) -> None:
        super().__init__(policy, spec, normalizer, list(input_shapes(spec)))
        self._mean = torch.from_numpy(normalizer.mean(ACTION))
        self._std = torch.from_numpy(normalizer.std(ACTION))

    def forward(self, *raw: torch.Tensor) -> torch.Tensor:
        actions = self._kind.predict(self._policy, *self.read(raw))
        return actions * self._std + self._mean


class _Encoder(_Inputs):
    """What every step of a flow looks at: the previous chunk, its weights, what is seen."""

    def __init__(
        self,
        policy: torch.nn.Module,
        flow: Flow,
        spec: PolicySpec,
        normalizer: Normalizer,
        names: Sequence[str],
    ) -> None:
        super().__init__(policy, spec, normalizer, names)
        self._flow = flow

    def forward(self, *raw: torch.Tensor) -> tuple[torch.Tensor, ...]:
        batch, extra = self.read(raw)
        previous = extra[PREVIOUS]
        padded = torch.nn.functional.pad(previous, (0, self._flow.width - previous.shape[-1]))
        return padded, extra[PREFIX_WEIGHTS].unsqueeze(-1), *self._flow.encode(batch)


class _Step(torch.nn.Module):
    """One step of a flow."""

    def __init__(self, policy: torch.nn.Module, flow: Flow) -> None:
        super().__init__()
        self._policy = policy  # its parameters are then the module's
        self._flow = flow

    def forward(
        self,
        x: torch.Tensor,
        time: torch.Tensor,
        guidance: torch.Tensor,
        previous: torch.Tensor,
        weights: torch.Tensor,
        *context: torch.Tensor,
    ) -> torch.Tensor:
        velocity = self._flow.velocity(x, time.expand(x.shape[0]), context)
        return guided_step(x, velocity, time, guidance, previous, weights, self._flow.steps)


@contextlib.contextmanager
def _merged(policy: torch.nn.Module) -> Iterator[None]:
    """With low-rank changes added to the weights that they change, exactly undone afterwards."""
    changed = [layer for layer in policy.modules() if hasattr(layer, "lora_B")]
    before = [layer.get_base_layer().weight.detach().clone() for layer in changed]
    for layer in changed:
        layer.merge()
    try:
        yield
    finally:
        for layer, weight in zip(changed, before, strict=True):
            layer.unmerge()
            with torch.no_grad():
                layer.get_base_layer().weight.copy_(weight)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the tracer's remarks about shapes, which the parity check judges better."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
