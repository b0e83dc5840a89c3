"""A release out of a round's weights: what is published is what was merged, proved by LeRobot."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from counted_hashes import count_hashes
from synthetic_pick import frames_of, normalizer_of, tiny_spec

from coordinator.errors import ExportFailed
from coordinator.jobs import export_release
from coordinator.jobs.export_release import export
from coordinator.jobs.runner import EXPORT_MODULE, JobRunner
from policy.build import build_policy, read_weights, write_weights
from policy.errors import BadWeights, ParityFailed
from policy.export import TOLERANCE, lerobot_chunks
from policy.release.folder import read_policy_folder
from policy.release.manifest import MANIFEST_NAME, POLICY_NAME, parse_manifest
from policy.release.trial import goldens_of
from policy.session import OnnxPolicy
from policy.weights import save_weights, weights_digest

SPEC = tiny_spec()
NORMALIZER = normalizer_of(frames_of(3), SPEC)
POLICY = build_policy(SPEC, NORMALIZER, seed=3)


def request(folder: Path, **changes: Any) -> dict[str, Any]:
    weights = read_weights(POLICY)
    save_weights(folder / "weights.safetensors", weights)
    (folder / "release").mkdir()
    return {
        "weights": str(folder / "weights.safetensors"),
        "spec": SPEC.to_json(),
        "normalizer": NORMALIZER.to_json(),
        "folder": str(folder / "release"),
        "version": 3,
        "round": 7,
        "base_digest": weights_digest(weights),
        "evaluation": {"action_mae": 1.5},
        "contributors": ["arm-1", "arm-2"],
        "created_unix_s": 12.5,
    } | changes


def test_the_folder_holds_the_graph_and_a_manifest_of_all_that_was_asked(tmp_path: Path) -> None:
    asked = request(tmp_path)
    result = export(asked)
    folder = Path(asked["folder"])
    manifest = parse_manifest((folder / MANIFEST_NAME).read_bytes(), result["manifest_digest"])
    assert {path.name for path in folder.iterdir()} == {MANIFEST_NAME, *manifest.files}
    content = (folder / POLICY_NAME).read_bytes()
    assert manifest.files[POLICY_NAME].sha256 == hashlib.sha256(content).hexdigest()
    assert manifest.files[POLICY_NAME].size == len(content)
    for key in ("version", "round", "base_digest", "spec", "normalizer", "evaluation"):
        assert getattr(manifest, key) == asked[key], key
    assert manifest.contributors == ("arm-1", "arm-2")
    assert (manifest.created_unix_s, manifest.tolerance) == (12.5, TOLERANCE)
    assert 0.0 <= result["max_abs_error"] <= TOLERANCE


def test_the_golden_actions_are_lerobots_own_and_the_graph_gives_them(tmp_path: Path) -> None:
    asked = request(tmp_path)
    export(asked)
    folder = Path(asked["folder"])
    goldens = goldens_of(read_policy_folder(folder))
    session = OnnxPolicy(folder / POLICY_NAME)
    assert len(goldens) == 5
    for golden in goldens:
        (chunk,) = lerobot_chunks(POLICY, SPEC, NORMALIZER, [golden.observation])
        assert np.array_equal(golden.action, chunk)
        np.testing.assert_allclose(session.infer(golden.observation), chunk, atol=TOLERANCE)


def test_weights_that_are_not_those_of_the_round_are_not_released(tmp_path: Path) -> None:
    with pytest.raises(BadWeights, match="not the weights of round 7"):
        export(request(tmp_path, base_digest="ab" * 32))
    assert not (tmp_path / "release" / MANIFEST_NAME).exists()


def test_a_graph_that_computes_something_else_is_not_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from policy import export as exporter

    whole: Callable[..., onnx.ModelProto] = exporter.onnx_model

    def of_other_weights(_policy: Any, *rest: Any) -> onnx.ModelProto:
        other = build_policy(SPEC, NORMALIZER, seed=3)
        bigger = {name: array * 1.5 for name, array in read_weights(other).items()}
        write_weights(other, bigger)
        return whole(other, *rest)

    monkeypatch.setattr(exporter, "onnx_model", of_other_weights)
    with pytest.raises(ParityFailed):
        export(request(tmp_path))
    assert not (tmp_path / "release" / MANIFEST_NAME).exists()


def test_the_graph_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = request(tmp_path)
    sizes = count_hashes(monkeypatch)
    export(asked)
    assert sizes.count((Path(asked["folder"]) / POLICY_NAME).stat().st_size) == 1


def test_the_job_ends_with_one_line_when_it_cannot_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = request(tmp_path, weights=str(tmp_path / "absent"), result=str(tmp_path / "result"))
    monkeypatch.setattr(export_release, "read_request", lambda: asked)
    assert export_release.main() == 1
    assert "absent" in capsys.readouterr().err
    asked = asked | {"weights": str(tmp_path / "weights.safetensors"), "evaluation": 3}
    monkeypatch.setattr(export_release, "read_request", lambda: asked)
    assert export_release.main() == 1
    assert "evaluation" in capsys.readouterr().err
    assert not (tmp_path / "result").exists()


@pytest.mark.system
def test_the_job_runs_in_a_child_and_gives_its_result_or_its_last_line(tmp_path: Path) -> None:
    runner = JobRunner(tmp_path / "jobs")
    asked = request(tmp_path)
    result = runner.run(EXPORT_MODULE, asked)
    content = (tmp_path / "release" / MANIFEST_NAME).read_bytes()
    assert hashlib.sha256(content).hexdigest() == result["manifest_digest"]
    assert json.loads(content)["version"] == 3
    with pytest.raises(ExportFailed, match="not the weights of round 7"):
        runner.run(EXPORT_MODULE, {**asked, "base_digest": "ab" * 32})
