"""Starts the twin's processes, announces it in twin.json, and ends everything in order."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from host.children import end_all, spawn
from host.files import write_durable
from robot_io.calibration import JOINTS
from robot_io.twin.children import TwinProcess
from robot_io.twin.control import Control, ControlServer, Hands
from robot_io.twin.errors import TwinBusy, TwinError, TwinProcessDied
from robot_io.twin.expert import Expert
from robot_io.twin.memory import load_assembly, load_eeprom
from robot_io.twin.objects import CUBE_SIZE_M
from robot_io.twin.scene import (
    CUBE_HUE_DEG,
    REST_JOINTS_RAD,
    SceneCamera,
    build_scene,
    check_names,
    table_homography,
)
from robot_io.twin.shared import ARMS, Float, SharedState
from robot_io.twin.tasks.lift import LIFT
from robot_io.twin.tasks.task import TwinTask
from robot_io.twin.variation import scene_of

_LOG = logging.getLogger(__name__)
_START_S = 60.0
_END_S = 5.0
_WATCH_S = 0.2
# sun_path of a Unix socket, less the closing zero.
_SOCKET_PATH_BYTES = 107


@dataclass(frozen=True, slots=True)
class TwinConfig:
    """What ``armada twin run`` was asked for. ``usb_latency_s`` adds to every answer.

    ``robot_seed``: of this robot's own light, table, cubes and camera; None is the plain scene.
    """

    folder: Path
    seed: int
    cameras: tuple[SceneCamera, ...]
    bus_timing: bool = False
    usb_latency_s: float = 0.0
    task: TwinTask = LIFT
    robot_seed: int | None = None


class LaunchedProcess:
    """One child process and the link to it."""

    def __init__(self, module: str, shared: SharedState, arguments: Sequence[str]) -> None:
        self.name = module
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            descriptors = (shared.descriptor, theirs.fileno())
            self.child = spawn(
                [
                    sys.executable,
                    "-m",
                    f"robot_io.twin.{module}",
                    str(os.getpid()),
                    *(str(descriptor) for descriptor in descriptors),
                    *arguments,
                ],
                pass_fds=descriptors,
                environment=_child_environment(),
            )
        self._socket = ours
        self.link = TwinProcess(module, ours)

    def wait_ready(self) -> dict[str, Any]:
        """Its first message.

        Raises:
            TwinProcessDied: it ended, or said nothing for a minute.
        """
        self._socket.settimeout(_START_S)
        try:
            data = self._socket.recv(1 << 16)
        except OSError as error:
            raise TwinProcessDied(f"the twin's {self.name} process: {error}") from error
        if not data:
            raise TwinProcessDied(f"the twin's {self.name} process did not start; see above")
        first: dict[str, Any] = json.loads(data)
        return first


class Twin:
    """A running twin. ``start``, then ``watch`` until it should end, then ``stop``."""

    def __init__(self, config: TwinConfig) -> None:
        self._config = config
        self._processes: list[LaunchedProcess] = []
        self._server: ControlServer | None = None
        self._lock: IO[str] | None = None

    def start(self) -> None:
        """Start all and write twin.json.

        Raises:
            TwinError: the reason in one line; nothing is left running after ``stop``.
        """
        config = self._config
        folder = config.folder
        folder.mkdir(parents=True, exist_ok=True)
        control_path = folder / "control.sock"
        if len(os.fsencode(control_path)) > _SOCKET_PATH_BYTES:
            raise TwinError(f"{control_path} is too long for a socket's name: use a shorter --dir")
        self._lock = _lock(folder)
        check_names(config.cameras)
        load_assembly(folder, config.seed)
        for arm in ARMS:
            load_eeprom(folder, arm)
        shared = SharedState.create()
        where = [str(folder), str(config.seed)]
        task, robot_seed = config.task, config.robot_seed
        physics = self._spawn("physics", shared, [*where, task.name])
        render = self._spawn(
            "render",
            shared,
            [
                task.name,
                "-" if robot_seed is None else str(robot_seed),
                *(f"{c.name}:{c.width}x{c.height}@{c.fps:g}" for c in config.cameras),
            ],
        )
        ready = physics.wait_ready()
        timing = [str(int(config.bus_timing)), str(config.usb_latency_s)]
        bus = self._spawn("wire", shared, [*where, *timing])
        bus.wait_ready()
        ranges: Float = np.array(ready["ranges_rad"])
        hands = Hands(shared, physics.link, ranges, Expert(build_scene(objects=task.objects)), task)
        http_port = render.wait_ready()["port"]
        self._server = ControlServer(
            control_path, Control(shared, physics.link, bus.link, render.link, hands, task)
        )
        announced = json.dumps(self._announce(http_port, ranges), indent=1)
        write_durable(folder / "twin.json", announced.encode())

    def watch(self, ended: threading.Event) -> None:
        """Until ``ended`` is set.

        Raises:
            TwinProcessDied: one of the processes ended by itself.
        """
        while not ended.wait(_WATCH_S):
            for process in self._processes:
                if process.child.poll() is not None:
                    raise TwinProcessDied(f"the twin's {process.name} process ended by itself")

    def stop(self) -> None:
        """End everything and take away links, socket and twin.json. Can be called twice."""
        folder = self._config.folder
        if self._lock is None:
            return
        (folder / "twin.json").unlink(missing_ok=True)
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        killed = end_all([process.child for process in self._processes], _END_S)
        for process in self._processes:
            if process.child in killed:
                _LOG.warning("the twin's %s process does not end: killed", process.name)
            process.link.close()
        for name in (*ARMS, "control.sock"):
            (folder / name).unlink(missing_ok=True)
        self._lock.close()
        self._lock = None

    def _spawn(self, module: str, shared: SharedState, arguments: Sequence[str]) -> LaunchedProcess:
        process = LaunchedProcess(module, shared, arguments)
        self._processes.append(process)
        return process

    def _announce(self, http_port: int, ranges_rad: Float) -> dict[str, Any]:
        folder = self._config.folder
        task, variation = self._config.task, scene_of(self._config.robot_seed)
        cameras: dict[str, Any] = {}
        for camera in self._config.cameras:
            cameras[camera.name] = {
                "url": f"http://127.0.0.1:{http_port}/{camera.name}.mjpg",
                "width": camera.width,
                "height": camera.height,
                "fps": camera.fps,
            }
            if camera.name == "overhead":
                cameras[camera.name]["table_homography"] = table_homography(
                    camera.width, camera.height, variation
                ).tolist()
        return {
            "pid": os.getpid(),
            "follower_port": str(folder / "follower"),
            "leader_port": str(folder / "leader"),
            "control": str(folder / "control.sock"),
            "cameras": cameras,
            "joints": list(JOINTS),
            "rest_joints_rad": list(REST_JOINTS_RAD),
            "joint_range_rad": ranges_rad.tolist(),
            "objects": {"cube": {"size_m": CUBE_SIZE_M, "hue_deg": list(CUBE_HUE_DEG)}},
            "task": {
                "name": task.name,
                "skill": task.skill,
                "words": list(task.words),
                "objects": list(task.objects.names),
                "trial_s": task.trial_s,
            },
            "sector_deg": [variation.sector.azimuth_min_deg, variation.sector.azimuth_max_deg],
        }


def _lock(folder: Path) -> IO[str]:
    file = (folder / "twin.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise TwinBusy(f"a twin runs in {folder} already: end it or use another --dir") from None
    return file


def _child_environment() -> dict[str, str]:
    # One thread each: helpers of BLAS and of the software rasteriser only steal time from others.
    return {
        "MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl"),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "LP_NUM_THREADS": "0",
    }


def run(config: TwinConfig) -> None:
    """Run a twin until SIGTERM or SIGINT.

    Raises:
        TwinError: it could not start, or one of its processes died.
    """
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    twin = Twin(config)
    began_s = time.monotonic()
    try:
        twin.start()
        _LOG.info("twin ready in %s after %.1f s", config.folder, time.monotonic() - began_s)
        twin.watch(ended)
    finally:
        twin.stop()
