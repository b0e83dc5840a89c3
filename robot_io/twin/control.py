"""The control socket: one JSON request a line, one JSON reply a line.

| op | fields | reply |
|---|---|---|
| ``truth`` | | t_s, cube, objects, succeeded, joints_rad, torque, counters |
| ``place`` | x_m, y_m, yaw_rad (default: turned to the base), object (default cube) | |
| ``draw`` | seed, sector_deg of 2 (default: the whole table) | objects: where each now is |
| ``hand`` | arm, joints_rad of 6 or null to let go | when the pose is reached |
| ``rest`` | arm (default leader) | when the arm rests |
| ``sweep`` | arm | when done, the hand has let go |
| ``demonstrate`` | skill (the task's), speed | seconds, succeeded, lifted, height_m |
| ``abort`` | | every hand stops where it is and lets go |
| ``fault`` | arm, kind, servo, count, duration_s, delay_s; or camera, kind | |
| ``clear_faults`` | arm, or nothing for all | |

A refusal is ``{"ok": false, "error": one line}``. Requests of one connection are served in turn;
connections do not wait for each other.
"""

from __future__ import annotations

import json
import logging
import math
import socketserver
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from robot_io.calibration import JOINTS
from robot_io.twin.children import TwinProcess
from robot_io.twin.errors import BadRequest, TwinError
from robot_io.twin.expert import Expert
from robot_io.twin.hand import Plan, move_plan, sweep_plan
from robot_io.twin.layout import WHOLE_TABLE, CubePlacement, Layout, TableSector
from robot_io.twin.motor import STIFFNESS_NM_RAD_PER_P
from robot_io.twin.objects import CUBE_SIZE_M
from robot_io.twin.route import Route
from robot_io.twin.scene import REST_JOINTS_RAD
from robot_io.twin.shared import (
    ARMS,
    N_JOINTS,
    Float,
    Servo,
    SharedCommand,
    SharedState,
    World,
)
from robot_io.twin.stream import CAMERA_MODES
from robot_io.twin.tasks.task import TwinTask

_LOG = logging.getLogger(__name__)
LIFTED_M = 0.05
# Beyond this the follower cannot reach, and the camera does not see.
TABLE_M = 0.5
_POLL_S = 0.01
_HAND_WORLD = {"follower": World.HAND_FOLLOWER, "leader": World.HAND_LEADER}


class Hands:
    """The person beside the twin. Blocking calls, each from a connection's own thread."""

    def __init__(
        self,
        shared: SharedState,
        physics: TwinProcess,
        ranges_rad: Float,
        expert: Expert,
        task: TwinTask,
    ) -> None:
        self._task = task
        self._shared = shared
        self._physics = physics
        self._ranges = ranges_rad
        self._expert = expert
        self._planning = threading.Lock()
        self._busy = {arm: threading.Lock() for arm in ARMS}
        self._stop = threading.Event()
        self._number = 0

    def angles(self, arm: str) -> Float:
        """Joint angles now, rad, shape [6]."""
        angles: Float = self._shared.servos[arm].read()[:, Servo.ANGLE_RAD]
        return angles

    def torque(self, arm: str) -> list[bool]:
        """Which servos are energised."""
        return [
            bool(on) for on in self._shared.commands[arm].read()[:, SharedCommand.TORQUE_ENABLE]
        ]

    def pose(self, arm: str, joints_rad: Float) -> float:
        """Bring the arm to a pose and keep it there; seconds of the motion."""
        goal = np.clip(joints_rad, self._ranges[:, 0], self._ranges[:, 1])
        return self._play(arm, lambda start: move_plan(start, goal))

    def sweep(self, arm: str) -> float:
        """Through all ranges and to the middle, then let go; seconds of the motion."""
        seconds = self._play(arm, lambda start: sweep_plan(start, self._ranges))
        self.let_go(arm)
        return seconds

    def let_go(self, arm: str) -> None:
        """Take the hand off the arm."""
        self._physics.ask(op="let_go", arm=arm)

    def layout(self) -> Layout:
        """Where all objects are now."""
        rows = self._shared.table.read()[: len(self._task.objects.names), [0, 1, 3]]
        return tuple(CubePlacement(*row) for row in rows.tolist())

    def demonstrate(self, speed: float) -> float:
        """Do the task with the leader; seconds of the motion."""
        layout = self.layout()
        gains = self._shared.commands["follower"].read()[:, SharedCommand.P_GAIN]

        def plan(start: Float) -> Plan:
            with self._planning:
                route = Route(self._expert, start, gains * STIFFNESS_NM_RAD_PER_P, speed)
                self._task.demonstrate(route, layout)
                return route.plan()

        return self._play("leader", plan)

    def abort(self) -> None:
        """Stop every motion; the calls that made them are refused."""
        self._stop.set()
        for arm in ARMS:
            self.let_go(arm)

    def _play(self, arm: str, make_plan: Any) -> float:
        if not self._busy[arm].acquire(blocking=False):
            raise BadRequest(f"a hand is moving the {arm} already; wait for it or abort")
        try:
            if any(self.torque(arm)):
                held = ", ".join(
                    name for name, on in zip(JOINTS, self.torque(arm), strict=True) if on
                )
                raise BadRequest(
                    f"no hand moves the {arm} while torque is on ({held}): switch it off first"
                )
            self._stop.clear()
            plan = make_plan(self.angles(arm))
            self._number += 1
            number = self._number
            began_s = float(self._shared.world.read()[World.SIM_TIME_S])
            self._physics.ask(plan.angles_rad.tobytes(), op="hand", arm=arm, number=number)
            ended = False
            while not ended:
                # Asked in this order: to let go, as abort does, also ends the motion.
                ended = self._shared.world.read()[_HAND_WORLD[arm]] >= number
                if self._stop.is_set():
                    raise BadRequest("aborted")
                if not ended:
                    time.sleep(_POLL_S)
            return float(self._shared.world.read()[World.SIM_TIME_S]) - began_s
        finally:
            self._busy[arm].release()


