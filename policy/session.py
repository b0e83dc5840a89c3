"""A policy as it drives an arm: one ONNX file, onnxruntime and numpy, no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from policy.errors import BadModelFile, BadObservation, InferenceFailed
from policy.kinds import INTEGER_INPUTS, LANGUAGE_INPUTS, NOISE, PREFIX_WEIGHTS, PREVIOUS, kind_of
from policy.spec import ACTION, PolicySpec
from policy.words import task_reader

type Array = NDArray[Any]

METADATA_KEY = "armada"
_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(int64)": np.dtype(np.int64),
}

# What computes: our name, and ONNX Runtime's; the CPU's own is in every build.
CPU = "cpu"
PROVIDERS = {
    CPU: "CPUExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "cuda": "CUDAExecutionProvider",
}

# What loading or running a graph raises; pybind11 gives it no common base of its own.
_RUNTIME_ERRORS = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoModel,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    MemoryError,
    ValueError,
)


class OnnxPolicy:
    """A loaded policy: raw observations in, a chunk of raw actions out.

    Inputs are fed by name: ``observation.state`` f32 [1,S], ``observation.environment_state``
    f32 [1,E], ``observation.images.<camera>`` u8 [1,H,W,3] RGB. A leading axis of one may be left
    out. What a graph asks for beyond that has a default where it is not given: ``noise`` is drawn;
    ``previous_chunk`` f32 [1,C,A] (raw units) and ``prefix_weights`` f32 [1,C] are zero, which
    plans afresh; the vector of a task, or its tokens (by the tokenizer beside the file), come from
    the words given to ``infer``. Raises BadModelFile when the file cannot be loaded or has no
    ``armada`` metadata, FileNotFoundError when it or its tokenizer is not there, MissingPackage.
    """

    def __init__(self, path: str | Path, threads: int = 1, provider: str = CPU) -> None:
        self._path = path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such policy file")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # A spinning worker would take the processor away from the control loop.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(path),
                sess_options=options,
                providers=list(dict.fromkeys([PROVIDERS[provider], PROVIDERS[CPU]])),
                provider_options=_provider_options(provider, threads),
            )
        except _RUNTIME_ERRORS as error:
            raise BadModelFile(f"{path}: onnxruntime refuses it ({error})") from error
        self._random = np.random.default_rng()
        self.metadata = _read_metadata(path, self._session)
        self.inputs: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        for entry in self._session.get_inputs():
            if entry.type not in _DTYPES:
                raise BadModelFile(f"{path}: input {entry.name} has type {entry.type}")
            shape = tuple(size if isinstance(size, int) else 1 for size in entry.shape)
            self.inputs[entry.name] = (_DTYPES[entry.type], (1, *shape[1:]))
        outputs = {entry.name: entry.shape for entry in self._session.get_outputs()}
        if "action" not in outputs or len(outputs["action"]) != 3:
            raise BadModelFile(f"{path}: no output 'action' of shape [1, chunk, action]")
        self.chunk_size = int(outputs["action"][1])
        self.action_size = int(outputs["action"][2])
        shapes = {name: shape[1:] for name, (_, shape) in self.inputs.items()}
        self._words = task_reader(shapes, path.parent)

    def require(self, spec: PolicySpec) -> None:
        """Raise BadModelFile unless inputs and output are the spec's."""
        found = {name: shape[1:] for name, (_, shape) in self.inputs.items()}
        if found != input_shapes(spec):
            raise BadModelFile(
                f"{self._path} takes {_listed(found)}, "
                f"its manifest says {_listed(input_shapes(spec))}"
            )
        shape = [self.chunk_size, self.action_size]
        told = [spec.chunk_size, len(spec.action_names)]
        if shape != told:
            raise BadModelFile(f"{self._path} gives actions {shape}, its manifest says {told}")

    def infer(self, observation: Mapping[str, Array], task: str = "") -> Array:
        """Chunk of actions, float32 [C, A] in raw units. Entries that are no input are ignored.

        ``task`` is read by a policy that reads words, unless the observation has what it becomes.
        Raises BadObservation: an input is missing, or has a wrong shape or kind of numbers;
        InferenceFailed.
        """
        observation = {**self._defaults(observation, task), **observation}
        feed = {
            name: _as_input(name, observation, dtype, shape)
            for name, (dtype, shape) in self.inputs.items()
        }
        try:
            (action,) = self._session.run(["action"], feed)
        except _RUNTIME_ERRORS as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InferenceFailed(f"the policy cannot be run: {reason}") from error
        return np.asarray(action[0], dtype=np.float32)

    def _defaults(self, observation: Mapping[str, Array], task: str) -> dict[str, Array]:
        absent = {}
        for name in {NOISE, PREVIOUS, PREFIX_WEIGHTS} & self.inputs.keys() - observation.keys():
            shape = self.inputs[name][1]
            absent[name] = (
                self._random.standard_normal(shape, np.float32)
                if name == NOISE
                else np.zeros(shape, np.float32)
            )
        if self._words is not None and not LANGUAGE_INPUTS & observation.keys():
            absent |= self._words.inputs(task)
        return absent


