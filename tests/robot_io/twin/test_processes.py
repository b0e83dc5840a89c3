"""The whole twin as its processes: ports, faults on the wire, persistence, start and end."""

from __future__ import annotations

import json
import math
import os
import select
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from robot_io.sts3215 import REGISTERS, ServoError
from robot_io.tracker import BlobTracker, TrackerConfig
from robot_io.twin.lockstep import LockstepTwin
from robot_io.twin.scene import SceneCamera
from robot_io.twin.tasks import TASKS

pytestmark = pytest.mark.system

IDS = (1, 2, 3, 4, 5, 6)


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory, twin_run: Any) -> Any:
    run = twin_run(tmp_path_factory.mktemp("t") / "twin", "--seed", "11")
    yield run
    status, said = run.end()
    assert (status, said) == (0, "")


@pytest.fixture
def follower(twin: Any) -> Any:
    twin.do("clear_faults")
    with twin.host("follower") as host:
        yield host
    twin.do("clear_faults")


def field(status: Any, name: str) -> int:
    register = REGISTERS[name]
    return register.decode(status.params[register.address - 56 :])


def test_both_arms_answer_and_an_uncalibrated_read_is_off(twin: Any) -> None:
    reads = []
    for arm in ("follower", "leader"):
        with twin.host(arm) as host:
            positions = host.positions()
        assert len(positions) == 6
        angles = twin.do("truth")["joints_rad"][arm]
        ideal = [2047 + angle * 4096 / math.tau for angle in angles]
        reads += [abs(p - i) for p, i in zip(positions, ideal, strict=True)]
    assert max(reads) > 1000, "horns are put on at random"


def test_a_ports_client_may_come_and_go(twin: Any) -> None:
    for _ in range(3):
        with twin.host("leader") as host:
            assert len(host.positions()) == 6


def test_a_client_at_another_baud_rate_hears_nothing(twin: Any) -> None:
    import serial

    with serial.Serial(twin.info["leader_port"], 115_200, timeout=0.2) as port:
        port.write(b"\xff\xff\x01\x02\x01\xfb")
        assert port.read(6) == b""
    with serial.Serial(twin.info["leader_port"], 1_000_000, timeout=2) as port:
        port.write(b"\xff\xff\x01\x02\x01\xfb")
        assert port.read(6) == b"\xff\xff\x01\x02\x00\xfc"


def test_a_bad_checksum_from_the_host_is_ignored_and_the_next_request_is_served(
    follower: Any,
) -> None:
    follower.send(b"\xff\xff\x01\x02\x01\x00")
    assert len(follower.positions()) == 6


def test_a_mute_servo_is_missing_from_a_sync_read_as_often_as_asked(
    twin: Any, follower: Any
) -> None:
    twin.do("fault", arm="follower", kind="mute", servo=3, count=2)
    for _ in range(2):
        heard = [status.servo_id for status in follower.telemetry(timeout_s=0.3)]
        assert heard == [1, 2, 4, 5, 6]
    assert len(follower.telemetry()) == 6


def test_a_late_reply_comes_behind_the_next_one(twin: Any, follower: Any) -> None:
    twin.do("fault", arm="follower", kind="late", servo=1, count=1, delay_s=0.3)
    follower.send(b"\xff\xff\x01\x04\x02\x05\x01\xf2")  # ID of servo 1
    assert follower.hear(1, timeout_s=0.1) == []
    assert follower.read(1, "Model_Number") == 777
    (late,) = follower.hear(1)
    assert late.params == b"\x01"


def test_servo_faults_show_in_error_byte_status_and_values(twin: Any, follower: Any) -> None:
    twin.do("fault", arm="follower", kind="overheat", servo=2)
    twin.do("fault", arm="follower", kind="undervoltage", servo=5, duration_s=0.5)
    statuses = follower.telemetry()
    assert [status.error for status in statuses] == [0, ServoError.OVERHEAT, 0, 0, 1, 0]
    assert field(statuses[1], "Present_Temperature") > 70
    assert field(statuses[1], "Status") == ServoError.OVERHEAT
    assert field(statuses[4], "Present_Voltage") < 40
    time.sleep(0.8)
    assert [status.error for status in follower.telemetry()][4] == 0


