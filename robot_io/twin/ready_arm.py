"""A follower that is assembled, calibrated, configured and energised, without a wire to it.

The calibration is what homing at the middle of every range and a sweep through it give; the
settings are those that `robot_io.servos` writes. Horns sit so that homing offsets are 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from robot_io.calibration import (
    FULL_TURN_JOINT,
    JOINTS,
    SERVO_IDS,
    Calibration,
    JointCalibration,
    Vector,
)
from robot_io.calibrator import HALF_TURN
from robot_io.servos import servo_settings
from robot_io.sts3215 import REGISTERS, RESOLUTION
from robot_io.twin.firmware import Measured, ServoFirmware
from robot_io.twin.motor import AMBIENT_C, RAD_PER_TICK, SUPPLY_V, encoder_ticks
from robot_io.twin.shared import Float, Servo, SharedCommand


class ReadyArm:
    """Converts between joint angles, encoder ticks and joint units, and makes command blocks.

    ``ranges_rad`` [6, 2] is the mechanical range of each joint.
    """

    def __init__(self, ranges_rad: Float) -> None:
        self.centre_tick: Float = HALF_TURN - ranges_rad.mean(axis=1) / RAD_PER_TICK
        self.calibration = self._calibrate(ranges_rad)
        self._settings: Float = self._configure()

    def ticks(self, angle_rad: Float) -> NDArray[np.int64]:
        """Present_Position [6] at joint angles [6]."""
        actual = np.rint(encoder_ticks(angle_rad, self.centre_tick)).astype(np.int64)
        return actual % RESOLUTION

    def units(self, angle_rad: Float) -> Vector:
        """Joint units [6] as a control loop reads them at joint angles [6]."""
        return self.calibration.to_units(self.ticks(angle_rad))

    def angles_rad(self, units: Vector) -> Float:
        """Joint angles [6] of a goal [6], at the nearest tick within the calibrated range."""
        angles: Float = (self.calibration.to_raw(units) - self.centre_tick) * RAD_PER_TICK
        return angles

    def command(self, goal: Vector) -> Float:
        """The command block of energised servos with ``goal`` [6]; [6, len(SharedCommand)].

        Raises:
            ValueError: not six finite numbers.
        """
        block = self._settings.copy()
        block[:, SharedCommand.GOAL_TICK] = self.calibration.to_raw(goal)
        return block

    def _calibrate(self, ranges_rad: Float) -> Calibration:
        low, high = self.ticks(ranges_rad[:, 0]), self.ticks(ranges_rad[:, 1])
        full_turn = np.array([joint == FULL_TURN_JOINT for joint in JOINTS])
        low[full_turn], high[full_turn] = 0, RESOLUTION - 1
        return Calibration(
            {
                joint: JointCalibration(servo_id, 0, 0, int(low[i]), int(high[i]))
                for i, (servo_id, joint) in enumerate(zip(SERVO_IDS, JOINTS, strict=True))
            },
            "the twin's calibration",
        )

    def _configure(self) -> Float:
        rows = []
        for servo_id, joint in zip(SERVO_IDS, self.calibration.joints.values(), strict=True):
            firmware = ServoFirmware(servo_id, _at_rest)
            settings = servo_settings(servo_id, follower=True) | {
                "Min_Position_Limit": joint.range_min,
                "Max_Position_Limit": joint.range_max,
                "Torque_Enable": 1,
            }
            for name, value in settings.items():
                register = REGISTERS[name]
                firmware.write(register.address, register.encode(value))
            rows.append(firmware.command_row())
        return np.array(rows)


def _at_rest() -> Measured:
    row = [0.0] * len(Servo)
    row[Servo.TEMPERATURE_C] = AMBIENT_C
    row[Servo.VOLTAGE_V] = SUPPLY_V
    return Measured(float(HALF_TURN), row)
