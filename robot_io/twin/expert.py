"""The expert: how a practised hand moves the leader so that the follower picks and lifts the cube.

Inverse kinematics by damped least squares on the same MuJoCo model (Wampler 1986; Nakamura and
Hanafusa 1986), for the pose "gripper straight down, cube between the jaws". A demonstration goes
through a few such poses on a clamped cubic spline, so it has no pause but the one in which the
gripper closes. All of it is a smooth function of where the cube lies: the same heights, the same
wrist rule (roll 0, jaws along the radius), the same times.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import mujoco
import numpy as np

from robot_io.twin.hand import PLAN_HZ, Plan, minimum_jerk
from robot_io.twin.scene import GRASP_SITE, Scene, build_scene, joint_ranges_rad
from robot_io.twin.shared import N_JOINTS, Float

ARM_JOINTS = 4  # pan, lift, elbow and wrist flex bring the gripper there; roll stays 0
GRIPPER = 5

OPEN_RAD = 0.60
CLOSED_RAD = 0.098  # a 25 mm cube stops the jaw at 0.125: a firm grip, below the overload threshold
# Heights of the grasp point above the table.
ABOVE_M = 0.085
GRASP_M = 0.020
LIFT_M = 0.080
# The fixed jaw comes down this far on the near side of the cube; closing pulls the cube to it.
CLEARANCE_M = 0.011

APPROACH_S = 1.15
DESCENT_S = 0.60
CLOSING_S = 0.45
SETTLE_S = 0.10
LIFTING_S = 0.75
HOLD_S = 0.45
DURATION_S = APPROACH_S + DESCENT_S + CLOSING_S + SETTLE_S + LIFTING_S + HOLD_S

_DAMPING = 0.02
_ROUNDS = 80
_MAX_STEP_RAD = 0.25
_DOWN_WEIGHT = 0.015  # metres that a radian of tilt is worth: where both cannot be, it tilts
_PAN_AXIS_X_M = 0.0388
_GUESS_RAD = (0.0, 0.0, 0.4, 1.1)


class Expert:
    """Plans on ``scene``'s model, which it leaves as it is; holds no state between plans."""

    def __init__(self, scene: Scene | None = None) -> None:
        scene = scene or build_scene()
        self._model: Any = scene.model
        self._data: Any = scene.new_data()
        self._site = self._model.site(GRASP_SITE).id
        self._ranges = joint_ranges_rad(self._model)[:ARM_JOINTS]

    def reach(self, x_m: float, y_m: float, height_m: float) -> tuple[Float, float]:
        """Arm angles [4] that bring the grasp point there, and how far off it stays, metres.

        Where the gripper cannot stay vertical it tilts, in exchange for the position.
        """
        data, model = self._data, self._model
        target = np.array((x_m, y_m, height_m))
        angles = np.array(_GUESS_RAD)
        angles[0] = -math.atan2(y_m, x_m - _PAN_AXIS_X_M)
        jacobian_position = np.zeros((3, model.nv))
        jacobian_rotation = np.zeros((3, model.nv))
        offset = np.zeros(3)
        for _ in range(_ROUNDS):
            data.qpos[:ARM_JOINTS] = angles
            data.qpos[ARM_JOINTS:N_JOINTS] = 0.0
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

    def pick_lift(
        self, start_rad: Float, x_m: float, y_m: float, stiffness: Float, speed: float = 1.0
    ) -> Plan:
        """From ``start_rad`` [6] to the cube at (x, y), grasp it, lift it and hold it.

        ``stiffness`` [6] in Nm/rad is that of the follower, 0 where unknown. A practised hand
        holds the leader as much higher as the follower hangs lower.
        """
        grip_x, grip_y = _grip_m(x_m, y_m)

        def pose(height_m: float, gripper_rad: float) -> Float:
            arm, _ = self.reach(grip_x, grip_y, height_m)
            return np.array((*self._sag(arm, stiffness[:ARM_JOINTS]), 0.0, gripper_rad))

        above, halfway, down = (
            pose(height, OPEN_RAD) for height in (ABOVE_M, (ABOVE_M + GRASP_M) / 2, GRASP_M)
        )
        grasped = pose(GRASP_M, CLOSED_RAD)
        raised = [pose(GRASP_M + LIFT_M * share, CLOSED_RAD) for share in (0.5, 1.0)]
        half_s = DESCENT_S / 2
        descent = _spline([start_rad, above, halfway, down], [APPROACH_S, half_s, half_s], speed)
        close = _straight(down, grasped, CLOSING_S, speed)
        settle = _straight(grasped, grasped, SETTLE_S, speed)
        lift = _spline([grasped, *raised], [LIFTING_S / 2, LIFTING_S / 2], speed)
        hold = _straight(raised[-1], raised[-1], HOLD_S, speed)
        # Opening is done before the jaws come near the cube.
        opening = np.clip(np.arange(len(descent)) / PLAN_HZ * speed / APPROACH_S, 0.0, 1.0)
        descent[:, GRIPPER] = start_rad[GRIPPER] + (OPEN_RAD - start_rad[GRIPPER]) * minimum_jerk(
            opening
        )
        return Plan(np.concatenate([descent, close, settle, lift, hold]))

    def off_m(self, x_m: float, y_m: float) -> float:
        """How far from the grasp of a cube at (x, y) the gripper stays, metres."""
        return self.reach(*_grip_m(x_m, y_m), GRASP_M)[1]

    def _sag(self, arm_rad: Float, stiffness: Float) -> Float:
        """Where to command the arm [4] so that its weight pulls it to ``arm_rad``."""
        data = self._data
        data.qpos[:ARM_JOINTS] = arm_rad
        data.qvel[:] = 0.0
        mujoco.mj_forward(self._model, data)
        weight = data.qfrc_bias[:ARM_JOINTS]
        lead = np.divide(weight, stiffness, out=np.zeros(ARM_JOINTS), where=stiffness > 0)
        return np.clip(arm_rad + lead, self._ranges[:, 0], self._ranges[:, 1])


