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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from policy.build import IMAGE_MEAN, IMAGE_STD, build_processors, read_weights
from policy.errors import ParityFailed
from policy.kinds import kind_of, require_exportable
from policy.kinds.adapter import MEAN_STD
from policy.release.goldens import Golden, write_goldens
from policy.release.layout import write_graph
from policy.session import METADATA_KEY, OnnxPolicy, blank_observation, input_shapes
from policy.spec import ACTION, PolicySpec
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

    It must be what LeRobot's own pipeline computes. Raises NotExportable, BadStatistics,
    ParityFailed, BadModelFile, OSError; what was written then stays.
    """
    require_exportable(spec)
    about = {
        "version": version,
        "round": round_number,
        "base_digest": weights_digest(read_weights(policy)),
        "spec": spec.to_json(),
    }
    model = onnx_model(policy, spec, normalizer, about | {"normalizer_digest": normalizer.digest()})
    files = write_graph(path, model)
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
    graph = _Deployed(policy, spec, normalizer)
    # Two rows: an example of one row would be folded into the graph as a constant.
    blank = blank_observation(spec)
    names = list(blank)
    examples = tuple(torch.from_numpy(np.stack([value, value])) for value in blank.values())
    buffer = io.BytesIO()
    with evaluating(policy), _quiet():
        torch.onnx.export(
            graph.eval(),
            examples,
            buffer,
            input_names=names,
            output_names=[ACTION],
            dynamic_axes={name: {0: "batch"} for name in [*names, ACTION]},
            opset_version=_OPSET,
            dynamo=False,
        )
    model = onnx.load_from_string(buffer.getvalue())
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
            chunk = postprocess(kind.predict(policy, kind.arrange(preprocess(raw)), extra))[0]
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


class _Deployed(torch.nn.Module):
    """Normalise, predict, bring the actions back to raw units."""

    def __init__(self, policy: torch.nn.Module, spec: PolicySpec, normalizer: Normalizer) -> None:
        super().__init__()
        self._policy = policy
        self._kind = kind_of(spec.kind)
        self._names = list(input_shapes(spec))
        self._extra = self._kind.extra_inputs(spec)
        self._cameras = {camera.key for camera in spec.cameras}
        self._scales: dict[str, tuple[torch.Tensor, torch.Tensor]] = {
            name: (
                torch.from_numpy(normalizer.mean(name)),
                torch.from_numpy(normalizer.std(name)) + _EPSILON,
            )
            for name in spec.vectors
        }
        self._action_mean = torch.from_numpy(normalizer.mean(ACTION))
        self._action_std = torch.from_numpy(normalizer.std(ACTION))
        self._image_scale = (
            (torch.tensor(IMAGE_MEAN), torch.tensor(IMAGE_STD) + _EPSILON)
            if self._kind.pictures == MEAN_STD
            else (torch.zeros(3), torch.ones(3))
        )

    def forward(self, *raw: torch.Tensor) -> torch.Tensor:
        batch: dict[str, Any] = {}
        extra = {}
        for name, value in zip(self._names, raw, strict=True):
            if name in self._extra:
                extra[name] = value
            elif name in self._cameras:
                mean, std = self._image_scale
                batch[name] = ((value.to(torch.float32) / 255.0 - mean) / std).permute(0, 3, 1, 2)
            else:
                mean, std = self._scales[name]
                batch[name] = (value - mean) / std
        actions = self._kind.predict(self._policy, self._kind.arrange(batch), extra)
        return actions * self._action_std + self._action_mean


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the tracer's remarks about shapes, which the parity check judges better."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
