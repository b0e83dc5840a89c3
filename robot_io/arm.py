"""Follower and Leader: an SO-101 on a bus, in calibrated joint units.

An arm is released when it is connected and configured. It is energised by `Follower.torque_on`
alone, and only after each servo has confirmed that its goal is where it stands. The STS3215 has
no watchdog for its host: torque stays on when the host dies, so whoever connects next should
look at `Follower.torque_states` before anything else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robot_io import servos
from robot_io.bus import ServoBus
from robot_io.calibration import JOINTS, SERVO_IDS, Calibration, JointCalibration, Vector
from robot_io.calibrator import Calibrator
from robot_io.errors import BusError, NotCalibrated, TorqueRefused
from robot_io.sts3215 import REGISTERS, ServoError

__all__ = [
    "JOINTS",
    "ArmReading",
    "Calibration",
    "Calibrator",
    "Follower",
    "JointCalibration",
    "Leader",
    "Vector",
]


@dataclass(frozen=True, slots=True)
class ArmReading:
    """One arm at one moment; arrays are [6] in the order of `JOINTS`.

    Attributes:
        t_read_s: clock when the answer was complete.
        position: joint units, float32.
        velocity: joint units per second, float32.
        load: per cent of the motor's full drive, signed, float32.
        voltage_v, temperature_c, current_ma: float32.
        errors: each servo's error bits, packet and Status register together.
        raw: Present_Position in ticks, int64.
    """

    t_read_s: float
    position: Vector
    velocity: Vector
    load: Vector
    voltage_v: Vector
    temperature_c: Vector
    current_ma: Vector
    errors: tuple[ServoError, ...]
    raw: NDArray[np.int64]


class _Arm:
    """What follower and leader have in common."""

    _follower = False

    def __init__(
        self,
        bus: ServoBus,
        calibration: Calibration | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.bus = bus
        self._calibration = calibration
        self._clock = clock

    @property
    def calibration(self) -> Calibration:
        """The calibration in use.

        Raises:
            NotCalibrated: there is none.
        """
        if self._calibration is None:
            raise NotCalibrated(
                f"the arm on {self.bus.port} has no calibration: run `armada setup calibrate`"
            )
        return self._calibration

    def connect(self, *, write_calibration: bool = False) -> None:
        """Open the port, find the six servos and compare their EEPROM with the calibration.

        Moves and releases nothing, unless ``write_calibration`` and the EEPROM differs: then the
        arm is released and the EEPROM written.

        Raises:
            WrongServos: a servo is missing or of another model.
            NotCalibrated: no calibration, or the EEPROM holds another one.
            PortMissing, PortDenied, PortBusy, Unplugged, BusTimeout, BadChecksum: see `ServoBus`.
        """
        servos.require_servos(self.bus)
        calibration = self.calibration
        with self.bus.patient():
            differing = servos.differing_joints(self.bus, calibration)
        if not differing:
            return
        if not write_calibration:
            raise NotCalibrated(
                f"the servos on {self.bus.port} hold another calibration than the file: "
                f"{'; '.join(differing)}. Calibrate again (`armada setup calibrate`), "
                "or write the file's values into the servos if the arm is the same"
            )
        servos.write_calibration(self.bus, calibration)

    def configure(self) -> None:
        """Bring the servos to LeRobot's settings. The arm is released and stays so.

        Raises:
            TorqueRefused: a servo could not be released, so nothing was changed.
            BusError: a servo stopped answering.
        """
        servos.configure_servos(self.bus, follower=self._follower)

    def read(self) -> ArmReading:
        """Position and health of all six servos in one exchange.

        Raises:
            BusTimeout, BadChecksum: ``servo_ids`` names the servos; nothing partial is returned.
            Unplugged: the port is gone.
            NotCalibrated: no calibration.
        """
        calibration = self.calibration
        telemetry = self.bus.read_telemetry(SERVO_IDS)
        t_read_s = self._clock()
        rows = [telemetry[servo_id] for servo_id in SERVO_IDS]
        raw = np.array([row.position for row in rows])
        return ArmReading(
            t_read_s=t_read_s,
            position=calibration.to_units(raw),
            velocity=calibration.velocity_to_units(np.array([row.velocity for row in rows])),
            load=_scaled([row.load for row in rows], "Present_Load"),
            voltage_v=_scaled([row.voltage for row in rows], "Present_Voltage"),
            temperature_c=_scaled([row.temperature for row in rows], "Present_Temperature"),
            current_ma=_scaled([row.current for row in rows], "Present_Current"),
            errors=tuple(row.error for row in rows),
            raw=raw,
        )

    def torque_states(self) -> tuple[bool, ...]:
        """Which servos are energised, in the order of `JOINTS`.

        Raises:
            BusTimeout, BadChecksum, Unplugged: as `read`.
        """
        return servos.torque_states(self.bus)

    def release(self) -> dict[str, BusError]:
        """Take the torque off every servo that can be reached; never raises for one of them.

        Returns:
            The joints that may still be energised, with the reason. Empty when all are free.
        """
        return servos.release_torque(self.bus)

    def close(self) -> None:
        """Close the port. Torque stays as it is: park and release first."""
        self.bus.close()


class Leader(_Arm):
    """The arm that a person moves. Never energised by us."""


class Follower(_Arm):
    """The arm that follows goals."""

    _follower = True

    def torque_on(self) -> Vector:
        """Energise the arm where it stands; returns that position in joint units [6].

        Raises:
            TorqueRefused: a servo did not take its present position as its goal, or could not be
                energised; all that could be reached are released again.
            BusTimeout, BadChecksum, Unplugged: as `read`, with the arm released.
        """
        try:
            return self._torque_on()
        except BusError:
            self.release()
            raise

    def _torque_on(self) -> Vector:
        reading = self.read()
        # A joint a few ticks outside its range would be moved by the servo in any case.
        goal = np.clip(reading.raw, self.calibration.range_min, self.calibration.range_max)
        wanted = _by_servo(goal)
        self.bus.sync_write("Goal_Position", wanted)
        held = self.bus.sync_read("Goal_Position", SERVO_IDS)
        if stale := [servo_id for servo_id in SERVO_IDS if held[servo_id] != wanted[servo_id]]:
            self.release()
            names = ", ".join(servos.JOINT_OF_SERVO[servo_id] for servo_id in stale)
            raise TorqueRefused(
                f"{names} on {self.bus.port} did not take the present position as goal, "
                "so the arm was not energised: switch its power off and on"
            )
        for servo_id in SERVO_IDS:
            self.bus.write(servo_id, "Torque_Enable", 1)
        return self.calibration.to_units(goal)

    def write_goal(self, position: Vector) -> Vector:
        """Send a goal [6] in joint units; returns what was sent: clipped, in whole ticks.

        Raises:
            ValueError: not six finite numbers; nothing was sent.
            Unplugged: the port is gone.
        """
        raw = self.calibration.to_raw(position)
        self.bus.sync_write("Goal_Position", _by_servo(raw))
        return self.calibration.to_units(raw)


def _by_servo(ticks: NDArray[np.int64]) -> dict[int, int]:
    return dict(zip(SERVO_IDS, ticks.tolist(), strict=True))


def _scaled(values: list[int], register: str) -> Vector:
    return (np.array(values) * REGISTERS[register].scale).astype(np.float32)