def test_unplug_hangs_up_and_replug_opens_the_same_name_again(twin: Any) -> None:
    port = twin.info["leader_port"]
    with twin.host("leader") as host:
        twin.do("fault", arm="leader", kind="unplug")
        assert not os.path.lexists(port)
        ready, _, _ = select.select([host.descriptor], [], [], 2)
        assert ready
        with pytest.raises(OSError, match="Input/output error"):
            os.write(host.descriptor, b"x")
    twin.do("fault", arm="leader", kind="replug")
    with twin.host("leader") as host:
        assert len(host.positions()) == 6


def test_no_hand_moves_an_arm_whose_torque_is_on(twin: Any) -> None:
    with twin.host("leader") as host:
        host.write(4, "Torque_Enable", 1)
        answer = twin.ask("rest")
        assert not answer["ok"]
        assert "wrist_flex" in answer["error"]
        host.write(4, "Torque_Enable", 0)
    twin.do("rest")


def test_a_servo_with_torque_goes_to_its_goal_at_its_goal_velocity(twin: Any) -> None:
    with twin.host("leader") as host:
        host.write(1, "Goal_Velocity", 400)
        start = host.read(1, "Present_Position")
        goal = start + 300 if start < 2048 else start - 300
        host.write(1, "Goal_Position", goal)
        began_s = time.monotonic()
        host.write(1, "Torque_Enable", 1)
        while abs(host.read(1, "Present_Position") - goal) > 2:
            assert time.monotonic() - began_s < 10
            time.sleep(0.02)
        assert time.monotonic() - began_s > 0.6
        host.write(1, "Torque_Enable", 0)
        host.write(1, "Goal_Velocity", 0)


def test_abort_ends_a_motion_and_its_caller_hears_so(twin: Any) -> None:
    import threading

    answers: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: answers.append(twin.ask("sweep", arm="leader")))
    thread.start()
    time.sleep(0.5)
    twin.do("abort")
    thread.join(5)
    assert answers == [{"ok": False, "error": "aborted"}]


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"op": "dance"}, "known: truth"),
        ({"op": "place", "x_m": 3, "y_m": 0}, "x_m"),
        ({"op": "place", "x_m": 0.2, "y_m": 0.0, "object": "mug"}, "mug"),
        ({"op": "hand", "arm": "third", "joints_rad": None}, "follower, leader"),
        ({"op": "hand", "arm": "leader", "joints_rad": [1, 2]}, "6 angles"),
        ({"op": "demonstrate", "skill": "juggle"}, "pick_lift"),
        ({"op": "draw"}, "seed"),
        ({"op": "draw", "seed": 1, "sector_deg": [10, -10]}, "sector_deg"),
        ({"op": "fault", "arm": "leader", "kind": "zap"}, "known: mute"),
        ({"op": "fault", "camera": "ceiling", "kind": "gone"}, "overhead"),
    ],
)
def test_a_senseless_request_gets_one_line_that_says_what_is_possible(
    twin: Any, fields: dict[str, Any], names: str
) -> None:
    answer = twin.ask(**fields)
    assert answer["ok"] is False
    assert names in answer["error"]
    assert "\n" not in answer["error"]


def picture(twin: Any) -> NDArray[np.uint8]:
    url = twin.info["cameras"]["overhead"]["url"].replace(".mjpg", ".jpg")
    with urllib.request.urlopen(url, timeout=5) as answer:
        data = np.frombuffer(answer.read(), np.uint8)
    image = cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    return np.asarray(image, np.uint8)