def available_providers() -> list[str]:
    """Those that this host's ONNX Runtime was built with, the CPU's own first."""
    built = onnxruntime.get_available_providers()
    return [name for name, theirs in PROVIDERS.items() if theirs in built]


def _provider_options(provider: str, threads: int) -> list[dict[str, str]]:
    if provider == CPU:
        return [{}]
    if provider == "openvino":
        # Its default on some processors is bfloat16, too coarse for the goldens.
        precise = {"CPU": {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}}
        return [{"device_type": "CPU", "load_config": json.dumps(precise)}, {}]
    return [{}, {}]


def input_shapes(spec: PolicySpec) -> dict[str, tuple[int, ...]]:
    """The graph's inputs in order, without their leading axis: [S], [E] (if any), [H, W, 3].

    Then what else its kind asks for, such as ``noise`` [C, A].
    """
    shapes: dict[str, tuple[int, ...]] = {
        name: (len(names),) for name, names in spec.vectors.items() if name != ACTION
    }
    shapes |= {camera.key: (camera.height, camera.width, 3) for camera in spec.cameras}
    return shapes | kind_of(spec.kind).extra_inputs(spec)


def as_observation(spec: PolicySpec, values: Mapping[str, Any]) -> dict[str, Array]:
    """Nested lists as the arrays that the graph takes. Raises BadObservation: they are ragged."""
    types: dict[str, type[np.generic]] = dict.fromkeys(INTEGER_INPUTS, np.int64)
    types |= {camera.key: np.uint8 for camera in spec.cameras}
    try:
        return {
            name: np.asarray(value, dtype=types.get(name, np.float32))
            for name, value in values.items()
        }
    except (ValueError, TypeError, OverflowError) as error:
        raise BadObservation(f"an observation is not made of numbers: {error}") from error


def blank_observation(spec: PolicySpec) -> dict[str, Array]:
    """An observation of zeros, to warm a graph up with."""
    return as_observation(
        spec, {name: np.zeros(shape) for name, shape in input_shapes(spec).items()}
    )


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items()))


def _as_input(
    name: str,
    observation: Mapping[str, Array],
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
) -> Array:
    if name not in observation:
        raise BadObservation(f"the policy needs {name}, which the observation does not have")
    value = np.asarray(observation[name])
    if value.shape not in (shape, shape[1:]):
        raise BadObservation(f"{name}: shape {list(value.shape)}, the policy wants {list(shape)}")
    if dtype == np.uint8 and value.dtype != np.uint8:
        raise BadObservation(f"{name}: {value.dtype}, the policy wants uint8 RGB")
    return np.ascontiguousarray(value, dtype=dtype).reshape(shape)


def _read_metadata(path: Path, session: onnxruntime.InferenceSession) -> dict[str, Any]:
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        raise BadModelFile(f"{path}: no '{METADATA_KEY}' metadata: not one of our exports")
    try:
        metadata = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadModelFile(f"{path}: '{METADATA_KEY}' metadata is not JSON ({error})") from error
    if not isinstance(metadata, dict):
        raise BadModelFile(f"{path}: '{METADATA_KEY}' metadata is not a JSON object")
    return metadata
