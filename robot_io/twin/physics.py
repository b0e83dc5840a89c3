"""The physics process: the follower and the objects in MuJoCo, the leader by kinematics alone.

    python -m robot_io.twin.physics PARENT SHARED_FD LINK_FD DIR SEED TASK

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

import numpy as np

from robot_io.twin.bodies import ArmMotors, FollowerBody, LeaderBody
from robot_io.twin.children import act_as_hardware, become_child, receive, reply
from robot_io.twin.hand import Plan
from robot_io.twin.layout import CubePlacement
from robot_io.twin.memory import load_assembly
from robot_io.twin.scene import TIMESTEP_S, build_scene
from robot_io.twin.shared import ARMS, N_JOINTS, Float, SharedState, World
from robot_io.twin.tasks import task_named
from robot_io.twin.tasks.task import TwinTask

CATCH_UP_S = 0.1
_PRIORITY = 25  # above the agents' control loops, which wait for the servos


class PhysicsProcess:
    """Both arms, the clock, and the link to the main process."""

    def __init__(
        self,
        shared: SharedState,
        link: socket.socket,
        centre_tick: dict[str, tuple[int, ...]],
        task: TwinTask,
    ) -> None:
        self._task = task
        self._shared = shared
        self._link = link
        motors = {arm: ArmMotors(centre_tick[arm]) for arm in ARMS}
        self._hands = {arm: motors[arm].hand for arm in ARMS}
        self._follower = FollowerBody(motors["follower"], build_scene(objects=task.objects))
        self.ranges_rad = self._follower.ranges_rad
        self._leader = LeaderBody(motors["leader"], self.ranges_rad)
        self._bodies: dict[str, FollowerBody | LeaderBody] = {
            "follower": self._follower,
            "leader": self._leader,
        }
        self._seen = {arm: shared.commands[arm].sequence for arm in ARMS}
        self._world: Float = np.zeros(len(World))
        self._placed = 0
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
        for arm, body in self._bodies.items():
            block = shared.commands[arm]
            if block.sequence != self._seen[arm]:
                self._seen[arm] = block.sequence
                body.obey(block.read())
            body.step()
            shared.servos[arm].publish(body.servos())
        world[World.SIM_TIME_S] += TIMESTEP_S
        world[World.CUBE_HIGHEST_M] = follower.highest_m[0]
        world[World.SUCCEEDED] = self._task.succeeded(follower.state())
        world[World.HAND_FOLLOWER] = self._hands["follower"].finished
        world[World.HAND_LEADER] = self._hands["leader"].finished
        world[World.PLACED] = self._placed
        # Whoever waits for a placement in the world block then finds it in the others.
        shared.table.publish(follower.table())
        shared.pose.publish(follower.scene.pose(follower.data))
        shared.world.publish(world)

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
                placement = CubePlacement(request["x_m"], request["y_m"], request["yaw_rad"])
                self._follower.place(request["object"], placement)
                self._placed += 1
                reply(self._link, number=self._placed)
                return True
            case "hand":
                angles = np.frombuffer(payload, np.float64).reshape(-1, N_JOINTS)
                self._hands[request["arm"]].take(request["number"], Plan(angles))
            case "let_go":
                self._hands[request["arm"]].let_go()
            case unknown:
                reply(self._link, error=f"physics knows no {unknown!r}")
                return True
        reply(self._link, ok=True)
        return True


def main(argv: list[str]) -> int:
    """Process entry, started by `robot_io.twin.launcher`."""
    parent, shared_fd, link_fd, folder, seed, task = argv
    running = become_child(int(parent))
    shared = SharedState(int(shared_fd))
    link = socket.socket(fileno=int(link_fd))
    assembly = load_assembly(Path(folder), int(seed))
    process = PhysicsProcess(shared, link, dict(assembly.centre_tick), task_named(task))
    reply(link, ready=True, ranges_rad=process.ranges_rad.tolist())
    act_as_hardware(_PRIORITY)
    process.run(running, time.monotonic)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
