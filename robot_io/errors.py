"""What can go wrong at the arm. Every class also is the standard exception that fits it."""

from __future__ import annotations

from collections.abc import Iterable


class RobotIOError(Exception):
    """Anything that robot_io raises on purpose; the message is one line for the operator."""


class BusError(RobotIOError):
    """A transaction on the servo bus failed. ``servo_ids`` names the servos that it concerns."""

    def __init__(self, message: str, servo_ids: Iterable[int] = ()) -> None:
        super().__init__(message)
        self.servo_ids = tuple(servo_ids)


class BusTimeout(BusError, TimeoutError):
    """A servo that was asked did not answer within the time and the retries allowed."""


class BadPacket(BusError, ValueError):
    """A servo answered with something that is no answer to the question."""


class BadChecksum(BadPacket):
    """What came back was corrupt, each time within the retries allowed."""


class PortMissing(BusError, FileNotFoundError):
    """There is no such serial port (or nobody may see it)."""


class PortDenied(BusError, PermissionError):
    """The serial port is there, but this user may not open it."""


class PortBusy(BusError, BlockingIOError):
    """Another process holds the serial port."""


class Unplugged(BusError, ConnectionError):
    """The serial port went away while it was open, or has not been opened since."""


class WrongServos(BusError, LookupError):
    """The bus does not carry the six STS3215 that an SO-101 has."""


class NotCalibrated(RobotIOError, RuntimeError):
    """There is no calibration, or the servos' EEPROM holds another one."""


class BadCalibration(RobotIOError, ValueError):
    """A calibration file, or a calibration just taken, that cannot be right."""


class TorqueRefused(RobotIOError, RuntimeError):
    """The arm was not energised, because it could not be done without a jump."""


class CameraGone(RobotIOError, TimeoutError):
    """No frame that is fresh enough can be had from a camera."""


class BadImage(RobotIOError, ValueError):
    """An image that does not have the shape that was promised."""
