"""The physics process: the follower and the cube in MuJoCo, the leader by kinematics alone.

    python -m robot_io.twin.physics PARENT SHARED_FD LINK_FD DIR SEED

Steps of 5 ms are paced by absolute deadlines on the monotonic clock. A step that comes late is
counted; what cannot be caught up within `CATCH_UP_S` is given up and counted too, so that after a
stall the world goes on at its own pace instead of racing.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from robot_io.twin.children import act_as_hardware, become_child, receive, reply
from robot_io.twin.hand import Plan
from robot_io.twin.memory import load_assembly
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
    CUBE_START_M,
    REST_JOINTS_RAD,
    TIMESTEP_S,
    build_scene,
    cube_pose,
    joint_ranges_rad,
)
from robot_io.twin.shared import ARMS, N_JOINTS, Float, Servo, SharedCommand, SharedState, World

CATCH_UP_S = 0.1
# Protection and heat are slow: every fourth step is soon enough.
_PROTECTION_EVERY = 4

_PRIORITY = 25  # above the agents' control loops, which wait for the servos


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
    """Profile and protection of one arm, fed from its command block."""

    def __init__(self, arm: str, shared: SharedState, centre_tick: tuple[int, ...]) -> None:
        self._block = shared.commands[arm]
        self._seen = self._block.sequence
        self._centre = np.array(centre_tick, float)
        self.profile = Profile()
        self.protection = Protection()
        self.command: Float = np.zeros((N_JOINTS, len(SharedCommand)))
        self.hand = HeldArm()

    def news(self, angle_rad: Float) -> bool:
        """Take over a new command block; True when there was one."""
        if self._block.sequence == self._seen:
            return False
        self._seen = self._block.sequence
        self.command = self._block.read()
        self.profile.command(self.command, angle_rad, self._centre)
        return True


class LeaderBody:
    """The leader arm: no weight, no inertia; a hand or its own torque moves it."""

    def __init__(self, motors: ArmMotors, ranges_rad: Float) -> None:
        self._motors = motors
        self._ranges = ranges_rad
        self.angle_rad: Float = np.array(REST_JOINTS_RAD)

    def step(self, dt_s: float) -> Float:
        """Advance; its servo block, shape [6, len(Servo)]."""
        motors = self._motors
        motors.news(self.angle_rad)
        before = self.angle_rad
        after = before.copy()
        on = motors.profile.energised
        if motors.hand.holds:
            held, _ = motors.hand.step(dt_s)
            after[~on] = held[~on]
        set_point = motors.profile.step(dt_s, before)
        after[on] = set_point[on]
        self.angle_rad = np.clip(after, self._ranges[:, 0], self._ranges[:, 1])
        velocity = (self.angle_rad - before) / dt_s
        return servo_rows(motors, self.angle_rad, velocity, np.zeros(N_JOINTS))


class FollowerBody:
    """The follower arm and the cube in MuJoCo."""

    def __init__(self, motors: ArmMotors) -> None:
        self._motors = motors
        self.scene = build_scene()
        self.model: Any = self.scene.model
        self.data: Any = self.scene.new_data()
        self.ranges_rad = joint_ranges_rad(self.model)
        self.highest_m = float(self.data.qpos[self.scene.cube_qpos + 2])
        self._arm_geoms = np.array(self.scene.arm_geoms)
        self._contype = self.model.geom_contype[self._arm_geoms].copy()
        self._touching = True
        self._steps = 0
        self._set_gains()

    def step(self) -> Float:
        """One step of `TIMESTEP_S`; its servo block, shape [6, len(Servo)]."""
        motors, model, data = self._motors, self.model, self.data
        if motors.news(data.qpos[:N_JOINTS].copy()):
            self._set_gains()
        held = motors.hand.step(TIMESTEP_S) if motors.hand.holds else None
        self._let_touch(held is None)
        data.ctrl[:] = motors.profile.step(TIMESTEP_S, data.qpos[:N_JOINTS])
        mujoco.mj_step(model, data)
        if held is not None:
            free = ~motors.profile.energised
            data.qpos[:N_JOINTS][free] = held[0][free]
            data.qvel[:N_JOINTS][free] = held[1][free]
        load = data.actuator_force / STALL_TORQUE_NM
        self._steps += 1
        if self._steps % _PROTECTION_EVERY == 0:
            motors.protection.step(_PROTECTION_EVERY * TIMESTEP_S, motors.command, load)
            self._set_ceiling()
        self.highest_m = max(self.highest_m, float(data.qpos[self.scene.cube_qpos + 2]))
        return servo_rows(motors, data.qpos[:N_JOINTS], data.qvel[:N_JOINTS], load)

    def place(self, x_m: float, y_m: float, yaw_rad: float) -> None:
        """Put the cube on the table, at rest."""
        first, dof = self.scene.cube_qpos, self.scene.cube_dof
        self.data.qpos[first : first + 7] = cube_pose(x_m, y_m, yaw_rad)
        self.data.qvel[dof : dof + 6] = 0.0
        self.highest_m = float(self.data.qpos[first + 2])

    def cube(self) -> tuple[float, float, float, float]:
        """x, y, z in metres and yaw in radians."""
        first = self.scene.cube_qpos
        x, y, z, qw, qx, qy, qz = self.data.qpos[first : first + 7]
        yaw = np.arctan2(2 * (qw * qz + qx * qy), 1 - 2 * (qy**2 + qz**2))
        return float(x), float(y), float(z), float(yaw)

    def _set_gains(self) -> None:
        command, model = self._motors.command, self.model
        on = self._motors.profile.energised
        stiffness = np.where(on, command[:, SharedCommand.P_GAIN] * STIFFNESS_NM_RAD_PER_P, 0.0)
        damping = np.where(on, command[:, SharedCommand.D_GAIN] * DAMPING_NM_S_RAD_PER_D, 0.0)
        model.actuator_gainprm[:, 0] = stiffness
        model.actuator_biasprm[:, 1] = -stiffness
        model.actuator_biasprm[:, 2] = -damping
        self._set_ceiling()

    def _set_ceiling(self) -> None:
        ceiling = self._motors.protection.torque_ceiling(self._motors.command) * STALL_TORQUE_NM
        self.model.actuator_forcerange[:, 0] = -ceiling
        self.model.actuator_forcerange[:, 1] = ceiling

    def _let_touch(self, touching: bool) -> None:
        # A hand carries the arm around the table and the cube, it does not push it through them.
        if touching != self._touching:
            self._touching = touching
            self.model.geom_contype[self._arm_geoms] = self._contype if touching else 0


def servo_rows(motors: ArmMotors, angle: Float, velocity: Float, load: Float) -> Float:
    """The servo block of one arm, shape [6, len(Servo)]."""
    rows: Float = np.empty((N_JOINTS, len(Servo)))
    current = current_ma(load)
    rows[:, Servo.ANGLE_RAD] = angle
    rows[:, Servo.VELOCITY_RAD_S] = velocity
    rows[:, Servo.LOAD] = load
    rows[:, Servo.CURRENT_MA] = current
    rows[:, Servo.TEMPERATURE_C] = motors.protection.temperature_c
    rows[:, Servo.VOLTAGE_V] = supply_v(float(current.sum()))
    rows[:, Servo.ERROR] = motors.protection.error
    rows[:, Servo.MOVING] = np.abs(velocity) > MOVING_RAD_S
    return rows


class PhysicsProcess:
    """Both arms, the clock, and the link to the main process."""

    def __init__(
        self, shared: SharedState, link: socket.socket, centre_tick: dict[str, tuple[int, ...]]
    ) -> None:
        self._shared = shared
        self._link = link
        self._motors = {arm: ArmMotors(arm, shared, centre_tick[arm]) for arm in ARMS}
        self._follower = FollowerBody(self._motors["follower"])
        self._leader = LeaderBody(self._motors["leader"], self._follower.ranges_rad)
        self.ranges_rad = self._follower.ranges_rad
        self._world: Float = np.zeros(len(World))
        self._placed = 0
        self._follower.place(*CUBE_START_M, 0.0)
        self._step()

    def run(self, running: Callable[[], bool], clock: Callable[[], float]) -> None:
        """Step until told to stop or the main process is gone."""
        world = self._world
        deadline_s = clock()
        while running():
            lag_s = clock() - deadline_s
            if lag_s < 0:
                time.sleep(-lag_s)
            elif lag_s > TIMESTEP_S:
                world[World.LATE_STEPS] += 1
                world[World.WORST_LAG_S] = max(world[World.WORST_LAG_S], lag_s)
                if lag_s > CATCH_UP_S:
                    world[World.LOST_S] += lag_s
                    deadline_s += lag_s
            deadline_s += TIMESTEP_S
            if not self._obey():
                return
            self._step()

    def _step(self) -> None:
        follower, world, shared = self._follower, self._world, self._shared
        shared.servos["follower"].publish(follower.step())
        shared.servos["leader"].publish(self._leader.step(TIMESTEP_S))
        world[World.SIM_TIME_S] += TIMESTEP_S
        world[World.CUBE_X_M : World.CUBE_YAW_RAD + 1] = follower.cube()
        world[World.CUBE_HIGHEST_M] = follower.highest_m
        world[World.HAND_FOLLOWER] = self._motors["follower"].hand.finished
        world[World.HAND_LEADER] = self._motors["leader"].hand.finished
        world[World.PLACED] = self._placed
        shared.world.publish(world)
        shared.pose.publish(follower.data.qpos)

    def _obey(self) -> bool:
        try:
            message = receive(self._link)
        except EOFError:
            return False
        if message is None:
            return True
        request, payload = message
        match request["op"]:
            case "place":
                self._follower.place(request["x_m"], request["y_m"], request["yaw_rad"])
                self._placed += 1
                reply(self._link, number=self._placed)
                return True
            case "hand":
                angles = np.frombuffer(payload, np.float64).reshape(-1, N_JOINTS)
                self._motors[request["arm"]].hand.take(request["number"], Plan(angles))
            case "let_go":
                self._motors[request["arm"]].hand.let_go()
            case unknown:
                reply(self._link, error=f"physics knows no {unknown!r}")
                return True
        reply(self._link, ok=True)
        return True


def main(argv: list[str]) -> int:
    """Process entry, started by `robot_io.twin.launcher`."""
    parent, shared_fd, link_fd, folder, seed = argv
    running = become_child(int(parent))
    shared = SharedState(int(shared_fd))
    link = socket.socket(fileno=int(link_fd))
    assembly = load_assembly(Path(folder), int(seed))
    process = PhysicsProcess(shared, link, dict(assembly.centre_tick))
    reply(link, ready=True, ranges_rad=process.ranges_rad.tolist())
    act_as_hardware(_PRIORITY)
    process.run(running, time.monotonic)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
