"""The expert: how a practised hand holds the leader so that the follower's gripper is at a place.

Inverse kinematics by damped least squares on the same MuJoCo model (Wampler 1986; Nakamura and
Hanafusa 1986), for the pose "gripper straight down, grasp point there". Where the way between
such poses goes is `robot_io.twin.route`'s; which poses a task needs, the task's own.
"""

from __future__ import annotations

import math
from typing import Any

import mujoco
import numpy as np

from robot_io.twin.scene import Scene, build_scene, joint_ranges_rad
from robot_io.twin.shared import N_JOINTS, Float

ARM_JOINTS = 4  # pan, lift, elbow and wrist flex bring the gripper there; roll is the task's
ROLL = 4
GRIPPER = 5

# Height of the grasp point above the table with which a cube is grasped.
GRASP_M = 0.020
# The fixed jaw comes down this far on the near side of the cube; closing pulls the cube to it.
CLEARANCE_M = 0.011

_DAMPING = 0.02
_ROUNDS = 80
_MAX_STEP_RAD = 0.25
_DOWN_WEIGHT = 0.015  # metres that a radian of tilt is worth: where both cannot be, it tilts
PAN_AXIS_X_M = 0.0388
_GUESS_RAD = (0.0, 0.0, 0.4, 1.1)


class Expert:
    """Plans on ``scene``'s model, which it leaves as it is; holds no state between plans."""

    def __init__(self, scene: Scene | None = None) -> None:
        scene = scene or build_scene()
        self._model: Any = scene.model
        self._data: Any = scene.new_data()
        self._site = scene.grasp_site
        self._ranges = joint_ranges_rad(self._model)[:ARM_JOINTS]

    def reach(
        self, x_m: float, y_m: float, height_m: float, roll_rad: float = 0.0
    ) -> tuple[Float, float]:
        """Arm angles [4] that bring the grasp point there, and how far off it stays, metres.

        Where the gripper cannot stay vertical it tilts, in exchange for the position.
        """
        data, model = self._data, self._model
        target = np.array((x_m, y_m, height_m))
        angles = np.array(_GUESS_RAD)
        angles[0] = -math.atan2(y_m, x_m - PAN_AXIS_X_M)
        jacobian_position = np.zeros((3, model.nv))
        jacobian_rotation = np.zeros((3, model.nv))
        offset = np.zeros(3)
        for _ in range(_ROUNDS):
            data.qpos[:ARM_JOINTS] = angles
            data.qpos[ARM_JOINTS:N_JOINTS] = roll_rad, 0.0
            mujoco.mj_kinematics(model, data)
            mujoco.mj_comPos(model, data)
            mujoco.mj_jacSite(model, data, jacobian_position, jacobian_rotation, self._site)
            offset = target - data.site_xpos[self._site]
            # The gripper points along -z of its body; its tilt is the turn that brings it down.
            up = data.site_xmat[self._site].reshape(3, 3)[:, 2]
            tilt = np.array((up[1], -up[0], 0.0))  # up × z
            error = np.concatenate([offset, tilt * _DOWN_WEIGHT])
            turning = jacobian_rotation[:, :ARM_JOINTS] * _DOWN_WEIGHT
            jacobian = np.concatenate([jacobian_position[:, :ARM_JOINTS], turning])
            square = jacobian @ jacobian.T + _DAMPING**2 * np.eye(6)
            step = jacobian.T @ np.linalg.solve(square, error)
            angles = np.clip(
                angles + np.clip(step, -_MAX_STEP_RAD, _MAX_STEP_RAD),
                self._ranges[:, 0],
                self._ranges[:, 1],
            )
        return angles, float(np.linalg.norm(offset))

    def off_m(self, x_m: float, y_m: float) -> float:
        """How far from the grasp of a cube at (x, y) the gripper stays, metres."""
        return self.reach(*grip_m(x_m, y_m), GRASP_M)[1]

    def held_up(self, arm_rad: Float, stiffness: Float) -> Float:
        """Where to command the arm [4] so that its weight pulls it to ``arm_rad``.

        ``stiffness`` [4] in Nm/rad is that of the follower, 0 where unknown. A practised hand
        holds the leader as much higher as the follower hangs lower.
        """
        data = self._data
        data.qpos[:ARM_JOINTS] = arm_rad
        data.qvel[:] = 0.0
        mujoco.mj_forward(self._model, data)
        weight = data.qfrc_bias[:ARM_JOINTS]
        lead = np.divide(weight, stiffness, out=np.zeros(ARM_JOINTS), where=stiffness > 0)
        return np.clip(arm_rad + lead, self._ranges[:, 0], self._ranges[:, 1])


def grip_m(x_m: float, y_m: float) -> tuple[float, float]:
    """Where the grasp point goes for a cube at (x, y): nearer by what the fixed jaw needs."""
    share = 1 - CLEARANCE_M / max(math.hypot(x_m, y_m), CLEARANCE_M)
    return x_m * share, y_m * share
