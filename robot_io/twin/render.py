"""The renderer process: cameras drawn from the physics' pose, as MJPEG over HTTP on loopback.

    python -m robot_io.twin.render PARENT SHARED_FD LINK_FD TASK ROBOT_SEED NAME:WxH@FPS...

ROBOT_SEED is - for the plain scene.

A camera is drawn only while somebody watches it.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from robot_io.twin.children import become_child, receive, reply
from robot_io.twin.painter import Painter
from robot_io.twin.scene import Scene, SceneCamera, build_scene, parse_camera
from robot_io.twin.shared import SharedState
from robot_io.twin.stream import Pictures, serve
from robot_io.twin.tasks import task_named
from robot_io.twin.variation import scene_of

_JPEG_QUALITY = 92
_IDLE_S = 0.05


def encode_jpeg(picture: NDArray[np.uint8]) -> bytes:
    """JPEG of uint8 [H, W, 3] RGB."""
    _, data = cv2.imencode(".jpg", picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return data.tobytes()


def paint(
    cameras: Sequence[SceneCamera],
    scene: Scene,
    pictures: dict[str, Pictures],
    shared: SharedState,
    running: Callable[[], bool],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Draw each watched camera at its own rate, by absolute deadlines, until told to stop."""
    painter = Painter(cameras, scene)
    due_s = {camera.name: clock() for camera in cameras}
    while running():
        watched = [camera for camera in cameras if pictures[camera.name].wanted]
        if not watched:
            time.sleep(_IDLE_S)
            continue
        first = min(watched, key=lambda camera: due_s[camera.name])
        wait_s = due_s[first.name] - clock()
        if wait_s > 0:
            time.sleep(wait_s)
        painter.set_pose(shared.pose.read())
        pictures[first.name].put(encode_jpeg(painter.draw(first)))
        period_s = 1.0 / first.fps
        # What is more than a period late is left out, not drawn in a burst.
        due_s[first.name] = max(due_s[first.name] + period_s, clock() - period_s)


def _listen(link: socket.socket, pictures: dict[str, Pictures], ended: threading.Event) -> None:
    link.setblocking(True)
    while True:
        try:
            message = receive(link, wait=True)
        except (EOFError, OSError):
            ended.set()
            return
        assert message is not None
        request, _ = message
        name = request["camera"]
        if name is not None and name not in pictures:
            reply(link, error=f"there is no camera {name!r}; there is {', '.join(pictures)}")
            continue
        for each in pictures.values() if name is None else [pictures[name]]:
            each.disturb(request["mode"])
        reply(link, ok=True)


def main(argv: list[str]) -> int:
    """Process entry, started by `robot_io.twin.launcher`."""
    parent, shared_fd, link_fd, task, robot_seed, *specs = argv
    running = become_child(int(parent))
    cv2.setNumThreads(1)
    shared = SharedState(int(shared_fd))
    link = socket.socket(fileno=int(link_fd))
    cameras = [parse_camera(spec) for spec in specs]
    variation = scene_of(None if robot_seed == "-" else int(robot_seed))
    scene = build_scene(tuple(cameras), task_named(task).objects, variation)
    pictures = {camera.name: Pictures() for camera in cameras}
    server = serve(pictures)
    ended = threading.Event()
    reply(link, ready=True, port=server.server_address[1])
    threading.Thread(target=_listen, args=(link, pictures, ended), daemon=True).start()
    paint(cameras, scene, pictures, shared, lambda: running() and not ended.is_set())
    for each in pictures.values():
        each.close()
    server.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