class Control:
    """Carries out requests. Stateless but for the hands."""

    def __init__(
        self,
        shared: SharedState,
        physics: TwinProcess,
        bus: TwinProcess,
        render: TwinProcess,
        hands: Hands,
        task: TwinTask,
    ) -> None:
        self._task = task
        self._shared = shared
        self._physics = physics
        self._bus = bus
        self._render = render
        self._hands = hands

    def handle(self, line: bytes) -> dict[str, Any]:
        """The reply to one request line."""
        try:
            request = json.loads(line)
        except ValueError as error:
            return {"ok": False, "error": f"a request is one JSON object a line ({error})"}
        if not isinstance(request, dict):
            return {"ok": False, "error": "a request is one JSON object a line"}
        try:
            return {"ok": True, **self._carry_out(request)}
        except TwinError as error:
            return {"ok": False, "error": str(error)}

    def _carry_out(self, request: dict[str, Any]) -> dict[str, Any]:
        hands = self._hands
        match request.get("op"):
            case "truth":
                return self._truth()
            case "place":
                return self._place(request)
            case "draw":
                return self._draw(request)
            case "hand":
                arm = _arm(request, None)
                if request.get("joints_rad") is None:
                    hands.let_go(arm)
                    return {}
                return {"seconds": hands.pose(arm, _joints(request["joints_rad"]))}
            case "rest":
                return {"seconds": hands.pose(_arm(request, "leader"), np.array(REST_JOINTS_RAD))}
            case "sweep":
                return {"seconds": hands.sweep(_arm(request, None))}
            case "demonstrate":
                return self._demonstrate(request)
            case "abort":
                hands.abort()
                return {}
            case "fault":
                return self._fault(request)
            case "clear_faults":
                return self._clear(request)
            case unknown:
                raise BadRequest(
                    f"unknown op {unknown!r}; known: truth, place, draw, hand, rest, sweep, "
                    "demonstrate, abort, fault, clear_faults"
                )

    def _truth(self) -> dict[str, Any]:
        world, objects = self._shared.world.read(), self._objects()
        cube = objects[self._task.objects.names[0]]
        return {
            "t_s": float(world[World.SIM_TIME_S]),
            "cube": {
                **cube,
                "height_m": cube["z_m"] - CUBE_SIZE_M / 2,
                "highest_m": float(world[World.CUBE_HIGHEST_M]) - CUBE_SIZE_M / 2,
            },
            "objects": objects,
            "succeeded": bool(world[World.SUCCEEDED]),
            "joints_rad": {arm: self._hands.angles(arm).tolist() for arm in ARMS},
            "torque": {arm: self._hands.torque(arm) for arm in ARMS},
            "physics": {
                "late_steps": int(world[World.LATE_STEPS]),
                "lost_s": float(world[World.LOST_S]),
                "worst_lag_s": float(world[World.WORST_LAG_S]),
            },
        }

    def _objects(self) -> dict[str, dict[str, float]]:
        columns = ("x_m", "y_m", "z_m", "yaw_rad")
        rows = self._shared.table.read().tolist()
        return {
            name: dict(zip(columns, row, strict=True))
            for name, row in zip(self._task.objects.names, rows, strict=False)
        }

    def _place(self, request: dict[str, Any]) -> dict[str, Any]:
        names = self._task.objects.names
        name = request.get("object", names[0])
        if name not in names:
            raise BadRequest(f"there is no {name!r} on the table, only {', '.join(names)}")
        x_m, y_m = (_number(request, key, -TABLE_M, TABLE_M) for key in ("x_m", "y_m"))
        if request.get("yaw_rad") is None:
            yaw_rad = math.atan2(y_m, x_m)
        else:
            yaw_rad = _number(request, "yaw_rad", -7.0, 7.0)
        self._lay_out({names.index(name): CubePlacement(x_m, y_m, yaw_rad)})
        return {}

    def _draw(self, request: dict[str, Any]) -> dict[str, Any]:
        seed = int(_number(request, "seed", 0, 2**53))
        sector = WHOLE_TABLE
        if request.get("sector_deg") is not None:
            sector = _sector(request["sector_deg"])
        layout = self._task.draw(np.random.default_rng(seed), sector)
        self._lay_out(dict(enumerate(layout)))
        return {"objects": self._objects()}

    def _lay_out(self, placements: dict[int, CubePlacement]) -> None:
        placed = 0
        for number, at in placements.items():
            placed = self._physics.ask(
                op="place", object=number, x_m=at.x_m, y_m=at.y_m, yaw_rad=at.yaw_rad
            )["number"]
        # What is asked next must see the objects where they now lie.
        while self._shared.world.read()[World.PLACED] < placed:
            time.sleep(_POLL_S)

    def _demonstrate(self, request: dict[str, Any]) -> dict[str, Any]:
        skill = request.get("skill", self._task.skill)
        if skill != self._task.skill:
            raise BadRequest(
                f"here the hand knows no skill {skill!r}, only {self._task.skill}: "
                "the twin was started for that task"
            )
        speed = 1.0 if request.get("speed") is None else _number(request, "speed", 0.1, 3.0)
        seconds = self._hands.demonstrate(speed)
        height_m = self._objects()[self._task.objects.names[0]]["z_m"] - CUBE_SIZE_M / 2
        return {
            "seconds": seconds,
            "succeeded": bool(self._shared.world.read()[World.SUCCEEDED]),
            "lifted": height_m > LIFTED_M,
            "height_m": height_m,
        }

    def _fault(self, request: dict[str, Any]) -> dict[str, Any]:
        if request.get("camera") is not None:
            mode = request.get("kind")
            if mode not in CAMERA_MODES:
                raise BadRequest(
                    f"a camera fault is one of {', '.join(CAMERA_MODES)}, not {mode!r}"
                )
            self._render.ask(camera=_known_name(request, "camera"), mode=mode)
            return {}
        arm = _arm(request, None)
        keys = ("kind", "servo", "count", "duration_s", "delay_s")
        fields = {key: request[key] for key in keys if key in request}
        if "servo_id" in request:
            fields["servo"] = request["servo_id"]
        self._bus.ask(op="fault", arm=arm, **fields)
        return {}

    def _clear(self, request: dict[str, Any]) -> dict[str, Any]:
        arm = None if request.get("arm") is None else _arm(request, None)
        self._bus.ask(op="clear_faults", arm=arm)
        if arm is None:
            self._render.ask(camera=None, mode="ok")
        return {}