def _grip_m(x_m: float, y_m: float) -> tuple[float, float]:
    """Where the grasp point goes for a cube at (x, y): nearer by what the fixed jaw needs."""
    share = 1 - CLEARANCE_M / max(math.hypot(x_m, y_m), CLEARANCE_M)
    return x_m * share, y_m * share


def _samples(duration_s: float, speed: float) -> Float:
    """Times from just after 0 to ``duration_s`` at the plan's rate, in unscaled seconds."""
    count = max(1, round(duration_s / speed * PLAN_HZ))
    return np.arange(1, count + 1) / count * duration_s


def _straight(start: Float, goal: Float, duration_s: float, speed: float) -> Float:
    share = minimum_jerk(_samples(duration_s, speed) / duration_s)[:, None]
    angles: Float = start + (goal - start) * share
    return angles


def _spline(points: list[Float], durations_s: list[float], speed: float) -> Float:
    """Clamped cubic spline through ``points``, at rest at both ends; shape [T, 6]."""
    times = np.array([0.0, *itertools.accumulate(durations_s)])
    values = np.array(points)
    steps = np.diff(times)
    slopes = np.diff(values, axis=0) / steps[:, None]
    count = len(points)
    # Velocities at the points from continuity of the second derivative.
    matrix = np.eye(count)
    right = np.zeros_like(values)
    for k in range(1, count - 1):
        matrix[k, k - 1 : k + 2] = steps[k], 2 * (steps[k - 1] + steps[k]), steps[k - 1]
        right[k] = 3 * (steps[k] * slopes[k - 1] + steps[k - 1] * slopes[k])
    velocities = np.linalg.solve(matrix, right)
    at = _samples(float(times[-1]), speed)
    piece = np.clip(np.searchsorted(times, at, side="left") - 1, 0, count - 2)
    span = steps[piece][:, None]
    t = (at - times[piece])[:, None] / span
    angles: Float = (
        (2 * t**3 - 3 * t**2 + 1) * values[piece]
        + (t**3 - 2 * t**2 + t) * span * velocities[piece]
        + (-2 * t**3 + 3 * t**2) * values[piece + 1]
        + (t**3 - t**2) * span * velocities[piece + 1]
    )
    return angles
