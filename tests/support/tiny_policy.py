"""Policy folders for tests: an ONNX graph whose action says what it was asked with.

Row i of the chunk is `observation.state + i * STEP` (and, with a camera, the frame's first byte is
added), so a test can tell from an action which observation it came from. Faults are built in on
request.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load, save

from agent.config import FEATURES
from agent.policies.store import PolicyStore
from policy.kinds.act import ActSpec
from policy.release.goldens import Golden, write_goldens
from policy.release.layout import entry_of, write_named_by_content
from policy.release.manifest import ReleaseManifest
from policy.session import blank_observation
from policy.spec import ENVIRONMENT, STATE, CameraSpec, PolicySpec

STEP = 0.125


def tiny_spec(
    chunk_size: int = 20, fps: int = 30, camera: tuple[int, int] | None = None
) -> PolicySpec:
    cameras = (
        () if camera is None else (CameraSpec(name="overhead", height=camera[0], width=camera[1]),)
    )
    return ActSpec(
        state_names=FEATURES,
        action_names=FEATURES,
        environment_names=("cube.x_m", "cube.y_m"),
        cameras=cameras,
        fps=fps,
        chunk_size=chunk_size,
    )


def expected_chunk(spec: PolicySpec, state: np.ndarray, pixel: int = 0) -> np.ndarray:
    ramp = np.arange(spec.chunk_size, dtype=np.float32)[:, None] * np.float32(STEP)
    return (state[None, :] + ramp + np.float32(pixel)).astype(np.float32)


def write_graph(
    path: Path,
    spec: PolicySpec,
    *,
    multiplications: int = 0,
    not_a_number: bool = False,
    hang: bool = False,
) -> None:
    """`multiplications` of 256x256 matrices make it slow; `hang` loops for hours."""
    size = len(spec.action_names)
    ramp = np.arange(spec.chunk_size, dtype=np.float32)[None, :, None] * np.float32(STEP)
    if not_a_number:
        ramp = ramp * np.float32(np.nan)
    constants = {"ramp": np.tile(ramp, (1, 1, size)), "zero": np.zeros((1, 1, 1), np.float32)}
    inputs = [helper.make_tensor_value_info(STATE, TensorProto.FLOAT, [1, size])]
    nodes = [
        helper.make_node("Unsqueeze", [STATE, "axis1"], ["state"]),
        helper.make_node("Add", ["state", "ramp"], ["from_state"]),
    ]
    constants["axis1"] = np.array([1], np.int64)
    terms = ["from_state"]
    if spec.environment_names:
        inputs.append(
            helper.make_tensor_value_info(
                ENVIRONMENT, TensorProto.FLOAT, [1, len(spec.environment_names)]
            )
        )
        nodes += [
            helper.make_node("ReduceSum", [ENVIRONMENT], ["place"], keepdims=0),
            helper.make_node("Mul", ["place", "zero"], ["from_place"]),
        ]
        terms.append("from_place")
    for camera in spec.cameras:
        shape = [1, camera.height, camera.width, 3]
        inputs.append(helper.make_tensor_value_info(camera.key, TensorProto.UINT8, shape))
        constants |= {"first": np.zeros(4, np.int64), "second": np.ones(4, np.int64)}
        nodes += [
            helper.make_node("Slice", [camera.key, "first", "second"], ["pixel"]),
            helper.make_node("Cast", ["pixel"], ["brightness"], to=TensorProto.FLOAT),
            helper.make_node("ReduceSum", ["brightness"], ["from_camera"], keepdims=0),
        ]
        terms.append("from_camera")
    if multiplications or hang:
        constants["matrix"] = np.eye(256, dtype=np.float32)
        nodes.append(helper.make_node("Expand", ["brake_seed", "square"], ["brake0"]))
        constants |= {"square": np.array([256, 256], np.int64)}
        nodes.insert(-1, helper.make_node("ReduceSum", [STATE], ["brake_seed"], keepdims=0))
        last = "brake0"
        if hang:
            constants["trips"] = np.array(2**40, np.int64)
            nodes.append(_endless(last))
            last = "endless"
        for index in range(multiplications):
            nodes.append(helper.make_node("MatMul", [last, "matrix"], [f"brake{index + 1}"]))
            last = f"brake{index + 1}"
        nodes += [
            helper.make_node("ReduceMean", [last], ["brake_mean"], keepdims=0),
            helper.make_node("Mul", ["brake_mean", "zero"], ["from_brake"]),
        ]
        terms.append("from_brake")
    nodes.append(helper.make_node("Sum", terms, ["action"]))
    output = helper.make_tensor_value_info("action", TensorProto.FLOAT, [1, spec.chunk_size, size])
    graph = helper.make_graph(
        nodes,
        "tiny",
        inputs,
        [output],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, {"armada": json.dumps({"spec": spec.to_json()})})
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def write_policy(
    folder: Path,
    spec: PolicySpec | None = None,
    *,
    version: int = 1,
    golden: int = 2,
    notes: bytes | None = None,
    **graph: Any,
) -> Path:
    """A folder in the store's layout, with notes.txt if asked for."""
    spec = spec or tiny_spec()
    folder.mkdir(parents=True, exist_ok=True)
    onnx_path = folder / "policy.onnx"
    write_graph(onnx_path, spec, **graph)
    files = [onnx_path]
    if notes is not None:
        files.append(folder / "notes.txt")
        files[-1].write_bytes(notes)
    names, golden_files = write_goldens(
        folder, [_golden(spec, np.float32(index)) for index in range(golden)]
    )
    manifest = ReleaseManifest(
        version=version,
        round=version,
        base_digest="0" * 64,
        spec=spec.to_json(),
        normalizer={},
        files={path.name: entry_of(path.read_bytes()) for path in files} | golden_files,
        golden=names,
        tolerance=1e-3,
        evaluation={},
        contributors=(),
        created_unix_s=0.0,
    )
    (folder / "manifest.json").write_bytes(manifest.canonical_bytes())
    return folder


