"""Calibration as steps that a daemon can take, one request each; nothing here asks or waits.

calibrator = Calibrator(bus)
calibrator.set_half_turn_homing()     # the operator has put every joint to its middle
calibrator.start_range()
calibrator.observe()                  # again and again, while the operator moves every joint
calibration = calibrator.finish()     # checked, and written into the servos' EEPROM
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from robot_io import servos
from robot_io.bus import ServoBus
from robot_io.calibration import (
    FULL_TURN_JOINT,
    JOINTS,
    SERVO_IDS,
    Calibration,
    JointCalibration,
)
from robot_io.errors import BadCalibration
from robot_io.sts3215 import MAX_HOMING_OFFSET, RESOLUTION, OperatingMode

# Where the middle of a joint comes to lie, as LeRobot: int(4095 / 2).
HALF_TURN = (RESOLUTION - 1) // 2
# No joint of an SO-101 moves less than about 90 degrees; less was not moved through.
MIN_RANGE_TICKS = 400


class Calibrator:
    """One arm's calibration in progress. The bus may be closed; `set_half_turn_homing` opens it."""

    def __init__(self, bus: ServoBus) -> None:
        self._bus = bus
        self._offsets: dict[str, int] | None = None
        self._last: NDArray[np.int64] | None = None
        self._low: NDArray[np.int64] | None = None
        self._high: NDArray[np.int64] | None = None

    def set_half_turn_homing(self) -> dict[str, int]:
        """Make the place where every joint stands its middle; returns the offsets in ticks.

        The arm is released first. Present_Position is the encoder's angle less Homing_Offset.

        Raises:
            WrongServos, TorqueRefused, BusError: see `robot_io.servos`.
            BadCalibration: an offset that the servo cannot hold; nothing was changed for it.
        """
        servos.require_servos(self._bus)
        self._offsets = self._last = self._low = self._high = None
        with self._bus.patient():
            servos.require_released(self._bus)
            for servo_id in SERVO_IDS:
                servos.write_registers(
                    self._bus,
                    servo_id,
                    {
                        "Operating_Mode": OperatingMode.POSITION,
                        "Homing_Offset": 0,
                        "Min_Position_Limit": 0,
                        "Max_Position_Limit": RESOLUTION - 1,
                    },
                )
            actual = self._bus.sync_read("Present_Position", SERVO_IDS)
            offsets = {
                servos.JOINT_OF_SERVO[servo_id]: actual[servo_id] - HALF_TURN
                for servo_id in SERVO_IDS
            }
            if beyond := {
                joint: offset
                for joint, offset in offsets.items()
                if abs(offset) > MAX_HOMING_OFFSET
            }:
                listed = ", ".join(f"{joint} ({offset})" for joint, offset in beyond.items())
                raise BadCalibration(
                    f"homing offset of {listed} is beyond ±{MAX_HOMING_OFFSET}: "
                    "move the joint a little, or turn its horn by a few teeth, and home again"
                )
            for servo_id, offset in zip(SERVO_IDS, offsets.values(), strict=True):
                servos.write_registers(self._bus, servo_id, {"Homing_Offset": offset})
        self._offsets = offsets
        return offsets

    def start_range(self) -> None:
        """Begin to record the range from where the joints stand.

        Raises:
            BadCalibration: there is no homing yet.
            BusError: see `ServoBus`.
        """
        if self._offsets is None:
            raise BadCalibration("the range comes after homing: take the homing step first")
        position = self._read()
        self._last, self._low, self._high = position, position.copy(), position.copy()

    def observe(self) -> dict[str, tuple[int, int, int]]:
        """Take the joints' places into the range: joint -> (lowest, present, highest) in ticks.

        Raises:
            BadCalibration: no range was begun, or a joint went through the end of its encoder,
                so that its homing was not near its middle.
            BusError: see `ServoBus`; the range recorded so far stays.
        """
        if self._last is None or self._low is None or self._high is None:
            raise BadCalibration("no range is being recorded: take the range_start step first")
        position = self._read()
        jumped = np.abs(position - self._last) > RESOLUTION // 2
        jumped[JOINTS.index(FULL_TURN_JOINT)] = False
        if jumped.any():
            names = ", ".join(np.array(JOINTS)[jumped])
            self._last = None
            raise BadCalibration(
                f"{names} went through the end of its encoder: "
                "put every joint to the middle of its range and home again"
            )
        self._last = position
        self._low = np.minimum(self._low, position)
        self._high = np.maximum(self._high, position)
        return {
            joint: (int(self._low[i]), int(position[i]), int(self._high[i]))
            for i, joint in enumerate(JOINTS)
        }

    def finish(self) -> Calibration:
        """End the range and write the calibration into the servos' EEPROM.

        Raises:
            BadCalibration: no range was recorded, or a joint was not moved through its range; it
                is named, and `observe` may go on.
            BusError: see `ServoBus`.
        """
        if self._offsets is None or self._last is None or self._low is None or self._high is None:
            raise BadCalibration("no range is being recorded: take the range_start step first")
        spans = {joint: int(self._high[i] - self._low[i]) for i, joint in enumerate(JOINTS)}
        if short := {
            joint: span
            for joint, span in spans.items()
            if span < MIN_RANGE_TICKS and joint != FULL_TURN_JOINT
        }:
            listed = ", ".join(f"{joint} ({span} ticks)" for joint, span in short.items())
            raise BadCalibration(
                f"{listed} hardly moved: move every joint through its whole range, "
                "then finish again"
            )
        joints = {}
        for i, (servo_id, joint) in enumerate(zip(SERVO_IDS, JOINTS, strict=True)):
            full_turn = joint == FULL_TURN_JOINT
            joints[joint] = JointCalibration(
                id=servo_id,
                drive_mode=0,
                homing_offset=self._offsets[joint],
                range_min=0 if full_turn else int(self._low[i]),
                range_max=RESOLUTION - 1 if full_turn else int(self._high[i]),
            )
        calibration = Calibration(joints, "the calibration just taken")
        servos.write_calibration(self._bus, calibration)
        self._last = None
        return calibration

    def _read(self) -> NDArray[np.int64]:
        position = self._bus.sync_read("Present_Position", SERVO_IDS)
        return np.array([position[servo_id] for servo_id in SERVO_IDS], np.int64)
