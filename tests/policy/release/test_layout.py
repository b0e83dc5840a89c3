"""A graph is spread over files that are named by their content, and is read back whole."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from policy.errors import BadModelFile
from policy.release import layout
from policy.release.layout import INLINE_BYTES, read_graph, write_graph

LARGE = INLINE_BYTES // 4  # numbers of a tensor that gets a file


def graph(**tensors: np.ndarray) -> onnx.ModelProto:
    """y = x + the sum of each tensor."""
    nodes = [helper.make_node("ReduceSum", [name], [f"sum-{name}"], keepdims=0) for name in tensors]
    nodes.append(helper.make_node("Sum", ["x", *(f"sum-{name}" for name in tensors)], ["y"]))
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])] for name in ("x", "y")
    )
    constants = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    made = helper.make_graph(nodes, "sums", inputs, outputs, constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def run(path: Path) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": np.zeros(1, np.float32)})
    return float(y[0])


def of(value: float, count: int = LARGE) -> np.ndarray:
    return np.full(count, value, np.float32)


def test_large_tensors_lie_in_files_named_by_their_content_and_small_ones_in_the_graph(
    tmp_path: Path,
) -> None:
    files = write_graph(tmp_path / "policy.onnx", graph(big=of(1), small=of(1, 3)))
    assert {path.name for path in tmp_path.iterdir()} == set(files)
    for name, entry in files.items():
        content = (tmp_path / name).read_bytes()
        assert (entry.sha256, entry.size) == (hashlib.sha256(content).hexdigest(), len(content))
        assert name in ("policy.onnx", f"{entry.sha256}.bin")
    assert files["policy.onnx"].size < 1000
    assert run(tmp_path / "policy.onnx") == LARGE + 3


def test_tensors_of_equal_content_share_one_file(tmp_path: Path) -> None:
    files = write_graph(tmp_path / "policy.onnx", graph(one=of(1), two=of(1), three=of(2)))
    assert len(files) == 3
    assert run(tmp_path / "policy.onnx") == 4 * LARGE


def test_a_graph_of_a_thousand_tensors_has_no_more_files_than_a_manifest_may_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "write_durable", lambda path, content: path.write_bytes(content))
    tensors = {f"t{index}": of(index, LARGE + index) for index in range(1000)}
    files = write_graph(tmp_path / "policy.onnx", graph(**tensors))
    assert len(files) == layout.MAX_TENSOR_FILES + 1
    kept = [entry.size for name, entry in files.items() if name != "policy.onnx"]
    assert min(kept) == 4 * (LARGE + 1000 - layout.MAX_TENSOR_FILES), "the largest get a file"
    assert run(tmp_path / "policy.onnx") > 0


def test_onnx_runtime_takes_files_that_are_hard_links(tmp_path: Path) -> None:
    for name in write_graph(tmp_path / "1" / "policy.onnx", graph(big=of(1))):
        (tmp_path / "2").mkdir(exist_ok=True)
        os.link(tmp_path / "1" / name, tmp_path / "2" / name)
    assert run(tmp_path / "2" / "policy.onnx") == LARGE
    assert (
        len(read_graph(tmp_path / "2" / "policy.onnx").graph.initializer[0].raw_data) == 4 * LARGE
    )


def test_a_missing_tensor_is_no_graph(tmp_path: Path) -> None:
    write_graph(tmp_path / "policy.onnx", graph(big=of(1)))
    (path,) = tmp_path.glob("*.bin")
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read_graph(tmp_path / "policy.onnx")


@pytest.mark.parametrize("name", ["../x.bin", "/etc/passwd", "sub/x.bin", ".verified.json", ""])
def test_a_tensor_outside_of_the_folder_is_never_read(tmp_path: Path, name: str) -> None:
    write_graph(tmp_path / "policy.onnx", graph(big=of(1)))
    model = onnx.load(tmp_path / "policy.onnx", load_external_data=False)
    model.graph.initializer[0].external_data[0].value = name
    (tmp_path / "policy.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BadModelFile, match="not beside it"):
        read_graph(tmp_path / "policy.onnx")


@given(content=st.binary(max_size=300))
@settings(deadline=None, max_examples=50)
def test_bytes_that_are_no_graph_are_an_error_of_their_own(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("graph")
    (folder / "policy.onnx").write_bytes(content)
    try:
        read_graph(folder / "policy.onnx")
    except (BadModelFile, FileNotFoundError):
        pass
    finally:
        shutil.rmtree(folder)


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    model = graph(big=of(1.5), small=of(2, 3))
    before = model.SerializeToString(deterministic=True)
    write_graph(tmp_path / "policy.onnx", model)
    read = read_graph(tmp_path / "policy.onnx")
    for tensor in read.graph.initializer:
        tensor.ClearField("data_location")  # the default, said or not
    assert read.SerializeToString(deterministic=True) == before
