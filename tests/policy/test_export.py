from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from synthetic_pick import frames_of, normalizer_of, tiny_spec

from policy.build import build_policy, read_weights, write_weights
from policy.errors import BadModelFile, BadObservation, ParityFailed
from policy.export import (
    check_parity,
    export_onnx,
    golden_answers,
    golden_observations,
    input_names,
)
from policy.session import OnnxPolicy
from policy.spec import ENVIRONMENT, STATE, CameraSpec, PolicySpec
from policy.statistics import Normalizer

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
    ],
)
def test_the_file_computes_what_lerobots_own_pipeline_computes(
    fields: dict[str, object], tmp_path: Path
) -> None:
    spec, normalizer, policy = build(**fields)
    path = tmp_path / "policy.onnx"
    export_onnx(policy, spec, normalizer, path, {"version": 3})
    observations = golden_observations(spec, normalizer, 3)
    assert check_parity(policy, spec, normalizer, path, observations) < 1e-3
    session = OnnxPolicy(path)
    assert session.metadata == {"version": 3}
    assert session.chunk_size == spec.chunk_size
    assert session.action_size == 6
    assert list(session.inputs) == input_names(spec)
    assert session.infer(observations[0]).shape == (spec.chunk_size, 6)


def test_a_batch_of_any_size_is_computed_row_by_row(tmp_path: Path) -> None:
    spec, normalizer, policy = build()
    path = tmp_path / "policy.onnx"
    export_onnx(policy, spec, normalizer, path, {})
    observations = golden_observations(spec, normalizer, 5)
    raw = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    stacked = {name: np.stack([o[name] for o in observations]) for name in input_names(spec)}
    (together,) = raw.run(["action"], stacked)
    one_by_one = np.stack([OnnxPolicy(path).infer(observation) for observation in observations])
    np.testing.assert_allclose(together, one_by_one, atol=1e-3)


def test_other_weights_than_those_exported_fail_the_parity_check(tmp_path: Path) -> None:
    spec, normalizer, policy = build()
    path = tmp_path / "policy.onnx"
    export_onnx(policy, spec, normalizer, path, {})
    write_weights(policy, {name: array * 1.5 for name, array in read_weights(policy).items()})
    with pytest.raises(ParityFailed):
        check_parity(policy, spec, normalizer, path, golden_observations(spec, normalizer, 2))


def test_export_and_parity_leave_the_policy_in_training_mode(tmp_path: Path) -> None:
    spec, normalizer, policy = build()
    policy.train()
    export_onnx(policy, spec, normalizer, tmp_path / "p.onnx", {})
    check_parity(
        policy, spec, normalizer, tmp_path / "p.onnx", golden_observations(spec, normalizer, 1)
    )
    assert policy.training


def test_equal_weights_export_to_equal_bytes(tmp_path: Path) -> None:
    spec, normalizer, policy = build()
    for name in ("one", "two"):
        export_onnx(policy, spec, normalizer, tmp_path / name, {"b": 1, "a": 2})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_golden_answers_are_what_the_file_says_to_golden_observations(tmp_path: Path) -> None:
    spec, normalizer, policy = build(cameras=[CAMERA])
    path = tmp_path / "policy.onnx"
    export_onnx(policy, spec, normalizer, path, {})
    observations = golden_observations(spec, normalizer, 2)
    answers = golden_answers(path, observations)
    assert len(answers) == 2
    assert np.array(answers[0]["observation"][STATE]).shape == (6,)
    assert np.array(answers[0]["observation"][CAMERA.key]).shape == (32, 48, 3)
    np.testing.assert_allclose(answers[1]["action"], OnnxPolicy(path).infer(observations[1]))


def test_an_observation_that_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    spec, normalizer, policy = build(cameras=[CAMERA])
    path = tmp_path / "policy.onnx"
    export_onnx(policy, spec, normalizer, path, {})
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
    export_onnx(policy, spec, normalizer, path, {})
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(BadModelFile):
        OnnxPolicy(path)
