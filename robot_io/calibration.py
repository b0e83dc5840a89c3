"""Calibration of an SO-101: LeRobot's file, and the joint units that follow from it.

Joint units are those of LeRobot 0.6.1 with ``use_degrees=True``: body joints in degrees from the
middle of their range, ``(raw - (range_min + range_max) / 2) * 360 / 4095``; the gripper 0..100
over its range. Vectors are float32 [6] in the order of `JOINTS`. ``raw`` is Present_Position,
which the servo computes as ``actual - homing_offset``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from host.files import write_durable
from robot_io.errors import BadCalibration, NotCalibrated
from robot_io.sts3215 import MAX_HOMING_OFFSET, RESOLUTION

type Vector = NDArray[np.float32]

JOINTS = (
    "shoulder_pan",
    "shoulder_lift",
    "elbow_flex",
    "wrist_flex",
    "wrist_roll",
    "gripper",
)
SERVO_IDS = (1, 2, 3, 4, 5, 6)
GRIPPER = JOINTS.index("gripper")
# Turns without end stops, so its range is all of the encoder's and is not recorded.
FULL_TURN_JOINT = "wrist_roll"
# LeRobot scales degrees by the highest tick, not by the number of ticks.
_MAX_TICK = RESOLUTION - 1


@dataclass(frozen=True, slots=True)
class JointCalibration:
    """One joint, as in LeRobot's file. Ticks, 0..4095 for the range."""

    id: int
    drive_mode: int
    homing_offset: int
    range_min: int
    range_max: int


class Calibration:
    """The six joints' calibration and the conversion between ticks and joint units.

    Raises:
        BadCalibration: a joint is missing or unknown, an id is not the joint's, an offset is
            beyond ±2047, or a range is empty or leaves 0..4095.
    """

    def __init__(self, joints: Mapping[str, JointCalibration], source: str = "calibration") -> None:
        _check(joints, source)
        self.joints: dict[str, JointCalibration] = {name: joints[name] for name in JOINTS}
        self.range_min = np.array([joint.range_min for joint in self.joints.values()], np.int64)
        self.range_max = np.array([joint.range_max for joint in self.joints.values()], np.int64)
        span = (self.range_max - self.range_min).astype(np.float64)
        inverted = self.joints["gripper"].drive_mode != 0
        self._scale = np.full(len(JOINTS), 360.0 / _MAX_TICK)
        self._origin = (self.range_min + self.range_max) / 2
        self._scale[GRIPPER] = (-100.0 if inverted else 100.0) / span[GRIPPER]
        self._origin[GRIPPER] = (self.range_max if inverted else self.range_min)[GRIPPER]

    # -- units ---------------------------------------------------------------------------------

    def to_units(self, raw: NDArray[np.integer]) -> Vector:
        """Ticks [6] to joint units; the gripper is clamped to 0..100 as LeRobot does."""
        units = (raw - self._origin) * self._scale
        units[GRIPPER] = min(100.0, max(0.0, units[GRIPPER]))
        return units.astype(np.float32)

    def to_raw(self, units: Vector) -> NDArray[np.int64]:
        """Joint units [6] to the nearest ticks within the calibrated range.

        Raises:
            ValueError: not six finite numbers.
        """
        if units.shape != (len(JOINTS),) or not np.isfinite(units).all():
            raise ValueError(f"a position is six finite joint units, got {units!r}")
        raw = np.rint(np.asarray(units, np.float64) / self._scale + self._origin)
        return np.clip(raw, self.range_min, self.range_max).astype(np.int64)

    def velocity_to_units(self, ticks_per_s: NDArray[np.integer]) -> Vector:
        """Ticks/s [6] to joint units per second."""
        return (ticks_per_s * self._scale).astype(np.float32)

    @property
    def lower(self) -> Vector:
        """Lowest joint units [6] that the calibrated range allows."""
        return np.minimum(self.to_units(self.range_min), self.to_units(self.range_max))

    @property
    def upper(self) -> Vector:
        """Highest joint units [6] that the calibrated range allows."""
        return np.maximum(self.to_units(self.range_min), self.to_units(self.range_max))

    # -- the file ------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read LeRobot's calibration file.

        Raises:
            NotCalibrated: there is no such file.
            BadCalibration: it is there and cannot be right.
        """
        try:
            text = path.read_text()
        except FileNotFoundError:
            raise NotCalibrated(f"no calibration at {path}: run `armada setup calibrate`") from None
        except (OSError, UnicodeDecodeError) as error:
            raise BadCalibration(f"{path} cannot be read: {error}") from error
        try:
            joints = {
                str(name): JointCalibration(**{key: _whole(value) for key, value in entry.items()})
                for name, entry in json.loads(text).items()
            }
        except (ValueError, TypeError, AttributeError) as error:
            raise BadCalibration(
                f"{path} is no LeRobot calibration ({error}): "
                "run `armada setup calibrate`, or copy the right file there"
            ) from error
        return cls(joints, str(path))

    def to_json(self) -> str:
        """The text of LeRobot's calibration file."""
        return json.dumps({name: asdict(joint) for name, joint in self.joints.items()}, indent=4)

    def save(self, path: Path) -> None:
        """Write the file so that a crash leaves either the old one or the new one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durable(path, f"{self.to_json()}\n".encode())

    def digest(self) -> str:
        """SHA-256 hex of the calibration, the same for files that differ in layout only."""
        compact = json.dumps({name: asdict(joint) for name, joint in self.joints.items()})
        return hashlib.sha256(compact.encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Calibration) and self.joints == other.joints

    def __hash__(self) -> int:
        return hash(tuple(self.joints.items()))

    def __repr__(self) -> str:
        return f"Calibration({self.joints!r})"


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is no whole number")
    return value


def _check(joints: Mapping[str, JointCalibration], source: str) -> None:
    if missing := [name for name in JOINTS if name not in joints]:
        raise BadCalibration(f"{source} lacks {', '.join(missing)}: run `armada setup calibrate`")
    if unknown := sorted(set(joints) - set(JOINTS)):
        raise BadCalibration(f"{source} names {', '.join(unknown)}, no joint of an SO-101")
    for servo_id, name in zip(SERVO_IDS, JOINTS, strict=True):
        joint = joints[name]
        where = f"{source}: {name}"
        if joint.id != servo_id:
            raise BadCalibration(f"{where} has servo id {joint.id}, an SO-101 has {servo_id} there")
        if abs(joint.homing_offset) > MAX_HOMING_OFFSET:
            raise BadCalibration(
                f"{where} has homing offset {joint.homing_offset}, the servo holds at most "
                f"±{MAX_HOMING_OFFSET}: move the joint to its middle and calibrate again"
            )
        if not 0 <= joint.range_min < joint.range_max <= _MAX_TICK:
            raise BadCalibration(
                f"{where} has range {joint.range_min}..{joint.range_max}, "
                f"which must rise within 0..{_MAX_TICK}: calibrate again"
            )
