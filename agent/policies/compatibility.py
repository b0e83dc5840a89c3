"""Does a policy's folder hold what its manifest says, and does the policy fit this robot?"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.config import AgentConfig
from agent.policies.errors import PolicyRefused
from policy.errors import BadSpec
from policy.spec import PolicySpec
from protocol.errors import BadManifest
from protocol.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    POLICY_NAME,
    ReleaseManifest,
    parse_manifest,
)

_FPS_SLACK = 1e-6  # relative: 30 and 30.0 written by two sides are the same rate


@dataclass(frozen=True)
class RobotSignature:
    """What this robot gives to a policy and takes from it."""

    fps: float
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    environment_names: tuple[str, ...] = ()
    cameras: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # (height, width)

    @classmethod
    def of(cls, config: AgentConfig) -> RobotSignature:
        """Return the signature that follows from the agent's configuration."""
        return cls(
            fps=config.control.fps,
            state_names=config.state_names,
            action_names=config.action_names,
            environment_names=config.environment_names,
            cameras=config.camera_shapes,
        )


@dataclass(frozen=True)
class PolicyFolder:
    """A checked folder: its manifest, the spec in it, and the digest of its policy.onnx."""

    path: Path
    manifest: ReleaseManifest
    spec: PolicySpec

    @property
    def name(self) -> str:
        """Return the folder's name: a version, or `local`."""
        return self.path.name

    @property
    def onnx_path(self) -> Path:
        """Return the ONNX graph's file."""
        return self.path / POLICY_NAME

    @property
    def onnx_digest(self) -> str:
        """Return SHA-256 hex of policy.onnx, as the manifest has it and the file was found."""
        return self.manifest.files[POLICY_NAME].sha256


def read_policy_folder(path: Path) -> PolicyFolder:
    """Read the manifest and check every file's size and SHA-256 against it.

    Raises PolicyRefused with one line that names the file.
    """
    try:
        with (path / MANIFEST_NAME).open("rb") as stream:
            content = stream.read(MAX_MANIFEST_BYTES + 1)
        manifest = parse_manifest(content)
        spec = PolicySpec.from_json(manifest.spec)
    except OSError as error:
        raise PolicyRefused(f"{path}: {MANIFEST_NAME}: {error.strerror}") from error
    except (BadManifest, BadSpec) as error:
        raise PolicyRefused(f"{path}: {error}") from error
    if POLICY_NAME not in manifest.files:
        raise PolicyRefused(f"{path}: {MANIFEST_NAME} names no {POLICY_NAME}")
    for name, entry in manifest.files.items():
        _check_file(path / name, entry.size, entry.sha256)
    return PolicyFolder(path, manifest, spec)


def incompatibilities(spec: PolicySpec, robot: RobotSignature) -> tuple[str, ...]:
    """Return why the policy does not fit this robot, one line a reason; empty when it does."""
    reasons: list[str] = []
    if abs(spec.fps - robot.fps) > _FPS_SLACK * robot.fps:
        reasons.append(
            f"the policy acts at {spec.fps:g} Hz, this robot's control.fps is {robot.fps:g}"
        )
    for what, wanted, given in (
        ("state", spec.state_names, robot.state_names),
        ("action", spec.action_names, robot.action_names),
    ):
        if tuple(wanted) != tuple(given):
            reasons.append(
                f"the policy's {what} is [{', '.join(wanted)}], this robot's [{', '.join(given)}]"
            )
    absent = [name for name in spec.environment_names if name not in robot.environment_names]
    if absent:
        reasons.append(
            f"the policy needs {', '.join(absent)}, this robot tracks "
            f"{', '.join(robot.environment_names) or 'nothing'}; see [tracker]"
        )
    for camera in spec.cameras:
        shape = robot.cameras.get(camera.name)
        if shape is None:
            reasons.append(
                f"the policy needs camera {camera.name!r}, this robot has "
                f"{', '.join(sorted(robot.cameras)) or 'none'}; see [cameras]"
            )
        elif shape != (camera.height, camera.width):
            reasons.append(
                f"the policy takes camera {camera.name!r} at {camera.width}x{camera.height}, "
                f"this robot's gives {shape[1]}x{shape[0]}"
            )
    return tuple(reasons)


def _check_file(path: Path, size: int, sha256: str) -> None:
    try:
        found_size = path.stat().st_size
        if found_size != size:
            raise PolicyRefused(f"{path} has {found_size} bytes, its manifest says {size}")
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise PolicyRefused(f"{path}: {error.strerror}") from error
    if found != sha256:
        raise PolicyRefused(
            f"{path} has SHA-256 {found[:12]}…, its manifest says {sha256[:12]}…; download it again"
        )
