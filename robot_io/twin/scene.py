"""The MuJoCo scene: an SO-101 on a table with one red cube, cheap to step and to draw.

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
from robot_io.twin.shared import Float

TIMESTEP_S = 0.005
CUBE_SIZE_M = 0.025
CUBE_MASS_KG = 0.02
CUBE_RGB = (0.9, 0.0, 0.0)
CUBE_HUE_DEG = (340.0, 20.0)
CUBE_START_M = (0.19, 0.0)

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
_TABLE = (0.62, 0.63, 0.62, 1.0)
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


@dataclass(frozen=True, slots=True)
class SceneCamera:
    """One camera of the scene and the size of its picture."""

    name: str
    width: int
    height: int
    fps: float


@dataclass(frozen=True, slots=True)
class Scene:
    """The compiled model and the addresses that the twin needs."""

    model: Any
    cube_qpos: int  # first of its 7 entries in qpos
    cube_dof: int  # first of its 6 entries in qvel
    arm_geoms: tuple[int, ...]

    def new_data(self) -> Any:
        """Fresh ``MjData`` with the arm at rest and the cube on the table."""
        data = mujoco.MjData(self.model)
        data.qpos[: len(JOINTS)] = REST_JOINTS_RAD
        data.qpos[self.cube_qpos : self.cube_qpos + 7] = cube_pose(*CUBE_START_M, 0.0)
        mujoco.mj_forward(self.model, data)
        return data


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


def cube_pose(x_m: float, y_m: float, yaw_rad: float) -> tuple[float, ...]:
    """The seven ``qpos`` entries of the cube lying on the table."""
    half = yaw_rad / 2
    return (x_m, y_m, CUBE_SIZE_M / 2, math.cos(half), 0.0, 0.0, math.sin(half))


def overhead_fovy_deg() -> float:
    """Vertical field of view with which the overhead camera sees CAMERA_SPAN_X_M of the table."""
    return math.degrees(2 * math.atan(CAMERA_SPAN_X_M / 2 / CAMERA_HEIGHT_M))


def table_homography(width: int, height: int) -> Float:
    """Pixel (u, v, 1) to metres (x, y, 1) in the base frame at the height of the cube's centre.

    (u, v) are pixel indices from the upper left, whole numbers being the pixels' centres. The
    camera looks straight down, so the map is exact and affine: the picture's top is away from the
    base (+x), its left is the arm's left (+y).
    """
    depth = CAMERA_HEIGHT_M - CUBE_SIZE_M / 2
    per_pixel = 2 * depth * math.tan(math.radians(overhead_fovy_deg()) / 2) / height
    centre_x, centre_y = CAMERA_CENTRE_M
    return np.array(
        [
            [0.0, -per_pixel, centre_x + per_pixel * (height - 1) / 2],
            [-per_pixel, 0.0, centre_y + per_pixel * (width - 1) / 2],
            [0.0, 0.0, 1.0],
        ]
    )


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


def build_scene(cameras: tuple[SceneCamera, ...] = ()) -> Scene:
    """Compile arm, table, cube and cameras; ``cameras`` only sizes the offscreen buffer."""
    spec = mujoco.MjSpec.from_file(str(model_path()))
    spec.option.timestep = TIMESTEP_S
    _strip_meshes(spec)
    _dress_arm(spec)
    _furnish(spec)
    spec.visual.global_.offwidth = max([64, *(camera.width for camera in cameras)])
    spec.visual.global_.offheight = max([64, *(camera.height for camera in cameras)])
    spec.visual.quality.offsamples = 0
    spec.visual.quality.shadowsize = 0
    # Boxes need no finer faces, and the few round geoms are within them: the same picture to a
    # pixel in 100,000, in a third of the time.
    spec.visual.quality.numslices = 16
    spec.visual.quality.numstacks = 8
    spec.visual.quality.numquads = 1
    spec.visual.headlight.ambient = (0.5, 0.5, 0.5)
    spec.visual.headlight.diffuse = (0.0, 0.0, 0.0)
    spec.visual.headlight.specular = (0.0, 0.0, 0.0)
    model = spec.compile()
    arm_geoms = tuple(
        index for index in range(model.ngeom) if model.geom_contype[index] == _ARM_BITS[0]
    )
    cube = model.joint("cube")
    return Scene(model, int(cube.qposadr[0]), int(cube.dofadr[0]), arm_geoms)


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


def _furnish(spec: Any) -> None:
    world = spec.worldbody
    world.add_light(
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
        pos=(0.2, 0.0, 1.2),
        dir=(0.2, 0.1, -1.0),
        diffuse=(0.45, 0.45, 0.45),
        specular=(0.0, 0.0, 0.0),
        castshadow=False,
    )
    world.add_geom(
        name="table",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        size=(0.6, 0.6, 0.05),
        rgba=_TABLE,
        contype=_WORLD_BITS[0],
        conaffinity=_WORLD_BITS[1],
        friction=(0.9, 5e-3, 1e-4),
    )
    world.add_camera(
        name="overhead",
        pos=(*CAMERA_CENTRE_M, CAMERA_HEIGHT_M),
        xyaxes=(0.0, -1.0, 0.0, 1.0, 0.0, 0.0),
        fovy=overhead_fovy_deg(),
    )
    cube = world.add_body(name="cube", pos=(*CUBE_START_M, CUBE_SIZE_M / 2))
    cube.add_freejoint(name="cube")
    cube.add_geom(
        name="cube",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=(CUBE_SIZE_M / 2,) * 3,
        mass=CUBE_MASS_KG,
        rgba=(*CUBE_RGB, 1.0),
        contype=_WORLD_BITS[0],
        conaffinity=_WORLD_BITS[1],
        condim=4,
        friction=(1.0, 5e-3, 5e-4),
    )
