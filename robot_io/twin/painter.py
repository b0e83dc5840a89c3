"""Draws the scene's cameras into arrays, without a display.

No shadows, no reflections, no multisampling: a picture of 128 by 96 then costs about a
millisecond without a GPU.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from robot_io.twin.scene import Scene, SceneCamera


class Painter:
    """Draws the scene's cameras. Used from the thread that made it.

    ``scene`` must have been built for ``cameras``: that sizes the offscreen buffer.
    """

    def __init__(self, cameras: Sequence[SceneCamera], scene: Scene) -> None:
        self._table = scene
        self._model: Any = scene.model
        self._data: Any = scene.new_data()
        width = max(camera.width for camera in cameras)
        height = max(camera.height for camera in cameras)
        gl = _gl_context(width, height)
        gl.make_current()
        context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_50)
        self._gl, self._context = gl, context
        self._free = weakref.finalize(self, _free, gl, context)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(self._model, maxgeom=100)
        for flag in (
            mujoco.mjtRndFlag.mjRND_SHADOW,
            mujoco.mjtRndFlag.mjRND_REFLECTION,
            mujoco.mjtRndFlag.mjRND_SKYBOX,
            mujoco.mjtRndFlag.mjRND_FOG,
            mujoco.mjtRndFlag.mjRND_HAZE,
        ):
            self._scene.flags[flag] = 0
        self._option = mujoco.MjvOption()
        self._views = {camera.name: self._view(camera.name) for camera in cameras}

    def _view(self, name: str) -> Any:
        view = mujoco.MjvCamera()
        view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        view.fixedcamid = mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_CAMERA, name)
        return view

    def set_pose(self, pose: NDArray[np.float64]) -> None:
        """Take over what `Scene.pose` gave, shape [N_POSE]."""
        self._table.set_pose(self._data, pose)
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_camlight(self._model, self._data)

    def draw(self, camera: SceneCamera) -> NDArray[np.uint8]:
        """The picture as uint8 [H, W, 3] RGB."""
        self._gl.make_current()
        mujoco.mjv_updateScene(
            self._model,
            self._data,
            self._option,
            None,
            self._views[camera.name],
            mujoco.mjtCatBit.mjCAT_ALL,
            self._scene,
        )
        viewport = mujoco.MjrRect(0, 0, camera.width, camera.height)
        mujoco.mjr_render(viewport, self._scene, self._context)
        picture = np.empty((camera.height, camera.width, 3), np.uint8)
        mujoco.mjr_readPixels(picture, None, viewport, self._context)
        return picture[::-1]

    def close(self) -> None:
        """Give the graphics context back. Can be called twice."""
        self._free()


def _gl_context(width: int, height: int) -> Any:
    # No helper threads of the software rasteriser: they only steal time from others.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    if "MUJOCO_GL" in os.environ:
        return mujoco.GLContext(width, height)
    # MuJoCo's own default wants a display.
    from mujoco.egl import GLContext

    return GLContext(width, height)


def _free(gl: Any, context: Any) -> None:
    # Names of GL objects are small numbers: freed under another context, that one loses its own.
    gl.make_current()
    context.free()
    gl.free()
