"""The MuJoCo scene: an SO-101 on a table with a task's objects, cheap to step and to draw.

The arm is the Menagerie SO-101 as so101-nexus ships it. Its meshes are left out: the primitive
collision geoms are both the contact geometry and the picture (a stock-mesh frame costs some
twenty times as much to draw without a GPU). The arm wears yellow, grey and black; red belongs to
the cube alone, so that a tracker can find it by hue.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from robot_io.calibration import JOINTS
from robot_io.twin.errors import BadCameraSpec, TwinError
from robot_io.twin.layout import CubePlacement
from robot_io.twin.objects import (
    CUBE_MASS_KG,
    CUBE_SIZE_M,
    MARK_SIZE_M,
    ONE_CUBE,
    SceneObjects,
    TableCube,
    TableMark,
)
from robot_io.twin.shared import N_POSE, Float
from robot_io.twin.variation import PLAIN, SceneVariation

TIMESTEP_S = 0.005
CUBE_HUE_DEG = (340.0, 20.0)

# Folded over its base, clear of the table and of where the cube lies; a held cube drops out.
REST_JOINTS_RAD = (0.0, -1.70, 1.40, 1.62, 0.0, 0.25)

# Middle of what the overhead camera sees, in the base frame, and how high it hangs. High and
# narrow, so that height changes the picture little.
CAMERA_CENTRE_M = (0.165, 0.0)
CAMERA_HEIGHT_M = 0.8
CAMERA_SPAN_X_M = 0.27

# Bits of contype and conaffinity: the arm touches the world, never itself.
_ARM_BITS = (1, 0)
_WORLD_BITS = (2, 3)

_YELLOW = (0.85, 0.70, 0.12, 1.0)
_GREY = (0.35, 0.37, 0.40, 1.0)
_BLACK = (0.10, 0.10, 0.11, 1.0)
_WOOD = (0.55, 0.42, 0.28, 1.0)
_COLOURS = {
    "base": _BLACK,
    "shoulder": _BLACK,
    "upper_arm": _YELLOW,
    "lower_arm": _YELLOW,
    "wrist": _BLACK,
    "gripper": _YELLOW,
    "camera_mount": _GREY,
    "moving_jaw_so101_v1": _GREY,
}

# Where a held cube's centre sits, in the gripper's frame: between the jaws, near their tips.
GRASP_SITE = "grasp"
_GRASP_POSITION_M = (0.0055, 0.0, -0.0935)


# Rubber pads of 20 mm by 20 mm on both fingertips, as many builds wear them: body, place and turn.
# The model's own tips are 7 mm wide and let go of a cube that they do not meet in its middle.
_PAD_SIZE_M = (0.001, 0.010, 0.010)
_PADS = (
    ("gripper", (-0.0082, 0.0, -0.0925), 0.0),
    ("moving_jaw_so101_v1", (-0.0112, -0.0690, 0.01875), -0.15),
)

# The paddle: a plate across the jaws that reaches below the fingertips, so that they pass over a
# cube. Half its sizes, and its middle in the gripper's frame.
PADDLE_THICKNESS_M = 0.006
PADDLE_DROP_M = 0.043  # its lower edge under the grasp point
_PADDLE_SIZE_M = (PADDLE_THICKNESS_M / 2, 0.026, 0.026)
_PADDLE_POSITION_M = (0.0055, 0.0, -0.0935 - PADDLE_DROP_M + _PADDLE_SIZE_M[2])

_MARK_THICKNESS_M = 0.001


@dataclass(frozen=True, slots=True)
class SceneCamera:
    """One camera of the scene and the size of its picture."""

    name: str
    width: int
    height: int
    fps: float


@dataclass(frozen=True, slots=True)
class CubeAddress:
    """Where a cube is in the model: first of its 7 entries in qpos, of its 6 in qvel, its geom."""

    qpos: int
    dof: int
    geom: int


@dataclass(frozen=True, slots=True)
class Scene:
    """The compiled model and the addresses that the twin needs."""

    model: Any
    objects: SceneObjects
    cubes: tuple[CubeAddress, ...]
    arm_geoms: tuple[int, ...]
    grasp_site: int

    def new_data(self) -> Any:
        """Fresh ``MjData`` with the arm at rest and every object where it lies at first."""
        data = mujoco.MjData(self.model)
        data.qpos[: len(JOINTS)] = REST_JOINTS_RAD
        for number, each in enumerate(self.objects.all):
            self.place(data, number, CubePlacement(*each.start_m))
        mujoco.mj_forward(self.model, data)
        return data

    def place(self, data: Any, number: int, placement: CubePlacement) -> None:
        """Put the object with this number in a layout on the table, a cube at rest."""
        if number < len(self.cubes):
            cube = self.cubes[number]
            data.qpos[cube.qpos : cube.qpos + 7] = _cube_pose(placement)
            data.qvel[cube.dof : cube.dof + 6] = 0.0
        else:
            mark = data.mocap_pos[number - len(self.cubes)]
            mark[:2] = placement.x_m, placement.y_m

    def pose(self, data: Any) -> Float:
        """All that a picture depends on, shape [N_POSE], zeros behind."""
        pose: Float = np.zeros(N_POSE)
        pose[: self.model.nq] = data.qpos
        marks = data.mocap_pos.reshape(-1)
        pose[self.model.nq : self.model.nq + len(marks)] = marks
        return pose

    def set_pose(self, data: Any, pose: Float) -> None:
        """Take over what `pose` gave."""
        data.qpos[:] = pose[: self.model.nq]
        count = data.mocap_pos.size
        data.mocap_pos[:] = pose[self.model.nq : self.model.nq + count].reshape(-1, 3)


def parse_camera(text: str) -> SceneCamera:
    """``NAME:WxH@FPS``, for instance ``overhead:128x96@30``.

    Raises:
        BadCameraSpec: it does not read so, or asks for what no camera gives.
    """
    try:
        name, rest = text.split(":")
        size, fps = rest.split("@")
        width, height = size.split("x")
        camera = SceneCamera(name, int(width), int(height), float(fps))
    except ValueError:
        raise BadCameraSpec(
            f"camera {text!r} does not read NAME:WxH@FPS, as in overhead:128x96@30"
        ) from None
    if not (8 <= camera.width <= 1920 and 8 <= camera.height <= 1080 and 0 < camera.fps <= 120):
        raise BadCameraSpec(
            f"camera {text!r}: width 8..1920, height 8..1080 and fps up to 120 are possible"
        )
    return camera


def check_names(cameras: Sequence[SceneCamera]) -> None:
    """Refuse cameras that the model has not, and a name given twice.

    Raises:
        BadCameraSpec: one line that names the camera and those that exist.
    """
    model = build_scene().model
    known = [model.camera(index).name for index in range(model.ncam)]
    for camera in cameras:
        if camera.name not in known:
            raise BadCameraSpec(
                f"the twin has no camera {camera.name!r}; it has {', '.join(known)}"
            )
    if len({camera.name for camera in cameras}) != len(cameras):
        raise BadCameraSpec("a camera name is given twice")


def joint_ranges_rad(model: Any) -> Float:
    """Mechanical range of each joint, shape [6, 2], rad."""
    ranges: Float = np.array([model.joint(name).range for name in JOINTS])
    return ranges


def overhead_fovy_deg() -> float:
    """Vertical field of view with which the overhead camera sees CAMERA_SPAN_X_M of the table."""
    return math.degrees(2 * math.atan(CAMERA_SPAN_X_M / 2 / CAMERA_HEIGHT_M))


def table_homography(width: int, height: int, variation: SceneVariation = PLAIN) -> Float:
    """Pixel (u, v, 1) to metres (x, y, 1), up to scale, at the height of the cube's centre.

    (u, v) are pixel indices from the upper left, whole numbers being the pixels' centres. The
    plain camera looks straight down, so that its map is affine: the picture's top is away from
    the base (+x), its left is the arm's left (+y).
    """
    focal = height / 2 / math.tan(math.radians(overhead_fovy_deg()) / 2)
    # A pixel's ray: right, up and back of the camera, then in the base frame.
    seen = np.array(
        [
            [1 / focal, 0.0, (0.5 - width / 2) / focal],
            [0.0, -1 / focal, (height / 2 - 0.5) / focal],
            [0.0, 0.0, -1.0],
        ]
    )
    ray = variation.camera_axes() @ seen
    eye = overhead_position_m(variation)
    down = CUBE_SIZE_M / 2 - eye[2]
    homography = np.array(
        [eye[0] * ray[2] + down * ray[0], eye[1] * ray[2] + down * ray[1], ray[2]]
    )
    scaled: Float = homography / homography[2, 2] + 0.0  # no -0.0
    return scaled


def overhead_position_m(variation: SceneVariation = PLAIN) -> tuple[float, float, float]:
    """Where the overhead camera hangs, in the base frame."""
    x_m, y_m, z_m = (
        at + shift
        for at, shift in zip(
            (*CAMERA_CENTRE_M, CAMERA_HEIGHT_M), variation.camera_shift_m, strict=True
        )
    )
    return x_m, y_m, z_m


def model_path() -> Path:
    """Menagerie's SO-101, where so101-nexus is installed.

    Raises:
        TwinError: it is not installed.
    """
    # Found, not imported: the package pulls in gymnasium, of which nothing is needed here.
    found = importlib.util.find_spec("so101_nexus")
    if found is None or found.origin is None:
        raise TwinError("so101-nexus is not installed; install armada[twin]")
    return Path(found.origin).parent / "assets" / "SO101_menagerie" / "so101.xml"


def build_scene(
    cameras: tuple[SceneCamera, ...] = (),
    objects: SceneObjects = ONE_CUBE,
    variation: SceneVariation = PLAIN,
) -> Scene:
    """Compile arm, table, objects and cameras; ``cameras`` only sizes the offscreen buffer."""
    spec = mujoco.MjSpec.from_file(str(model_path()))
    spec.option.timestep = TIMESTEP_S
    _strip_meshes(spec)
    _dress_arm(spec)
    if objects.paddle:
        _hand_paddle(spec)
    _furnish(spec, variation)
    for cube in objects.cubes:
        _add_cube(spec, cube, variation)
    for mark in objects.marks:
        _add_mark(spec, mark)
    spec.visual.global_.offwidth = max([64, *(camera.width for camera in cameras)])
    spec.visual.global_.offheight = max([64, *(camera.height for camera in cameras)])
    spec.visual.quality.offsamples = 0
    spec.visual.quality.shadowsize = 0
    # Boxes need no finer faces, and the few round geoms are within them: the same picture to a
    # pixel in 100,000, in a third of the time.
    spec.visual.quality.numslices = 16
    spec.visual.quality.numstacks = 8
    spec.visual.quality.numquads = 1
    spec.visual.headlight.ambient = variation.lit(0.5)
    spec.visual.headlight.diffuse = (0.0, 0.0, 0.0)
    spec.visual.headlight.specular = (0.0, 0.0, 0.0)
    model = spec.compile()
    arm_geoms = tuple(
        index for index in range(model.ngeom) if model.geom_contype[index] == _ARM_BITS[0]
    )
    return Scene(
        model,
        objects,
        tuple(_cube_address(model, cube.name) for cube in objects.cubes),
        arm_geoms,
        int(model.site(GRASP_SITE).id),
    )


def _cube_address(model: Any, name: str) -> CubeAddress:
    joint = model.joint(name)
    return CubeAddress(int(joint.qposadr[0]), int(joint.dofadr[0]), int(model.geom(name).id))


def _cube_pose(placement: CubePlacement) -> tuple[float, ...]:
    half = placement.yaw_rad / 2
    turn = (math.cos(half), 0.0, 0.0, math.sin(half))
    return (placement.x_m, placement.y_m, CUBE_SIZE_M / 2, *turn)


def _strip_meshes(spec: Any) -> None:
    for geom in [geom for geom in spec.geoms if geom.type == mujoco.mjtGeom.mjGEOM_MESH]:
        spec.delete(geom)
    for mesh in list(spec.meshes):
        spec.delete(mesh)
    for material in list(spec.materials):
        spec.delete(material)


def _dress_arm(spec: Any) -> None:
    for geom in spec.geoms:
        geom.contype, geom.conaffinity = _ARM_BITS
        geom.rgba = _COLOURS.get(geom.parent.name, _GREY)
        geom.group = 2
    base = spec.body("base")
    base.add_geom(
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=(0.045, 0.04, 0.02),
        pos=(0.0, 0.0, 0.02),
        rgba=_BLACK,
        contype=_ARM_BITS[0],
        conaffinity=_ARM_BITS[1],
        mass=0.0,
        group=2,
    )
    for body, position, turn in _PADS:
        spec.body(body).add_geom(
            type=mujoco.mjtGeom.mjGEOM_BOX,
            size=_PAD_SIZE_M,
            pos=position,
            quat=(math.cos(turn / 2), 0.0, 0.0, math.sin(turn / 2)),
            rgba=_BLACK,
            contype=_ARM_BITS[0],
            conaffinity=_ARM_BITS[1],
            condim=6,
            friction=(1.2, 5e-3, 5e-4),
            solref=(0.01, 1.0),
            priority=1,
            mass=0.0,
            group=2,
        )
    spec.body("gripper").add_site(name=GRASP_SITE, pos=_GRASP_POSITION_M, group=4)


def _hand_paddle(spec: Any) -> None:
    spec.body("gripper").add_geom(
        name="paddle",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=_PADDLE_SIZE_M,
        pos=_PADDLE_POSITION_M,
        rgba=_WOOD,
        contype=_ARM_BITS[0],
        conaffinity=_ARM_BITS[1],
        friction=(0.6, 5e-3, 1e-4),
        mass=0.0,
        group=2,
    )


def _furnish(spec: Any, variation: SceneVariation) -> None:
    world = spec.worldbody
    world.add_light(
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
        pos=(0.2, 0.0, 1.2),
        dir=variation.light_direction,
        diffuse=variation.lit(0.45),
        specular=(0.0, 0.0, 0.0),
        castshadow=False,
    )
    world.add_geom(
        name="table",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        size=(0.6, 0.6, 0.05),
        rgba=(*variation.table_rgb, 1.0),
        contype=_WORLD_BITS[0],
        conaffinity=_WORLD_BITS[1],
        friction=(0.9, 5e-3, 1e-4),
    )
    axes = variation.camera_axes()
    world.add_camera(
        name="overhead",
        pos=overhead_position_m(variation),
        xyaxes=(*axes[:, 0], *axes[:, 1]),
        fovy=overhead_fovy_deg(),
    )
    world.add_camera(  # for people who look on: no policy is trained on it
        name="bystander",
        pos=(0.5, -0.42, 0.36),
        xyaxes=(0.733, 0.680, -0.000, -0.277, 0.298, 0.914),
        fovy=34.0,
    )


def _add_cube(spec: Any, cube: TableCube, variation: SceneVariation) -> None:
    body = spec.worldbody.add_body(name=cube.name, pos=(*cube.start_m, CUBE_SIZE_M / 2))
    body.add_freejoint(name=cube.name)
    body.add_geom(
        name=cube.name,
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=(CUBE_SIZE_M / 2,) * 3,
        mass=CUBE_MASS_KG,
        rgba=(*variation.cube_rgb(cube.rgb), 1.0),
        contype=_WORLD_BITS[0],
        conaffinity=_WORLD_BITS[1],
        condim=4,
        friction=(1.0, 5e-3, 5e-4),
    )


def _add_mark(spec: Any, mark: TableMark) -> None:
    half = MARK_SIZE_M / 2
    body = spec.worldbody.add_body(
        name=mark.name, pos=(*mark.start_m, _MARK_THICKNESS_M / 2), mocap=True
    )
    body.add_geom(
        name=mark.name,
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=(half, half, _MARK_THICKNESS_M / 2),
        rgba=(*mark.rgb, 1.0),
        contype=0,
        conaffinity=0,
        mass=0.0,
    )
