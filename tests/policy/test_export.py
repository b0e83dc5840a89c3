from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from synthetic_pick import frames_of, normalizer_of, tiny_spec

from policy.build import build_policy, read_weights, write_weights
from policy.errors import BadModelFile, BadObservation, ParityFailed
from policy.export import (
    TOLERANCE,
    check_parity,
    export_policy,
    golden_observations,
    lerobot_chunks,
)
from policy.release.folder import read_policy_folder
from policy.release.goldens import read_goldens
from policy.release.manifest import MANIFEST_NAME, parse_manifest, write_manifest
from policy.release.trial import goldens_of
from policy.session import OnnxPolicy, input_shapes
from policy.spec import ENVIRONMENT, STATE, CameraSpec, PolicySpec
from policy.statistics import Normalizer
from policy.weights import weights_digest

CAMERA = CameraSpec(name="overhead", height=32, width=48)


def build(**fields: object) -> tuple[PolicySpec, Normalizer, torch.nn.Module]:
    spec = tiny_spec(**fields)
    normalizer = normalizer_of(frames_of(3), spec)
    return spec, normalizer, build_policy(spec, normalizer, seed=3)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"use_vae": True, "n_vae_encoder_layers": 1, "dropout": 0.1},
        {"cameras": [CAMERA]},
        {"cameras": [CAMERA], "environment_names": []},
        {"cameras": [CAMERA], "backbone": "resnet18"},
    ],
)
def test_the_file_computes_what_lerobots_own_pipeline_computes(
    fields: dict[str, object], tmp_path: Path
) -> None:
    spec, normalizer, policy = build(**fields)
    path = tmp_path / "policy.onnx"
    exported = export_policy(policy, spec, normalizer, path, version=3, round_number=7)
    observations = golden_observations(spec, normalizer, 3)
    chunks = lerobot_chunks(policy, spec, normalizer, observations)
    assert exported.max_abs_error < 1e-3
    assert check_parity(path, observations, chunks) < 1e-3
    session = OnnxPolicy(path)
    assert session.metadata == {
        "version": 3,
        "round": 7,
        "base_digest": weights_digest(read_weights(policy)),
        "spec": spec.to_json(),
        "normalizer_digest": normalizer.digest(),
    }
    assert session.chunk_size == spec.chunk_size
    assert session.action_size == 6
    assert list(session.inputs) == list(input_shapes(spec))
    assert session.infer(observations[0]).shape == (spec.chunk_size, 6)


def test_a_batch_of_any_size_is_computed_row_by_row(tmp_path: Path) -> None:
    spec, normalizer, policy = build()
    path = tmp_path / "policy.onnx"
    export_policy(policy, spec, normalizer, path)
    observations = golden_observations(spec, normalizer, 5)
    raw = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    stacked = {name: np.stack([o[name] for o in observations]) for name in list(input_shapes(spec))}
    (together,) = raw.run(["action"], stacked)
    one_by_one = np.stack([OnnxPolicy(path).infer(observation) for observation in observations])
    np.testing.assert_allclose(together, one_by_one, atol=1e-3)


def test_other_weights_than_those_exported_fail_the_parity_check(tmp_path: Path) -> None:
    spec, normalizer, policy = build()
    path = tmp_path / "policy.onnx"
    export_policy(policy, spec, normalizer, path)
    write_weights(policy, {name: array * 1.5 for name, array in read_weights(policy).items()})
    observations = golden_observations(spec, normalizer, 2)
    with pytest.raises(ParityFailed):
        check_parity(path, observations, lerobot_chunks(policy, spec, normalizer, observations))


def test_a_difference_of_the_last_observation_alone_fails_the_parity_check(tmp_path: Path) -> None:
    spec, normalizer, policy = build()
    path = tmp_path / "policy.onnx"
    export_policy(policy, spec, normalizer, path)
    observations = golden_observations(spec, normalizer, 3)
    for wrong in (2 * TOLERANCE, float("nan")):
        chunks = lerobot_chunks(policy, spec, normalizer, observations)
        chunks[-1][-1, -1] += wrong
        with pytest.raises(ParityFailed):
            check_parity(path, observations, chunks)


def test_weights_that_are_no_numbers_are_never_exported(tmp_path: Path) -> None:
    spec, normalizer, policy = build()
    broken = {name: array * np.float32("nan") for name, array in read_weights(policy).items()}
    write_weights(policy, broken)
    with pytest.raises(ParityFailed):
        export_policy(policy, spec, normalizer, tmp_path / "policy.onnx")


