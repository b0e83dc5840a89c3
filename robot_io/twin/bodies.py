"""The bodies that the physics moves: a hand, the leader by kinematics, the follower in MuJoCo.

No clock and no shared memory: the physics process steps them in real time, `LockstepTwin` as fast
as it can. A body takes over a command block (`obey`), steps, and tells its servo block (`servos`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np

from robot_io.twin.hand import Plan
from robot_io.twin.layout import CubePlacement, Layout, TableState
from robot_io.twin.motor import (
    DAMPING_NM_S_RAD_PER_D,
    MOVING_RAD_S,
    STALL_TORQUE_NM,
    STIFFNESS_NM_RAD_PER_P,
    Profile,
    Protection,
    current_ma,
    supply_v,
)
from robot_io.twin.scene import (
    REST_JOINTS_RAD,
    TIMESTEP_S,
    Scene,
    joint_ranges_rad,
)
from robot_io.twin.shared import MAX_OBJECTS, N_JOINTS, Float, Servo, SharedCommand

# Protection and heat are slow: every fourth step is soon enough.
_PROTECTION_EVERY = 4


class HeldArm:
    """A hand on an arm: plays plans, keeps the last pose until it lets go."""

    def __init__(self) -> None:
        self.number = 0
        self.finished = 0
        self._plan: Plan | None = None
        self._elapsed_s = 0.0

    @property
    def holds(self) -> bool:
        """Whether a hand is on the arm."""
        return self._plan is not None

    def take(self, number: int, plan: Plan) -> None:
        """Begin a motion; a former one ends where it is."""
        self.number = number
        self._plan = plan
        self._elapsed_s = 0.0

    def let_go(self) -> None:
        """Take the hand away."""
        self._plan = None
        self.finished = self.number

    def step(self, dt_s: float) -> tuple[Float, Float]:
        """Angles [6] and velocities [6] of the hand after ``dt_s``. Only while it holds."""
        assert self._plan is not None
        self._elapsed_s += dt_s
        angle, velocity, over = self._plan.at(self._elapsed_s)
        if over:
            self.finished = self.number
        return angle, velocity


class ArmMotors:
    """Profile and protection of one arm, fed with its command block.

    ``centre_tick`` [6] is the encoder's reading at each joint's angle 0.
    """

    def __init__(self, centre_tick: Sequence[float] | Float) -> None:
        self._centre = np.array(centre_tick, float)
        self.profile = Profile()
        self.protection = Protection()
        self.command: Float = np.zeros((N_JOINTS, len(SharedCommand)))
        self.hand = HeldArm()

    def obey(self, command: Float, angle_rad: Float) -> None:
        """Take over a new command block, shape [6, len(SharedCommand)]."""
        self.command = command
        self.profile.command(command, angle_rad, self._centre)

    def servos(self, angle_rad: Float, velocity_rad_s: Float, load: Float) -> Float:
        """The servo block, shape [6, len(Servo)]."""
        rows: Float = np.empty((N_JOINTS, len(Servo)))
        current = current_ma(load)
        rows[:, Servo.ANGLE_RAD] = angle_rad
        rows[:, Servo.VELOCITY_RAD_S] = velocity_rad_s
        rows[:, Servo.LOAD] = load
        rows[:, Servo.CURRENT_MA] = current
        rows[:, Servo.TEMPERATURE_C] = self.protection.temperature_c
        rows[:, Servo.VOLTAGE_V] = supply_v(float(current.sum()))
        rows[:, Servo.ERROR] = self.protection.error
        rows[:, Servo.MOVING] = np.abs(velocity_rad_s) > MOVING_RAD_S
        return rows


class LeaderBody:
    """The leader arm: no weight, no inertia; a hand or its own torque moves it."""

    def __init__(self, motors: ArmMotors, ranges_rad: Float) -> None:
        self.motors = motors
        self._ranges = ranges_rad
        self.angle_rad: Float = np.array(REST_JOINTS_RAD)
        self._velocity_rad_s: Float = np.zeros(N_JOINTS)

    def obey(self, command: Float) -> None:
        """Take over a new command block."""
        self.motors.obey(command, self.angle_rad)

    def step(self) -> None:
        """Advance by `TIMESTEP_S`."""
        motors = self.motors
        before = self.angle_rad
        after = before.copy()
        on = motors.profile.energised
        if motors.hand.holds:
            held, _ = motors.hand.step(TIMESTEP_S)
            after[~on] = held[~on]
        set_point = motors.profile.step(TIMESTEP_S, before)
        after[on] = set_point[on]
        self.angle_rad = np.clip(after, self._ranges[:, 0], self._ranges[:, 1])
        self._velocity_rad_s = (self.angle_rad - before) / TIMESTEP_S

    def servos(self) -> Float:
        """Its servo block, shape [6, len(Servo)]."""
        return self.motors.servos(self.angle_rad, self._velocity_rad_s, np.zeros(N_JOINTS))


class FollowerBody:
    """The follower arm and what lies on the table; ``scene.model`` is its own to change."""

    def __init__(self, motors: ArmMotors, scene: Scene) -> None:
        self.motors = motors
        self.scene = scene
        self.model: Any = scene.model
        self.data: Any = scene.new_data()
        self.ranges_rad = joint_ranges_rad(self.model)
        self._arm_geoms = np.array(self.scene.arm_geoms)
        self._contype = self.model.geom_contype[self._arm_geoms].copy()
        self._touching = True
        self._steps = 0
        self._heights = np.array([cube.qpos + 2 for cube in scene.cubes])
        self.highest_m: Float = self.data.qpos[self._heights]
        self._set_gains()

    def obey(self, command: Float) -> None:
        """Take over a new command block."""
        self.motors.obey(command, self.angle_rad.copy())
        self._set_gains()

    def step(self) -> None:
        """Advance by `TIMESTEP_S`."""
        motors, model, data = self.motors, self.model, self.data
        held = motors.hand.step(TIMESTEP_S) if motors.hand.holds else None
        self._let_touch(held is None)
        data.ctrl[:] = motors.profile.step(TIMESTEP_S, data.qpos[:N_JOINTS])
        mujoco.mj_step(model, data)
        if held is not None:
            free = ~motors.profile.energised
            data.qpos[:N_JOINTS][free] = held[0][free]
            data.qvel[:N_JOINTS][free] = held[1][free]
        self._steps += 1
        if self._steps % _PROTECTION_EVERY == 0:
            motors.protection.step(_PROTECTION_EVERY * TIMESTEP_S, motors.command, self._load())
            self._set_ceiling()
        np.maximum(self.highest_m, data.qpos[self._heights], out=self.highest_m)

    @property
    def angle_rad(self) -> Float:
        """Joint angles [6], a view into MuJoCo's state."""
        angles: Float = self.data.qpos[:N_JOINTS]
        return angles

    def servos(self) -> Float:
        """Its servo block, shape [6, len(Servo)]."""
        return self.motors.servos(self.angle_rad, self.data.qvel[:N_JOINTS], self._load())

    def _load(self) -> Float:
        load: Float = self.data.actuator_force / STALL_TORQUE_NM
        return load

    def place(self, number: int, placement: CubePlacement) -> None:
        """Put the object with this number in a layout on the table, at rest."""
        self.scene.place(self.data, number, placement)
        if number < len(self._heights):
            self.highest_m[number] = self.data.qpos[self._heights[number]]

    def lay_out(self, layout: Layout) -> None:
        """Place every object."""
        for number, placement in enumerate(layout):
            self.place(number, placement)

    def table(self) -> Float:
        """x, y, z in metres and yaw in radians of each object, [MAX_OBJECTS, 4], zeros behind."""
        rows: Float = np.zeros((MAX_OBJECTS, 4))
        count = 0
        for count, cube in enumerate(self.scene.cubes, 1):
            x, y, z, qw, qx, qy, qz = self.data.qpos[cube.qpos : cube.qpos + 7].tolist()
            yaw = math.atan2(2 * (qw * qz + qx * qy), 1 - 2 * (qy**2 + qz**2))
            rows[count - 1] = x, y, z, yaw
        marks = self.data.mocap_pos
        rows[count : count + len(marks), :3] = marks
        return rows

    def state(self) -> TableState:
        """What success is judged by, as it is now."""
        rows, count = self.table(), len(self.scene.cubes)
        speeds = [
            np.linalg.norm(self.data.qvel[cube.dof : cube.dof + 3]) for cube in self.scene.cubes
        ]
        return TableState(
            rows[:count, :3],
            np.array(speeds),
            self.highest_m.copy(),
            self.data.mocap_pos[:, :2].copy(),
            self.data.site_xpos[self.scene.grasp_site].copy(),
        )

    def _set_gains(self) -> None:
        command, model = self.motors.command, self.model
        on = self.motors.profile.energised
        stiffness = np.where(on, command[:, SharedCommand.P_GAIN] * STIFFNESS_NM_RAD_PER_P, 0.0)
        damping = np.where(on, command[:, SharedCommand.D_GAIN] * DAMPING_NM_S_RAD_PER_D, 0.0)
        model.actuator_gainprm[:, 0] = stiffness
        model.actuator_biasprm[:, 1] = -stiffness
        model.actuator_biasprm[:, 2] = -damping
        self._set_ceiling()

    def _set_ceiling(self) -> None:
        ceiling = self.motors.protection.torque_ceiling(self.motors.command) * STALL_TORQUE_NM
        self.model.actuator_forcerange[:, 0] = -ceiling
        self.model.actuator_forcerange[:, 1] = ceiling

    def _let_touch(self, touching: bool) -> None:
        # A hand carries the arm around the table and the cube, it does not push it through them.
        if touching != self._touching:
            self._touching = touching
            self.model.geom_contype[self._arm_geoms] = self._contype if touching else 0
