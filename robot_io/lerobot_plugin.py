"""The same arms as a LeRobot Robot and Teleoperator, for LeRobot's own commands.

    lerobot-teleoperate --robot.discover_packages_path=robot_io \\
        --robot.type=armada_follower --robot.port=/dev/ttyACM0 --robot.id=arm-1 \\
        --teleop.type=armada_leader --teleop.port=/dev/ttyACM1 --teleop.id=arm-1

Importing this module imports LeRobot; nothing else in robot_io does. Keys, units, calibration
files and where they lie are those of LeRobot's ``so101_follower`` and ``so101_leader``. What
differs is the driver underneath: late answers are recognised, torque comes only after Goal =
Present, every servo is released at the end, and nothing ever asks on the terminal.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from lerobot.cameras import CameraConfig, make_cameras_from_configs
from lerobot.robots import Robot, RobotConfig
from lerobot.teleoperators import Teleoperator, TeleoperatorConfig

from robot_io.arm import JOINTS, Calibration, Follower, JointCalibration, Leader, Vector
from robot_io.bus import ServoBus
from robot_io.errors import NotCalibrated, RobotIOError
from robot_io.limits import Limits, SafetyFilter

log = logging.getLogger(__name__)
_KEYS = tuple(f"{joint}.pos" for joint in JOINTS)


@RobotConfig.register_subclass("armada_follower")
@dataclass(kw_only=True)
class ArmadaFollowerConfig(RobotConfig):
    """``--robot.type=armada_follower``; ``max_relative_target`` as LeRobot, in joint units."""

    port: str
    cameras: dict[str, CameraConfig] = field(default_factory=dict)
    max_relative_target: float | None = None


@TeleoperatorConfig.register_subclass("armada_leader")
@dataclass(kw_only=True)
class ArmadaLeaderConfig(TeleoperatorConfig):
    """``--teleop.type=armada_leader``."""

    port: str


class ArmadaFollower(Robot):
    """A follower on our driver."""

    config_class = ArmadaFollowerConfig
    # LeRobot's name for this arm: calibrations and datasets stay interchangeable.
    name = "so_follower"

    def __init__(self, config: ArmadaFollowerConfig) -> None:
        super().__init__(config)
        self.config = config
        self.cameras = make_cameras_from_configs(config.cameras)
        self._arm = Follower(ServoBus(config.port), _calibration(self.calibration))
        self._safety: SafetyFilter | None = None

    @property
    def observation_features(self) -> dict[str, Any]:
        """Joint positions, and each camera's (height, width, 3)."""
        shapes = {name: (cam.height, cam.width, 3) for name, cam in self.cameras.items()}
        return {**self.action_features, **shapes}

    @property
    def action_features(self) -> dict[str, type]:
        """Joint positions."""
        return dict.fromkeys(_KEYS, float)

    @property
    def is_connected(self) -> bool:
        """True when the port and all cameras are open."""
        return self._arm.bus.is_open and all(cam.is_connected for cam in self.cameras.values())

    @property
    def is_calibrated(self) -> bool:
        """True when there is a calibration; `connect` compares it with the servos."""
        return bool(self.calibration)

    def connect(self, calibrate: bool = True) -> None:
        """Connect, configure and energise where the arm stands.

        Raises:
            RobotIOError: one line that says what is wrong and how to mend it. LeRobot would ask
                on the terminal when the calibration differs; here that is NotCalibrated.
        """
        self._arm.connect()
        try:
            for camera in self.cameras.values():
                camera.connect()
            self.configure()
            self._arm.torque_on()
        except RobotIOError:
            self._arm.close()
            raise
        if self.config.max_relative_target is not None:
            limits = Limits.within(self._arm.calibration, self.config.max_relative_target)
            self._safety = SafetyFilter(limits)

    def calibrate(self) -> None:
        """Not here: `armada setup calibrate`, or LeRobot's ``so101_follower``, does it."""
        raise _calibrate_elsewhere()

    def configure(self) -> None:
        """LeRobot's settings; the arm is released."""
        self._arm.configure()

    def get_observation(self) -> dict[str, Any]:
        """Joint positions by key, and the newest image of each camera."""
        observation: dict[str, Any] = _by_key(self._arm.read().position)
        for name, camera in self.cameras.items():
            observation[name] = camera.read_latest()
        return observation

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Send a goal; returns what was sent, clipped and in whole ticks."""
        goal = np.array([action[key] for key in _KEYS], np.float32)
        if self._safety is not None:
            present = self._arm.read().position
            goal, _ = self._safety.apply(goal, present, np.inf)
        return _by_key(self._arm.write_goal(goal))

    def disconnect(self) -> None:
        """Release every servo that can be reached, then close."""
        for joint, error in self._arm.release().items():
            log.error("%s may still be energised: %s", joint, error)
        self._arm.close()
        for camera in self.cameras.values():
            camera.disconnect()


class ArmadaLeader(Teleoperator):
    """A leader on our driver."""

    config_class = ArmadaLeaderConfig
    name = "so_leader"

    def __init__(self, config: ArmadaLeaderConfig) -> None:
        super().__init__(config)
        self.config = config
        self._arm = Leader(ServoBus(config.port), _calibration(self.calibration))

    @property
    def action_features(self) -> dict[str, type]:
        """Joint positions."""
        return dict.fromkeys(_KEYS, float)

    @property
    def feedback_features(self) -> dict[str, type]:
        """None: the leader is never energised."""
        return {}

    @property
    def is_connected(self) -> bool:
        """True when the port is open."""
        return self._arm.bus.is_open

    @property
    def is_calibrated(self) -> bool:
        """True when there is a calibration; `connect` compares it with the servos."""
        return bool(self.calibration)

    def connect(self, calibrate: bool = True) -> None:
        """Connect, configure and release.

        Raises:
            RobotIOError: one line that says what is wrong and how to mend it.
        """
        self._arm.connect()
        try:
            self.configure()
        except RobotIOError:
            self._arm.close()
            raise

    def calibrate(self) -> None:
        """Not here: `armada setup calibrate`, or LeRobot's ``so101_leader``, does it."""
        raise _calibrate_elsewhere()

    def configure(self) -> None:
        """LeRobot's settings; the arm is released."""
        self._arm.configure()

    def get_action(self) -> dict[str, Any]:
        """Joint positions by key."""
        return _by_key(self._arm.read().position)

    def send_feedback(self, feedback: dict[str, Any]) -> None:
        """Ignored: the leader is never energised."""

    def disconnect(self) -> None:
        """Close; the leader was released all the time."""
        self._arm.close()


def _calibration(motors: dict[str, Any]) -> Calibration | None:
    """LeRobot's loaded file as our calibration, or None where there is none."""
    if not motors:
        return None
    return Calibration(
        {
            name: JointCalibration(
                motor.id, motor.drive_mode, motor.homing_offset, motor.range_min, motor.range_max
            )
            for name, motor in motors.items()
        }
    )


def _calibrate_elsewhere() -> NotCalibrated:
    return NotCalibrated(
        "this arm is calibrated with `armada setup calibrate` or `lerobot-calibrate` "
        "(type so101_follower or so101_leader); the file is the same"
    )


def _by_key(position: Vector) -> dict[str, Any]:
    return {key: float(value) for key, value in zip(_KEYS, position, strict=True)}
