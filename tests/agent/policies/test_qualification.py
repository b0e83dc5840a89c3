"""What may drive the arm, and what happens when a policy hangs or crashes its trial."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from tiny_policy import (
    change_golden_file,
    change_goldens,
    change_manifest,
    golden_tensors,
    tiny_spec,
    write_config,
    write_policy,
)

from agent.config import load_config
from agent.policies.compatibility import RobotSignature
from agent.policies.qualification import Qualification, examine, main, qualify
from policy.build import build_policy
from policy.export import export_policy
from policy.kinds.diffusion import DiffusionSpec
from policy.release import goldens
from policy.release.manifest import POLICY_NAME, write_manifest
from policy.spec import PolicySpec
from policy.statistics import FeatureScale, Normalizer


@pytest.fixture
def robot(tmp_path: Path) -> RobotSignature:
    return RobotSignature.of(load_config(write_config(tmp_path)))


def reason(verdict: Qualification) -> str:
    assert not verdict.ok
    (line,) = verdict.reasons
    assert "\n" not in line
    return line


def test_a_good_policy_qualifies_with_its_figures(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    verdict = qualify(write_policy(tmp_path / "3", version=3), config)
    assert verdict.ok, verdict.reasons
    assert verdict.version == 3
    assert verdict.max_abs_error == 0.0
    assert verdict.latency_p99_ms is not None and verdict.latency_p99_ms > 0.0


def test_a_policy_that_denoises_qualifies_by_the_noise_of_its_golden_observations(
    tmp_path: Path, robot: RobotSignature
) -> None:
    spec = DiffusionSpec.model_validate(
        tiny_spec(chunk_size=16).model_dump(include=set(PolicySpec.model_fields) - {"kind"})
        | {"down_dims": (8,), "denoising_steps": 2}
    )
    scales = {
        name: FeatureScale(names=parts, mean=(0.0,) * len(parts), std=(9.0,) * len(parts))
        for name, parts in spec.vectors.items()
    }
    normalizer = Normalizer(features=scales)
    policy = build_policy(spec, normalizer, 0)
    exported = export_policy(policy, spec, normalizer, tmp_path / POLICY_NAME, version=1)
    write_manifest(tmp_path, exported.described, evaluation={}, contributors=(), created_unix_s=0.0)
    verdict = examine(tmp_path, robot)
    assert verdict.ok, verdict.reasons


def test_golden_actions_beyond_the_tolerance_disqualify(
    tmp_path: Path, robot: RobotSignature
) -> None:
    folder = write_policy(tmp_path / "1")
    golden = golden_tensors(folder, "actions")
    golden["action"][1, 19, 5] += 0.5
    change_goldens(folder, "actions", golden)
    assert "golden actions differ by 0.5 joint units, allowed are 0.001" in reason(
        examine(folder, robot)
    )


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_golden_action_that_is_no_number_disqualifies(
    tmp_path: Path, robot: RobotSignature, number: float
) -> None:
    folder = write_policy(tmp_path / "1", golden=1)
    golden = golden_tensors(folder, "actions")
    golden["action"][0, 0, 0] = number
    change_goldens(folder, "actions", golden)
    verdict = examine(folder, robot)
    assert not verdict.ok
    assert Qualification.from_json(verdict.to_json()) == verdict


@pytest.mark.parametrize(
    ("part", "name", "tensor", "words"),
    [
        ("actions", "action", np.zeros((2, 19, 6), np.float32), "action is float32 [2, 19, 6]"),
        ("actions", "action", np.zeros((1, 20, 6), np.float32), "not as many actions as"),
        ("actions", "action", np.zeros((2, 20, 6), np.float64), "action is F64 [2, 20, 6]"),
        ("actions", "more", np.zeros(1, np.float32), "holds action, more, its policy wants action"),
        ("observations", "observation.state", np.zeros((2, 5), np.float32), "is float32 [2, 5]"),
        ("observations", "observation.state", np.zeros((65, 6), np.float32), "[1 to 64, 6]"),
        ("observations", "observation.state", np.zeros((2, 6), np.uint8), "is uint8 [2, 6]"),
        ("observations", "observation.state", np.zeros((), np.float32), "is float32 []"),
    ],
)
def test_goldens_that_do_not_fit_the_policy_disqualify(
    tmp_path: Path, robot: RobotSignature, part: str, name: str, tensor: np.ndarray, words: str
) -> None:
    folder = write_policy(tmp_path / "1")
    change_goldens(folder, part, golden_tensors(folder, part) | {name: tensor})
    assert words in reason(examine(folder, robot))


@pytest.mark.parametrize("part", ["observations", "actions"])
@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 100, b"\x08" + b"\0" * 7 + b"[1, 2,3]"])
def test_goldens_that_cannot_be_read_disqualify(
    tmp_path: Path, robot: RobotSignature, part: str, content: bytes
) -> None:
    folder = write_policy(tmp_path / "1")
    change_golden_file(folder, part, content)
    assert "not readable golden observations" in reason(examine(folder, robot))


def test_goldens_without_end_are_not_read(
    tmp_path: Path, robot: RobotSignature, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(goldens, "MAX_GOLDEN_BYTES", 100)
    assert "allowed are 100" in reason(examine(write_policy(tmp_path / "1"), robot))


def test_a_policy_whose_actions_are_not_finite_is_disqualified(
    tmp_path: Path, robot: RobotSignature
) -> None:
    folder = write_policy(tmp_path / "1", golden=1, not_a_number=True)
    assert "not finite" in reason(examine(folder, robot))


def test_a_manifest_without_golden_observations_proves_nothing(
    tmp_path: Path, robot: RobotSignature
) -> None:
    verdict = examine(write_policy(tmp_path / "1", golden=0), robot)
    assert "holds nothing, its policy wants" in reason(verdict)


def test_a_policy_of_another_rate_or_camera_does_not_fit_this_robot(
    tmp_path: Path, robot: RobotSignature
) -> None:
    folder = write_policy(tmp_path / "1", tiny_spec(fps=25, camera=(10, 10)))
    verdict = examine(folder, robot)
    assert [line[:24] for line in verdict.reasons] == [
        "the policy acts at 25 Hz",
        "the policy takes camera ",
    ]
    assert examine(folder, None).ok, "without a robot only the files are judged"


def test_a_policy_slower_than_half_of_its_chunk_is_disqualified(
    tmp_path: Path, robot: RobotSignature
) -> None:
    spec = tiny_spec(chunk_size=2)
    folder = write_policy(tmp_path / "1", spec, multiplications=1500)
    assert "a chunk takes" in reason(examine(folder, robot))


def test_a_graph_that_is_not_what_the_manifest_says_is_disqualified(
    tmp_path: Path, robot: RobotSignature
) -> None:
    folder = write_policy(tmp_path / "1", tiny_spec(chunk_size=20))
    change_manifest(folder, spec=tiny_spec(chunk_size=30).to_json())
    assert "gives actions [20, 6], its manifest says [30, 6]" in reason(examine(folder, robot))
    change_manifest(folder, spec=tiny_spec(camera=(48, 64)).to_json())
    assert "its manifest says observation.environment_state [2], observation.images" in reason(
        examine(folder, robot)
    )


def test_a_file_that_is_no_graph_is_disqualified(tmp_path: Path, robot: RobotSignature) -> None:
    folder = write_policy(tmp_path / "1")
    content = b"not a graph"
    (folder / "policy.onnx").write_bytes(content)
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    files = json.loads((folder / "manifest.json").read_bytes())["files"]
    change_manifest(folder, files=files | {"policy.onnx": entry})
    assert "onnxruntime refuses it" in reason(examine(folder, robot))


def test_a_policy_that_hangs_fails_within_the_limit_and_leaves_no_process(tmp_path: Path) -> None:
    folder = write_policy(tmp_path / "1", hang=True)
    began_s = time.monotonic()
    verdict = qualify(folder, timeout_s=3.0)
    assert reason(verdict) == "the policy did not finish its trial within 3 s"
    assert time.monotonic() - began_s < 10.0
    assert not psutil.Process().children()


def test_a_policy_that_crashes_the_runtime_is_a_reason_not_a_crash(tmp_path: Path) -> None:
    folder = write_policy(tmp_path / "1", hang=True)

    def crash() -> None:
        while not (children := psutil.Process().children()):
            time.sleep(0.05)
        time.sleep(0.3)
        os.kill(children[0].pid, signal.SIGSEGV)

    thread = threading.Thread(target=crash)
    thread.start()
    verdict = qualify(folder, timeout_s=30.0)
    thread.join()
    assert reason(verdict) == "the policy crashed its trial (SIGSEGV)"


def test_a_child_whose_parent_was_killed_ends_by_itself(tmp_path: Path) -> None:
    folder = write_policy(tmp_path / "1", hang=True)
    command = [sys.executable, "-m", "agent.policies.qualification", str(folder), "--timeout", "1"]
    child = subprocess.Popen([*command, "--here"], stdout=subprocess.PIPE)
    assert child.wait(timeout=20.0) == -signal.SIGALRM
    assert child.stdout is not None
    child.stdout.close()


def test_the_command_prints_one_line_of_json_and_exits_by_the_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(write_policy(tmp_path / "1"))]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    assert main([str(tmp_path / "nowhere"), "--config", str(tmp_path / "no.toml")]) == 1
    verdict = json.loads(capsys.readouterr().out)
    assert "no such file" in verdict["reasons"][0]
