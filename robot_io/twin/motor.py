"""The electromechanical half of six STS3215 servos: goal profile, torque, protection, heat.

Pure numbers, stepped by the physics process for all six joints of an arm at once. The firmware's
other half (registers and packets) is `robot_io.twin.firmware`; the two meet in the command and
servo blocks of `robot_io.twin.shared`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from robot_io.sts3215 import RESOLUTION, OperatingMode, ServoError
from robot_io.twin.shared import N_JOINTS, Float, SharedCommand

RAD_PER_TICK = 2 * np.pi / RESOLUTION
# Feetech's data sheet for the 12 V STS3215: 30 kg cm at stall, 2.7 A, 0.222 s/60 deg.
STALL_TORQUE_NM = 2.94
STALL_CURRENT_MA = 2700.0
IDLE_CURRENT_MA = 30.0
SUPPLY_V = 12.1
SUPPLY_OHM = 0.08
# The Robot Studio's identified SO-101 (17.8 Nm/rad; their MJCF, joints_properties.xml), taken as
# LeRobot's P = 16. An outstretched arm then sags by a degree and follows some 60 ms behind.
STIFFNESS_NM_RAD_PER_P = 17.8 / 16
DAMPING_NM_S_RAD_PER_D = 0.6 / 32
# Stall heats the motor towards +90 K with a time constant of three minutes.
AMBIENT_C = 27.0
STALL_HEATING_K = 90.0
THERMAL_TIME_S = 180.0
MOVING_RAD_S = 0.03

Bits = NDArray[np.int64]
_OVERLOAD = int(ServoError.OVERLOAD)
_OVERCURRENT = int(ServoError.OVERCURRENT)
_OVERHEAT = int(ServoError.OVERHEAT)
_LETS_GO = int(ServoError.OVERHEAT | ServoError.OVERCURRENT | ServoError.VOLTAGE)


def encoder_ticks(angle_rad: Float, centre_tick: Float) -> Float:
    """Actual position of the magnetic encoder, 0 <= tick < 4096, before the homing offset."""
    ticks: Float = np.mod(centre_tick + angle_rad / RAD_PER_TICK, RESOLUTION)
    return ticks


def goal_angles(command: Float, angle_rad: Float, centre_tick: Float) -> Float:
    """Where each goal lies, in the joint's own radians, from where the joint is now.

    A servo in position mode subtracts present from goal without wrapping, so a goal on the far
    side of the encoder's seam is reached the long way round, as on the real one.
    """
    actual = encoder_ticks(angle_rad, centre_tick)
    present = np.mod(actual - command[:, SharedCommand.OFFSET_TICK], RESOLUTION)
    goal: Float = angle_rad + (command[:, SharedCommand.GOAL_TICK] - present) * RAD_PER_TICK
    return goal


class Profile:
    """Trapezoidal motion of each joint's set point towards its goal.

    Goal_Velocity or Acceleration of 0 means as fast as the servo can.
    """

    def __init__(self) -> None:
        self.position_rad: Float = np.zeros(N_JOINTS)
        self.velocity_rad_s: Float = np.zeros(N_JOINTS)
        self._goal_rad: Float = np.zeros(N_JOINTS)
        self._top_rad_s: Float = np.ones(N_JOINTS)
        self._acceleration_rad_s2: Float = np.ones(N_JOINTS)
        self._energised: NDArray[np.bool_] = np.zeros(N_JOINTS, np.bool_)

    def command(self, command: Float, angle_rad: Float, centre_tick: Float) -> None:
        """Take over a new command block, shape [6, len(SharedCommand)]."""
        on = (command[:, SharedCommand.TORQUE_ENABLE] > 0) & (
            command[:, SharedCommand.MODE] == OperatingMode.POSITION
        )
        fresh = on & ~self._energised
        # A servo begins from where it stands, whatever stale goal its register holds.
        self.position_rad[fresh] = angle_rad[fresh]
        self.velocity_rad_s[fresh] = 0.0
        self._energised = on
        self._goal_rad = goal_angles(command, angle_rad, centre_tick)
        top = command[:, SharedCommand.MAX_VELOCITY_TICK_S]
        wanted = np.abs(command[:, SharedCommand.GOAL_VELOCITY_TICK_S])
        self._top_rad_s = np.where(wanted > 0, np.minimum(wanted, top), top) * RAD_PER_TICK
        acceleration = command[:, SharedCommand.ACCELERATION_TICK_S2]
        self._acceleration_rad_s2 = (
            np.where(acceleration > 0, acceleration, 50_000.0) * RAD_PER_TICK
        )

    def step(self, dt_s: float, angle_rad: Float) -> Float:
        """Set points after ``dt_s``, shape [6]; a joint without torque drags its own along."""
        distance = self._goal_rad - self.position_rad
        reach = np.abs(distance)
        braking = np.sqrt(2 * self._acceleration_rad_s2 * reach)
        wanted = np.sign(distance) * np.minimum(np.minimum(self._top_rad_s, braking), reach / dt_s)
        change = self._acceleration_rad_s2 * dt_s
        # Not np.clip, which takes longer than all the rest.
        self.velocity_rad_s += np.minimum(np.maximum(wanted - self.velocity_rad_s, -change), change)
        move = self.velocity_rad_s * dt_s
        arrives = (reach <= np.abs(move)) & (np.sign(move) == np.sign(distance))
        self.position_rad += np.where(arrives, distance, move)
        self.velocity_rad_s[arrives] = 0.0
        if not self._energised.all():
            off = ~self._energised
            self.position_rad[off] = angle_rad[off]
            self.velocity_rad_s[off] = 0.0
        return self.position_rad

    @property
    def energised(self) -> NDArray[np.bool_]:
        """Which joints hold a position, shape [6]."""
        return self._energised


class Protection:
    """Heat, current and overload of six servos, and what their firmware does about them.

    As in Feetech's memory table: more than Overload_Torque for longer than Protection_Time sets
    the overload bit and leaves Protective_Torque; too hot or too much current lets the motor go
    where Unloading_Condition says so. A bit clears when its cause is gone (overload: when torque
    is switched off, or the motor no longer has to push).
    """

    def __init__(self) -> None:
        self.temperature_c: Float = np.full(N_JOINTS, AMBIENT_C)
        self._overloaded_s: Float = np.zeros(N_JOINTS)
        self._overcurrent_s: Float = np.zeros(N_JOINTS)
        self.error: Bits = np.zeros(N_JOINTS, np.int64)

    def step(self, dt_s: float, command: Float, load: Float) -> None:
        """Account for ``dt_s`` at ``load`` (-1..1 of stall torque, shape [6])."""
        push = np.abs(load)
        target = AMBIENT_C + STALL_HEATING_K * push**2
        self.temperature_c += (target - self.temperature_c) * min(1.0, dt_s / THERMAL_TIME_S)
        on = command[:, SharedCommand.TORQUE_ENABLE] > 0
        over = on & (push > command[:, SharedCommand.OVERLOAD_TORQUE] - 1e-3)
        self._overloaded_s = np.where(over, self._overloaded_s + dt_s, 0.0)
        too_much = on & (current_ma(load) > command[:, SharedCommand.PROTECTION_CURRENT_MA])
        self._overcurrent_s = np.where(too_much, self._overcurrent_s + dt_s, 0.0)

        tripped = self._overloaded_s > command[:, SharedCommand.PROTECTION_TIME_S]
        # Once tripped only Protective_Torque is left; still at that ceiling means still pushing.
        ceiling = np.minimum(
            command[:, SharedCommand.PROTECTIVE_TORQUE], command[:, SharedCommand.TORQUE_LIMIT]
        )
        held = (self.error & _OVERLOAD > 0) & on & (push >= ceiling * 0.9)
        too_long = self._overcurrent_s > command[:, SharedCommand.OVERCURRENT_TIME_S]
        too_hot = self.temperature_c > command[:, SharedCommand.MAX_TEMPERATURE_C]
        error: Bits = (tripped | held) * _OVERLOAD + too_long * _OVERCURRENT + too_hot * _OVERHEAT
        self.error = error | command[:, SharedCommand.FORCED_ERROR].astype(np.int64)

    def torque_ceiling(self, command: Float) -> Float:
        """Largest torque each motor may give now, 0..1 of stall torque, shape [6]."""
        ceiling = command[:, SharedCommand.TORQUE_LIMIT].copy()
        if not self.error.any():
            return ceiling
        unloaded = self.error & command[:, SharedCommand.UNLOAD_ON].astype(np.int64)
        limited = unloaded & _OVERLOAD > 0
        ceiling[limited] = np.minimum(ceiling, command[:, SharedCommand.PROTECTIVE_TORQUE])[limited]
        ceiling[unloaded & _LETS_GO > 0] = 0.0
        return ceiling


def current_ma(load: Float) -> Float:
    """Motor current at ``load``, mA, shape [6]."""
    current: Float = IDLE_CURRENT_MA + np.abs(load) * STALL_CURRENT_MA
    return current


def supply_v(total_current_ma: float) -> float:
    """What is left of the supply at the end of the daisy chain."""
    return SUPPLY_V - SUPPLY_OHM * total_current_ma / 1000.0