def _arm(request: dict[str, Any], default: str | None) -> str:
    arm = request.get("arm", default)
    if arm not in ARMS:
        raise BadRequest(f"arm must be one of {', '.join(ARMS)}, not {arm!r}")
    return str(arm)


def _known_name(request: dict[str, Any], key: str) -> str:
    value = request[key]
    if not isinstance(value, str):
        raise BadRequest(f"{key} must be a name, not {value!r}")
    return value


def _sector(value: object) -> TableSector:
    if not (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(edge, int | float) and not isinstance(edge, bool) for edge in value)
        and -90 <= value[0] < value[1] <= 90
    ):
        raise BadRequest(f"sector_deg must be two growing azimuths within -90..90, not {value!r}")
    return TableSector("asked", value[0], value[1])


def _number(request: dict[str, Any], key: str, low: float, high: float) -> float:
    value = request.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BadRequest(f"{key} must be a number from {low} to {high}, not {value!r}")
    return float(value)


def _joints(value: object) -> Float:
    if (
        not isinstance(value, list)
        or len(value) != N_JOINTS
        or not all(isinstance(angle, int | float) and math.isfinite(angle) for angle in value)
    ):
        raise BadRequest(f"joints_rad must be {N_JOINTS} angles in radians, or null to let go")
    return np.array(value, float)


class ControlServer(socketserver.ThreadingUnixStreamServer):
    """The socket, and a thread for each connection."""

    daemon_threads = True
    # A caller that is still blocked must not keep the twin from ending.
    block_on_close = False

    def __init__(self, path: Path, control: Control) -> None:
        self.control = control
        path.unlink(missing_ok=True)
        super().__init__(str(path), _Connection)
        path.chmod(0o600)
        threading.Thread(target=self.serve_forever, name="control", daemon=True).start()


class _Connection(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, ControlServer)
        try:
            for line in self.rfile:
                answer = self.server.control.handle(line)
                self.wfile.write(json.dumps(answer).encode() + b"\n")
        except ConnectionError:
            _LOG.debug("a control connection ended in the middle")
