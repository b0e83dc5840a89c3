"""What of a release computes on this host: chosen by measure, and never something else."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from synthetic_pick import frames_of, normalizer_of, tiny_spec

from agent.policies.host_graph import (
    INT8_NAME,
    LEAST_GAIN,
    MOST_DIFFERENCE,
    RECORD_NAME,
    GraphVariant,
    choose,
    load_for_host,
    read_host_graph,
    write_host_graph,
)
from agent.training.host_measurement import measure_host_graph
from policy.build import build_policy
from policy.export import export_policy, golden_observations
from policy.release.folder import PolicyFolder, read_policy_folder
from policy.release.manifest import POLICY_NAME, write_manifest
from policy.spec import CameraSpec

FLOAT = GraphVariant(latency_ms=100.0, mean=0.0, p99=0.0)
INT8 = GraphVariant(graph="int8", latency_ms=40.0, mean=0.1, p99=0.4)


def test_the_quickest_that_computes_the_same_is_taken_and_says_why() -> None:
    other = GraphVariant(provider="openvino", latency_ms=60.0, mean=0.0, p99=0.0)
    chosen, reason = choose([FLOAT, other, INT8])
    assert chosen == INT8
    assert "40.0 ms a chunk instead of 100.0" in reason
    assert "0.400 at the 99th percentile" in reason


@pytest.mark.parametrize("field", ["mean", "p99"])
def test_int8_is_taken_up_to_half_a_degree_and_not_beyond(field: str) -> None:
    at = INT8.model_copy(update={field: MOST_DIFFERENCE})
    assert choose([FLOAT, at])[0] == at
    beyond = INT8.model_copy(update={field: np.nextafter(MOST_DIFFERENCE, 1.0)})
    chosen, reason = choose([FLOAT, beyond])
    assert chosen == FLOAT
    assert "int8 on cpu: actions differ by 0.5" in reason


def test_what_is_hardly_quicker_fails_or_was_not_measured_is_not_taken() -> None:
    slow = INT8.model_copy(update={"latency_ms": 100.0 * LEAST_GAIN + 0.1})
    failed = GraphVariant(provider="cuda", failed="no CUDA device")
    unmeasured = GraphVariant(provider="openvino")
    for other in (slow, failed, unmeasured):
        assert choose([FLOAT, other])[0] == FLOAT
    assert "cuda: no CUDA device" in choose([FLOAT, failed])[1]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    camera = CameraSpec(name="overhead", height=48, width=64)
    spec = tiny_spec(cameras=[camera], backbone_norm="frozen", dim_feedforward=2048)
    normalizer = normalizer_of(frames_of(2), spec)
    policy = build_policy(spec, normalizer, 0)
    described = export_policy(policy, spec, normalizer, folder / POLICY_NAME).described
    write_manifest(folder, described, evaluation={}, contributors=(), created_unix_s=time.time())
    return folder


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> PolicyFolder:
    for path in exported.iterdir():
        (tmp_path / path.name).hardlink_to(path)
    return read_policy_folder(tmp_path)


def test_int8_is_built_judged_and_recorded_beside_the_release(folder: PolicyFolder) -> None:
    normalizer = normalizer_of(frames_of(2), folder.spec)
    seen = golden_observations(folder.spec, normalizer, 6, seed=3)
    record = measure_host_graph(folder, seen[:4], seen[4:], threads=1)
    assert read_host_graph(folder) == record
    assert record.source == folder.onnx_digest
    assert record.frames == 2
    assert [each.graph for each in record.measured][:2] == ["float", "int8"]
    assert not any(each.failed for each in record.measured)
    int8 = record.measured[1]
    assert int8.p99 is not None
    assert int8.p99 > 0.0
    assert record.measured[0].p99 == 0.0
    assert (folder.path / INT8_NAME).exists() == (record.chosen.graph != "float")
    assert load_for_host(folder, 1).infer(seen[0]).shape == (
        folder.spec.chunk_size,
        len(folder.spec.action_names),
    )
    read_policy_folder(folder.path, hash_all=True)  # the release is as it was


def test_another_int8_file_release_or_runtime_is_not_what_was_measured(
    folder: PolicyFolder,
) -> None:
    normalizer = normalizer_of(frames_of(2), folder.spec)
    seen = golden_observations(folder.spec, normalizer, 3, seed=3)
    record = measure_host_graph(folder, seen, seen, threads=1)
    as_released = load_for_host(folder, 1).infer(seen[0])
    wrong = {
        "source": "0" * 64,
        "onnxruntime": "0.1",
        "chosen": INT8,
    }
    for name, value in wrong.items():
        (folder.path / INT8_NAME).write_bytes(b"not what was measured")
        write_host_graph(folder, record.model_copy(update={"int8_sha256": "1" * 64, name: value}))
        assert read_host_graph(folder) is None
        assert load_for_host(folder, 1).infer(seen[0]).shape == as_released.shape


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 100_000])
def test_a_damaged_record_counts_for_nothing(folder: PolicyFolder, content: bytes) -> None:
    (folder.path / RECORD_NAME).write_bytes(content)
    assert read_host_graph(folder) is None
    load_for_host(folder, 1)