def test_the_camera_and_its_homography_find_the_cube_within_three_millimetres(twin: Any) -> None:
    twin.do("rest")
    low, high = twin.info["objects"]["cube"]["hue_deg"]
    homography = twin.info["cameras"]["overhead"]["table_homography"]
    tracker = BlobTracker(TrackerConfig(low, high, 0.5, 0.2, 4, homography))
    twin.do("hand", arm="follower", joints_rad=twin.info["rest_joints_rad"])
    errors = []
    for radius in (0.16, 0.19, 0.215):
        for azimuth in np.radians([-45, -20, 0, 25, 45]):
            x, y = radius * math.cos(azimuth), radius * math.sin(azimuth)
            twin.do("place", x_m=x, y_m=y)
            time.sleep(0.1)
            found = tracker.locate(picture(twin))
            assert found is not None
            errors.append(math.dist(found, (x, y)))
    twin.do("hand", arm="follower", joints_rad=None)
    assert max(errors) < 0.003


def test_without_the_cube_nothing_is_taken_for_it(twin: Any) -> None:
    low, high = twin.info["objects"]["cube"]["hue_deg"]
    homography = twin.info["cameras"]["overhead"]["table_homography"]
    tracker = BlobTracker(TrackerConfig(low, high, 0.5, 0.2, 4, homography))
    twin.do("place", x_m=-0.4, y_m=0.4)
    for pose in ([0.0] * 6, [0.5, 0.2, 0.3, 1.0, 0.5, 1.0], twin.info["rest_joints_rad"]):
        twin.do("hand", arm="follower", joints_rad=pose)
        assert tracker.locate(picture(twin)) is None
    twin.do("hand", arm="follower", joints_rad=None)
    twin.do("place", x_m=0.19, y_m=0.0)


def test_a_robots_own_scene_is_drawn_and_its_homography_announced(
    start_twin: Callable[..., Any],
) -> None:
    twin = start_twin("--robot-seed", "3", "--task", "place")
    low, high = twin.info["objects"]["cube"]["hue_deg"]
    homography = twin.info["cameras"]["overhead"]["table_homography"]
    tracker = BlobTracker(TrackerConfig(low, high, 0.5, 0.2, 4, homography))
    azimuths = []
    for seed in range(3):
        lies = twin.do("draw", seed=seed, sector_deg=twin.info["sector_deg"])["objects"]
        time.sleep(0.2)
        found = tracker.locate(picture(twin))
        cube = lies["cube"]["x_m"], lies["cube"]["y_m"]
        assert found is not None and math.dist(found, cube) < 0.003
        azimuths.append(math.degrees(math.atan2(cube[1], cube[0])))
        truth = twin.do("truth")
        assert truth["objects"]["mark"] == lies["mark"]
        assert truth["objects"]["cube"] == pytest.approx(lies["cube"], abs=1e-3)
        assert not truth["succeeded"]
    low_deg, high_deg = twin.info["sector_deg"]
    assert all(low_deg <= azimuth <= high_deg for azimuth in azimuths)
    table = np.median(picture(twin).reshape(-1, 3), axis=0)
    assert np.abs(table - np.median(plain_picture().reshape(-1, 3), axis=0)).max() > 8


def plain_picture() -> NDArray[np.uint8]:
    with LockstepTwin((SceneCamera("overhead", 128, 96, 30),), task=TASKS["place"]) as twin:
        return twin.observe().images["overhead"]


def test_a_camera_that_is_gone_refuses_and_comes_back(twin: Any) -> None:
    twin.do("fault", camera="overhead", kind="gone")
    with pytest.raises(urllib.error.HTTPError, match="503"):
        picture(twin)
    twin.do("clear_faults")
    assert picture(twin).shape == (96, 128, 3)


