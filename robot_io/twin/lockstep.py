"""The twin without a clock and without a wire: one `step` is one tick of a control loop.

The follower's body, its servos' settings, the expert and the painter are those of the real-time
twin. What is left out is what lies between a control loop and them: packets, processes, MJPEG.
A goal acts from the next physics step on, a picture shows the moment of its observation.

Equal placements, seeds and goals give equal observations, to the last bit on one machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from robot_io.calibration import Calibration, Vector
from robot_io.limits import Limits, SafetyFilter
from robot_io.twin.bodies import ArmMotors, FollowerBody
from robot_io.twin.errors import OutOfReach
from robot_io.twin.expert import Expert
from robot_io.twin.hand import Plan
from robot_io.twin.layout import CubePlacement, Layout
from robot_io.twin.motor import STIFFNESS_NM_RAD_PER_P
from robot_io.twin.overlook import Overlook
from robot_io.twin.painter import Painter
from robot_io.twin.ready_arm import ReadyArm
from robot_io.twin.route import Route
from robot_io.twin.scene import (
    REST_JOINTS_RAD,
    TIMESTEP_S,
    SceneCamera,
    build_scene,
    check_names,
    joint_ranges_rad,
)
from robot_io.twin.shared import N_JOINTS, Float, SharedCommand
from robot_io.twin.tasks.lift import LIFT, LIFTED_M
from robot_io.twin.tasks.task import TwinTask
from robot_io.twin.variation import PLAIN, SceneVariation

CONTROL_HZ = 30.0
SETTLE_S = 0.5  # the arm sags and the cube comes to rest before the first observation
START_SPREAD = 1.0  # joint units
REACH_M = 0.001  # farther off than this the jaws miss the cube


@dataclass(frozen=True, slots=True)
class TwinObservation:
    """What a control loop has at one tick.

    Attributes:
        tick: goals carried out since the reset.
        state: float32 [6] in joint units, as encoders and calibration give it.
        environment: float32 [2], metres: where the tracker puts the cube, its last place while
            hidden; NaN where it was never seen.
        cube_m: float64 [3], where the first cube's centre really is.
        images: uint8 [H, W, 3] RGB by camera.
    """

    tick: int
    state: Vector
    environment: Vector
    cube_m: Float
    images: dict[str, NDArray[np.uint8]] = field(default_factory=dict)


class LockstepTwin:
    """A calibrated follower, a task's objects and its cameras, stepped by the caller.

    Args:
        cameras: drawn at every observation; their ``fps`` is not used.
        control_hz: ticks a second, at most the physics' 200. At 30 a tick is 6 or 7 of its steps.
        limits: put a `SafetyFilter` before the arm, as the agent does. The calibrated range and
            the servos' own limits hold without it.
        start_spread: joint units by which a seed moves each joint's start from the rest pose.
        task: what lies on the table, what the expert does, and what success is.
        variation: how this robot's pictures differ.

    Raises:
        BadCameraSpec: no such camera, or one twice.
        ValueError: a control rate that the physics cannot serve.
    """

    def __init__(
        self,
        cameras: Sequence[SceneCamera] = (),
        *,
        control_hz: float = CONTROL_HZ,
        limits: Limits | None = None,
        start_spread: float = START_SPREAD,
        task: TwinTask = LIFT,
        variation: SceneVariation = PLAIN,
    ) -> None:
        if not 0 < control_hz <= 1 / TIMESTEP_S:
            raise ValueError(f"control_hz is {control_hz}, it must be within 0..{1 / TIMESTEP_S:g}")
        self.cameras = tuple(cameras)
        check_names(self.cameras)
        self.control_hz = control_hz
        self.task = task
        self._scene = build_scene(self.cameras, task.objects, variation)
        self._arm = ReadyArm(joint_ranges_rad(self._scene.model))
        self._filter = None if limits is None else SafetyFilter(limits)
        self._start_spread = start_spread
        self._expert = Expert(self._scene)
        self._overlook = Overlook(self._scene, variation)
        self._painter = Painter(self.cameras, self._scene) if self.cameras else None
        self.reset(task.start)

    @property
    def calibration(self) -> Calibration:
        """The follower's."""
        return self._arm.calibration

    def reset(self, placement: CubePlacement | Layout, seed: int = 0) -> TwinObservation:
        """Put the arm near its rest pose and all objects in place; wait until they rest.

        A lone placement is that of a task with one object.

        Raises:
            OutOfReach: the jaws cannot be brought around a cube there.
            ValueError: not a placement for each object.
        """
        layout = (placement,) if isinstance(placement, CubePlacement) else placement
        names = self.task.objects.names
        if len(layout) != len(names):
            raise ValueError(
                f"{self.task.name} places {', '.join(names)}: {len(layout)} placements were given"
            )
        for each in layout:
            self._check_reach(each)
        spread = np.random.default_rng(seed).uniform(-1.0, 1.0, N_JOINTS) * self._start_spread
        start = (self._arm.units(np.array(REST_JOINTS_RAD)) + spread).astype(np.float32)
        self._start_rad = self._arm.angles_rad(start)
        self._body = FollowerBody(ArmMotors(self._arm.centre_tick), self._scene)
        self._body.lay_out(layout)
        self._body.data.qpos[:N_JOINTS] = self._start_rad
        self._place: Vector = np.full(2, np.nan, np.float32)
        self._tick = self._steps = 0
        if self._filter is not None:
            self._filter.reset()
        self._send(start)
        self._run_to(SETTLE_S)
        self._body.highest_m[:] = self._body.state().cubes_m[:, 2]
        return self.observe()

    def step(self, goal: Vector) -> TwinObservation:
        """Send ``goal``, joint units [6], let one control period pass, and look.

        Raises:
            ValueError: not six finite numbers. With ``limits`` a joint whose number is not finite
                stays where it was sent before.
        """
        if self._filter is not None:
            present = self._arm.units(self._body.angle_rad)
            goal, _ = self._filter.apply(goal, present, 1 / self.control_hz)
        self._send(goal)
        self._tick += 1
        self._run_to(SETTLE_S + self._tick / self.control_hz)
        return self.observe()

    def observe(self) -> TwinObservation:
        """What is to be read and seen at this moment."""
        body = self._body
        seen = self._overlook.locate(body.data)
        if seen is not None:
            self._place = np.array(seen, np.float32)
        images: dict[str, NDArray[np.uint8]] = {}
        if self._painter is not None:
            self._painter.set_pose(self._scene.pose(body.data))
            images = {camera.name: self._painter.draw(camera) for camera in self.cameras}
        return TwinObservation(
            self._tick,
            self._arm.units(body.angle_rad),
            self._place,
            body.table()[0, :3],
            images,
        )

    @property
    def sent(self) -> Vector:
        """The goal last sent, float32 [6], after all limits."""
        return self._sent

    @property
    def tick(self) -> int:
        """Goals carried out since the reset."""
        return self._tick

    @property
    def time_s(self) -> float:
        """Simulated seconds since the placement, settling included."""
        return self._steps * TIMESTEP_S

    @property
    def highest_m(self) -> float:
        """The highest that the first cube's centre has been since the reset."""
        return float(self._body.highest_m[0])

    @property
    def lifted(self) -> bool:
        """Whether the first cube was lifted since the reset."""
        return self.highest_m > LIFTED_M

    @property
    def succeeded(self) -> bool:
        """Whether the task is done as things stand."""
        return self.task.succeeded(self._body.state())

    @property
    def layout(self) -> Layout:
        """Where all objects are now."""
        rows = self._body.table()[: len(self.task.objects.names), [0, 1, 3]].tolist()
        return tuple(CubePlacement(*row) for row in rows)

    @property
    def degrees_a_unit(self) -> Float:
        """Degrees that each joint turns for one of its units [6]: 1, but for the gripper."""
        lower, upper = self.calibration.lower, self.calibration.upper
        turn_rad = self._arm.angles_rad(upper) - self._arm.angles_rad(lower)
        degrees: Float = np.degrees(turn_rad) / (upper - lower)
        return degrees

    @property
    def joints_rad(self) -> Float:
        """The true joint angles [6]."""
        return self._body.angle_rad.copy()

    @property
    def servos(self) -> Float:
        """Load, temperature, error bits and the rest: [6, len(Servo)]."""
        return self._body.servos()

    def leader_units(self, angle_rad: Float) -> Vector:
        """What an equally calibrated leader at these angles [6] reads, joint units."""
        return self._arm.units(angle_rad)

    def demonstration(self, speed: float = 1.0) -> Plan:
        """The expert's motion of the leader from the start of this trial, through the task."""
        stiffness = self._body.motors.command[:, SharedCommand.P_GAIN] * STIFFNESS_NM_RAD_PER_P
        route = Route(self._expert, self._start_rad, stiffness, speed)
        self.task.demonstrate(route, self.layout)
        return route.plan()

    def close(self) -> None:
        """Give the graphics context back."""
        if self._painter is not None:
            self._painter.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_reach(self, placement: CubePlacement) -> None:
        if placement.parked:
            return
        off_m = self._expert.off_m(placement.x_m, placement.y_m)
        if not off_m <= REACH_M:
            raise OutOfReach(
                f"the gripper stays {off_m * 1000:.0f} mm off a cube at "
                f"({placement.x_m:.3f}, {placement.y_m:.3f}) m: place it some 0.12 to 0.3 m from "
                "the base"
            )

    def _send(self, goal: Vector) -> None:
        self._body.obey(self._arm.command(goal))
        lower, upper = self.calibration.lower, self.calibration.upper
        self._sent = np.clip(goal, lower, upper).astype(np.float32)

    def _run_to(self, time_s: float) -> None:
        # A step that ends with the tick belongs to it, whatever 1/30 rounds to.
        due = int(time_s / TIMESTEP_S + 1e-6)
        while self._steps < due:
            self._body.step()
            self._steps += 1