def test_export_and_parity_leave_the_policy_in_training_mode(tmp_path: Path) -> None:
    spec, normalizer, policy = build()
    policy.train()
    export_policy(policy, spec, normalizer, tmp_path / "p.onnx")
    assert policy.training


def test_equal_weights_export_to_equal_bytes(tmp_path: Path) -> None:
    spec, normalizer, policy = build()
    for folder in ("one", "two"):
        export_policy(policy, spec, normalizer, tmp_path / folder / "policy.onnx")
    one, two = (tmp_path / folder / "policy.onnx" for folder in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_golden_answers_are_lerobots_own_and_the_file_gives_them(tmp_path: Path) -> None:
    spec, normalizer, policy = build(cameras=[CAMERA])
    path = tmp_path / "policy.onnx"
    names = export_policy(policy, spec, normalizer, path).described["golden"]
    goldens = read_goldens(tmp_path / names["observations"], tmp_path / names["actions"], spec)
    assert len(goldens) == 5
    observations = [golden.observation for golden in goldens]
    assert observations[0][STATE].shape == (6,)
    assert observations[0][CAMERA.key].shape == (32, 48, 3)
    chunks = lerobot_chunks(policy, spec, normalizer, observations)
    for golden, chunk in zip(goldens, chunks, strict=True):
        assert np.array_equal(golden.action, chunk)
        given = OnnxPolicy(path).infer(golden.observation)
        np.testing.assert_allclose(given, chunk, atol=TOLERANCE)


def test_what_is_described_is_every_file_that_was_written(tmp_path: Path) -> None:
    spec, normalizer, policy = build()
    described = export_policy(policy, spec, normalizer, tmp_path / "policy.onnx").described
    contents = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert described["files"] == {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        for name, content in contents.items()
    }
    assert json.loads(json.dumps(described)) == described


def test_big_pictures_leave_a_small_manifest_and_five_goldens(tmp_path: Path) -> None:
    cameras = [CameraSpec(name=name, height=480, width=640) for name in ("overhead", "wrist")]
    spec, normalizer, policy = build(cameras=cameras)
    exported = export_policy(policy, spec, normalizer, tmp_path / "policy.onnx")
    write_manifest(tmp_path, exported.described, evaluation={}, contributors=(), created_unix_s=0.0)
    content = (tmp_path / MANIFEST_NAME).read_bytes()
    assert len(content) <= 100_000
    assert parse_manifest(content).spec == spec.to_json()
    assert len(goldens_of(read_policy_folder(tmp_path))) == 5


def test_releases_of_one_fleet_share_what_training_left_as_it_was(tmp_path: Path) -> None:
    spec, normalizer, policy = build(cameras=[CAMERA])
    first = export_policy(policy, spec, normalizer, tmp_path / "1" / "policy.onnx", version=1)
    weights = read_weights(policy)
    trained = {name: a if "backbone" in name else a * 1.01 for name, a in weights.items()}
    write_weights(policy, trained)
    second = export_policy(policy, spec, normalizer, tmp_path / "2" / "policy.onnx", version=2)
    one, two = first.described["files"], second.described["files"]
    changed = {name for name in two if two[name] != one.get(name)}
    shared = sum(entry["size"] for name, entry in two.items() if name not in changed)
    assert shared >= sum(weights[n].nbytes for n in weights if "backbone" in n and "conv" in n) / 2
    names = second.described["golden"]
    assert names["observations"] not in changed and names["actions"] in changed


def test_an_observation_that_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    spec, normalizer, policy = build(cameras=[CAMERA])
    path = tmp_path / "policy.onnx"
    export_policy(policy, spec, normalizer, path)
    session = OnnxPolicy(path)
    good = golden_observations(spec, normalizer, 1)[0]
    with_axis = {name: value[None] for name, value in good.items()}
    assert np.array_equal(session.infer(good | {"task": np.zeros(1)}), session.infer(with_axis))
    for change, words in [
        ({ENVIRONMENT: None}, "environment_state"),
        ({STATE: np.zeros(5, np.float32)}, r"\[5\]"),
        ({CAMERA.key: np.zeros((32, 48, 3), np.float32)}, "uint8"),
    ]:
        broken = {name: value for name, value in (good | change).items() if value is not None}
        with pytest.raises(BadObservation, match=words):
            session.infer(broken)


def test_files_that_are_no_policy_of_ours_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        OnnxPolicy(tmp_path / "absent.onnx")
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"not a graph")
    with pytest.raises(BadModelFile, match="refuses"):
        OnnxPolicy(damaged)
    spec, normalizer, policy = build()
    path = tmp_path / "policy.onnx"
    export_policy(policy, spec, normalizer, path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(BadModelFile):
        OnnxPolicy(path)
