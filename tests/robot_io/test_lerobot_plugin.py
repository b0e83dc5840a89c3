"""Our driver under LeRobot's own factories, over the wire."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from robot_io.arm import JOINTS, Calibration, JointCalibration
from robot_io.bus import ServoBus
from robot_io.errors import NotCalibrated
from robot_io.servos import write_calibration

pytest.importorskip("lerobot")

IDS = (1, 2, 3, 4, 5, 6)


@pytest.fixture
def calibrated(servos, tmp_path):
    calibration = Calibration(
        {name: JointCalibration(i + 1, 0, 0, 1000, 3000) for i, name in enumerate(JOINTS)}
    )
    calibration.save(tmp_path / "arm-1.json")
    with ServoBus(servos.port) as bus:
        write_calibration(bus, calibration)
    return tmp_path


def test_robot_io_itself_never_imports_lerobot():
    modules = "arm, bus, calibrator, cameras, health, limits, packet, ports, tracker"
    subprocess.run(
        [
            sys.executable,
            "-c",
            f"from robot_io import {modules}; import sys; "
            "assert not {'lerobot', 'torch'} & set(sys.modules)",
        ],
        check=True,
    )


def test_follower_made_by_lerobot_reads_moves_and_is_released(servos, calibrated):
    from lerobot.robots.utils import make_robot_from_config

    from robot_io.lerobot_plugin import ArmadaFollowerConfig

    for servo_id in IDS:
        servos.set(servo_id, "Goal_Position", 2900)
    robot = make_robot_from_config(
        ArmadaFollowerConfig(
            port=servos.port, id="arm-1", calibration_dir=calibrated, max_relative_target=5.0
        )
    )
    robot.connect()
    assert all(servos.get(i, "Torque_Enable") == 1 for i in IDS)
    assert [servos.get(i, "Goal_Position") for i in IDS] == [2000 + i for i in IDS]
    observation = robot.get_observation()
    assert set(observation) == set(robot.observation_features)
    assert observation["shoulder_lift.pos"] == pytest.approx(2 * 360 / 4095, abs=1e-4)
    sent = robot.send_action({f"{joint}.pos": 90.0 for joint in JOINTS})
    moved = np.array([sent[f"{joint}.pos"] - observation[f"{joint}.pos"] for joint in JOINTS])
    np.testing.assert_allclose(moved, 5.0, atol=0.1)
    robot.disconnect()
    assert not robot.is_connected
    assert all(servos.get(i, "Torque_Enable") == 0 for i in IDS)


def test_leader_made_by_lerobot_reads_and_is_never_energised(servos, calibrated):
    from lerobot.teleoperators.utils import make_teleoperator_from_config

    from robot_io.lerobot_plugin import ArmadaLeaderConfig

    energised = []
    servos.on_write = lambda servo_id, address, data: (
        energised.append(servo_id) if servos.get(servo_id, "Torque_Enable") else None
    )
    leader = make_teleoperator_from_config(
        ArmadaLeaderConfig(port=servos.port, id="arm-1", calibration_dir=calibrated)
    )
    leader.connect()
    assert set(leader.get_action()) == set(leader.action_features)
    leader.disconnect()
    assert energised == []


def test_another_calibration_is_said_and_never_asked(servos, calibrated):
    from robot_io.lerobot_plugin import ArmadaFollower, ArmadaFollowerConfig

    servos.set(1, "Homing_Offset", 9)
    robot = ArmadaFollower(
        ArmadaFollowerConfig(port=servos.port, id="arm-1", calibration_dir=calibrated)
    )
    with pytest.raises(NotCalibrated, match="shoulder_pan"):
        robot.connect()
    with pytest.raises(NotCalibrated, match="armada setup calibrate"):
        robot.calibrate()
