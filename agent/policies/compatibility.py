"""Does a policy fit this robot? Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.config import AgentConfig
from policy.spec import PolicySpec

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
        elif not camera.accepts(*shape):
            reasons.append(
                f"the policy takes camera {camera.name!r} at {camera.width}x{camera.height}, "
                f"this robot's gives {shape[1]}x{shape[0]}, which has another shape"
            )
    return tuple(reasons)