def test_eeprom_survives_a_restart_and_ram_does_not(
    start_twin: Callable[..., Any],
) -> None:
    first = start_twin("--seed", "2")
    with first.host("follower") as host:
        host.write(2, "Lock", 0)
        host.write(2, "Homing_Offset", -321)
        host.write(2, "Acceleration", 99)
        host.write(3, "Homing_Offset", 55)  # locked: acts, but is not kept
        assert host.read(3, "Homing_Offset") == 55
        before = host.positions()
    first.end()
    again = start_twin("--seed", "2")
    with again.host("follower") as host:
        assert host.read(2, "Homing_Offset") == -321
        assert host.read(2, "Acceleration") == 0
        assert host.read(3, "Homing_Offset") == 0
        after = host.positions()
    assert abs(after[1] - before[1]) < 100
    assert abs(after[2] - before[2]) > 20


def test_answers_take_the_time_of_the_wire(start_twin: Callable[..., Any]) -> None:
    twin = start_twin("--bus-timing")
    wire_s = 140 * 10 / 1e6
    with twin.host("follower") as host:
        for servo_id in IDS:
            host.write(servo_id, "Return_Delay_Time", 0)
        took = []
        for _ in range(60):
            began_s = time.perf_counter()
            assert len(host.telemetry()) == 6
            took.append(time.perf_counter() - began_s)
            time.sleep(0.002)
    assert min(took) >= wire_s
    assert min(took) < 1.3 * wire_s


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_ended_twin_leaves_no_process_and_no_name(
    start_twin: Callable[..., Any], number: int
) -> None:
    twin = start_twin()
    children = psutil.Process(twin.process.pid).children(recursive=True)
    assert len(children) == 3
    assert twin.end(number)[0] == 0
    assert not [child for child in children if child.is_running()]
    left = {path.name for path in twin.folder.iterdir()}
    assert left == {"assembly.json", "twin.lock"}


def test_a_killed_twin_takes_its_processes_along(start_twin: Callable[..., Any]) -> None:
    twin = start_twin()
    children = psutil.Process(twin.process.pid).children(recursive=True)
    twin.end(signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive


def test_a_twin_whose_physics_died_ends_and_says_so(start_twin: Callable[..., Any]) -> None:
    twin = start_twin()
    (physics,) = (
        child
        for child in psutil.Process(twin.process.pid).children()
        if "robot_io.twin.physics" in child.cmdline()
    )
    physics.kill()
    _, said = twin.process.communicate(timeout=20)
    assert twin.process.returncode == 1
    assert "physics" in said
    assert not (twin.folder / "twin.json").exists()


def test_a_second_twin_in_the_same_folder_is_refused_and_harms_nothing(
    start_twin: Callable[..., Any],
) -> None:
    twin = start_twin()
    second = subprocess.run(
        [sys.executable, "-m", "robot_io.twin.cli", "run", "--dir", str(twin.folder)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert second.returncode == 1
    assert len(second.stderr.splitlines()) == 1
    assert "already" in second.stderr
    with twin.host("follower") as host:
        assert len(host.positions()) == 6


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("--camera", "overhead:12"), "NAME:WxH@FPS"),
        (("--camera", "attic:64x64@5"), "attic"),
        (("--usb-latency-ms", "-1"), "usb-latency"),
        (("--task", "juggle"), "lift, place, stack, sort, push"),
    ],
)
def test_a_senseless_argument_is_one_clear_line(
    tmp_path: Path, arguments: tuple[str, ...], names: str
) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "robot_io.twin.cli", "run", "--dir", str(tmp_path), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 1
    assert len(run.stderr.splitlines()) == 1
    assert names in run.stderr


def test_twin_json_says_all_that_an_agent_needs(twin: Any) -> None:
    info = json.loads((twin.folder / "twin.json").read_text())
    assert Path(info["follower_port"]).resolve().is_char_device()
    assert info["cameras"]["overhead"]["width"] == 128
    assert len(info["rest_joints_rad"]) == len(info["joint_range_rad"]) == 6
    for angle, (low, high) in zip(info["rest_joints_rad"], info["joint_range_rad"], strict=True):
        assert low < angle < high