def install_policy(store: PolicyStore, version: int = 1, **policy: Any) -> Path:
    """`write_policy` beside the store, then `install`."""
    return store.install(write_policy(beside(store), version=version, **policy), version)


def beside(store: PolicyStore) -> Path:
    """A new folder on the store's file system."""
    store.folder.parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(dir=store.folder.parent))


def change_manifest(folder: Path, **changes: Any) -> None:
    """Rewrite some keys of a folder's manifest."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(_manifest(folder) | changes))


def write_config(folder: Path, **rollout: float) -> Path:
    """An agent's configuration with one tracked cube and one camera; nothing is plugged in."""
    path = folder / "agent.toml"
    lines = "\n".join(f"{key} = {value}" for key, value in rollout.items())
    path.write_text(
        f"""
[robot]
port = "/dev/null"
[cameras.overhead]
source = "http://127.0.0.1:9/overhead.mjpg"
width = 64
height = 48
[tracker]
camera = "overhead"
hue_min_deg = 350
hue_max_deg = 10
homography = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
[rollout]
{lines}
[paths]
state_dir = "{folder / "state"}"
"""
    )
    return path


def golden_tensors(folder: Path, part: str) -> dict[str, np.ndarray]:
    """The tensors of a folder's golden `observations` or `actions`."""
    return load((folder / _manifest(folder)["golden"][part]).read_bytes())


def change_goldens(folder: Path, part: str, tensors: dict[str, np.ndarray]) -> None:
    """Other golden `observations` or `actions`."""
    change_golden_file(folder, part, save(tensors))


def change_golden_file(folder: Path, part: str, content: bytes) -> None:
    """Any bytes in place of the golden `observations` or `actions`; the manifest names them."""
    manifest = _manifest(folder)
    name, entry = write_named_by_content(folder, content, ".safetensors")
    change_manifest(
        folder,
        files=manifest["files"] | {name: entry.model_dump()},
        golden=manifest["golden"] | {part: name},
    )


def _manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_bytes())


def _golden(spec: PolicySpec, value: np.float32) -> Golden:
    state = np.full(len(spec.state_names), value, np.float32)
    return Golden(blank_observation(spec) | {STATE: state}, expected_chunk(spec, state))


def _endless(seed: str) -> onnx.NodeProto:
    """A Loop of 2**40 matrix products: no crash, no answer."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("MatMul", ["carried", "carried"], ["carried_on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("index", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", TensorProto.FLOAT, [256, 256]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried_on", TensorProto.FLOAT, [256, 256]),
        ],
    )
    return helper.make_node("Loop", ["trips", "", seed], ["endless"], body=body)
