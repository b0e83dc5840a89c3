"""The ONNX graph of a checked policy folder, and the observations it is fed with."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from agent.policies.errors import PolicyRefused
from agent.policies.folder import PolicyFolder
from policy.errors import PolicyError
from policy.session import OnnxPolicy
from policy.spec import ENVIRONMENT, STATE, PolicySpec
from protocol.manifest import Golden

# Everything that a graph raises when it is run; pybind11 gives them no common base of their own.
INFERENCE_ERRORS: tuple[type[Exception], ...] = (
    PolicyError,
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    MemoryError,
    ValueError,
)

Inputs = dict[str, NDArray[Any]]


def load_graph(folder: PolicyFolder, threads: int) -> OnnxPolicy:
    """Load the graph and check its inputs and output against the folder's spec.

    Raises PolicyRefused with one line.
    """
    try:
        policy = OnnxPolicy(folder.onnx_path, threads=threads)
    except (PolicyError, FileNotFoundError) as error:
        raise PolicyRefused(str(error)) from error
    wanted = input_shapes(folder.spec)
    found = {name: shape[1:] for name, (_, shape) in policy.inputs.items()}
    if found != wanted:
        raise PolicyRefused(
            f"{folder.onnx_path} takes {_listed(found)}, its manifest says {_listed(wanted)}"
        )
    shape = (policy.chunk_size, policy.action_size)
    told = (folder.spec.chunk_size, len(folder.spec.action_names))
    if shape != told:
        raise PolicyRefused(
            f"{folder.onnx_path} gives actions {list(shape)}, its manifest says {list(told)}"
        )
    return policy


def input_shapes(spec: PolicySpec) -> dict[str, tuple[int, ...]]:
    """Return the graph's inputs without their leading axis of one: [S], [E], [H, W, 3]."""
    shapes: dict[str, tuple[int, ...]] = {STATE: (len(spec.state_names),)}
    if spec.environment_names:
        shapes[ENVIRONMENT] = (len(spec.environment_names),)
    for camera in spec.cameras:
        shapes[camera.key] = (camera.height, camera.width, 3)
    return shapes


def blank_observation(spec: PolicySpec) -> Inputs:
    """Return an observation of zeros, to warm a graph up with."""
    cameras = {camera.key for camera in spec.cameras}
    return {
        name: np.zeros(shape, dtype=np.uint8 if name in cameras else np.float32)
        for name, shape in input_shapes(spec).items()
    }


def golden_inputs(spec: PolicySpec, golden: Golden) -> Inputs:
    """Return a manifest's golden observation as arrays. Raises ValueError when it is ragged."""
    cameras = {camera.key for camera in spec.cameras}
    return {
        name: np.asarray(values, dtype=np.uint8 if name in cameras else np.float32)
        for name, values in golden.observation.items()
    }


def measure_latency_ms(
    policy: OnnxPolicy,
    observation: Mapping[str, NDArray[Any]],
    *,
    runs: int,
    within_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Return the milliseconds of at most `runs` inferences begun `within_s`, after one unmeasured.

    The first run allocates. Raises one of INFERENCE_ERRORS.
    """
    policy.infer(observation)
    end_s = clock() + within_s
    times: list[float] = []
    while len(times) < runs and (not times or clock() < end_s):
        begun_s = clock()
        policy.infer(observation)
        times.append((clock() - begun_s) * 1000.0)
    return times


def percentile(values: list[float], percent: float) -> float:
    """Return the smallest value that `percent` per cent of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100.0) - 1)]


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items()))
