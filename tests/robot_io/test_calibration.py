"""Joint units are LeRobot's; a calibration that cannot be right is refused in one line."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_io.arm import JOINTS, Calibration, JointCalibration
from robot_io.errors import BadCalibration, NotCalibrated


def joints(**changes: JointCalibration) -> dict[str, JointCalibration]:
    made = {
        name: JointCalibration(i + 1, 0, 100 * i - 200, 700 + i, 3300 - i)
        for i, name in enumerate(JOINTS)
    }
    made["wrist_roll"] = replace(made["wrist_roll"], range_min=0, range_max=4095)
    return made | changes


ranges = st.tuples(st.integers(0, 4094), st.integers(1, 4095)).filter(lambda r: r[0] < r[1])


@st.composite
def calibrations(draw: st.DrawFn) -> Calibration:
    return Calibration(
        {
            name: JointCalibration(
                i + 1,
                draw(st.integers(0, 1)) if name == "gripper" else 0,
                draw(st.integers(-2047, 2047)),
                *draw(ranges),
            )
            for i, name in enumerate(JOINTS)
        }
    )


@given(calibrations(), st.data())
def test_ticks_within_the_range_survive_the_way_to_joint_units_and_back(calibration, data):
    raw = np.array(
        [
            data.draw(st.integers(int(low), int(high)))
            for low, high in zip(calibration.range_min, calibration.range_max, strict=True)
        ]
    )
    assert calibration.to_raw(calibration.to_units(raw)).tolist() == raw.tolist()


@given(calibrations(), st.lists(st.floats(-1e6, 1e6), min_size=6, max_size=6))
def test_no_goal_leaves_the_calibrated_range(calibration, goal):
    raw = calibration.to_raw(np.array(goal, np.float32))
    assert (raw >= calibration.range_min).all()
    assert (raw <= calibration.range_max).all()
    assert (calibration.lower <= calibration.upper).all()


# Importing LeRobot takes seconds.
@settings(deadline=None)
@given(calibrations(), st.lists(st.integers(0, 4095), min_size=6, max_size=6))
def test_joint_units_are_those_of_lerobot(calibration, raw):
    pytest.importorskip("lerobot")
    from lerobot.motors import Motor, MotorCalibration, MotorNormMode
    from lerobot.motors.feetech import FeetechMotorsBus

    bus = FeetechMotorsBus(
        "/dev/null",
        {
            name: Motor(
                i + 1,
                "sts3215",
                MotorNormMode.RANGE_0_100 if name == "gripper" else MotorNormMode.DEGREES,
            )
            for i, name in enumerate(JOINTS)
        },
        {
            name: MotorCalibration(
                joint.id, joint.drive_mode, joint.homing_offset, joint.range_min, joint.range_max
            )
            for name, joint in calibration.joints.items()
        },
    )
    theirs = bus._normalize({i + 1: value for i, value in enumerate(raw)})
    ours = calibration.to_units(np.array(raw))
    np.testing.assert_allclose(ours, [theirs[i + 1] for i in range(6)], rtol=1e-5, atol=1e-4)
    back = bus._unnormalize({i + 1: float(value) for i, value in enumerate(ours)})
    ticks = calibration.to_raw(ours)
    for i in range(6):
        inside = calibration.range_min[i] <= raw[i] <= calibration.range_max[i]
        # LeRobot cuts where we round, so it may lie one tick lower.
        assert not inside or abs(back[i + 1] - ticks[i]) <= 1


def test_file_is_read_by_lerobot_and_back(tmp_path):
    draccus = pytest.importorskip("draccus")
    from lerobot.motors import MotorCalibration

    path = tmp_path / "new" / "arm.json"
    calibration = Calibration(joints())
    calibration.save(path)
    with path.open() as file, draccus.config_type("json"):
        theirs = draccus.load(dict[str, MotorCalibration], file)
    assert theirs["gripper"].range_max == calibration.joints["gripper"].range_max
    with path.open("w") as file, draccus.config_type("json"):
        draccus.dump(theirs, file, indent=4)
    again = Calibration.load(path)
    assert again == calibration
    assert again.digest() == calibration.digest()


def test_saving_leaves_nothing_but_the_file(tmp_path):
    Calibration(joints()).save(tmp_path / "arm.json")
    Calibration(joints()).save(tmp_path / "arm.json")
    assert [path.name for path in tmp_path.iterdir()] == ["arm.json"]


def test_missing_file_means_not_calibrated(tmp_path):
    with pytest.raises(NotCalibrated, match="armada setup calibrate"):
        Calibration.load(tmp_path / "arm.json")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"shoulder_pan": 1}', '{"shoulder_pan": {"id": 1}}', "\x00", '{"a": null}'],
)
def test_a_file_that_is_none_is_refused_with_its_name(tmp_path, text):
    path = tmp_path / "arm.json"
    path.write_text(text)
    with pytest.raises(BadCalibration, match=r"arm\.json"):
        Calibration.load(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"homing_offset": 2048}, r"gripper has homing offset 2048.*±2047"),
        ({"homing_offset": -2048}, r"homing offset -2048"),
        ({"id": 7}, "servo id 7"),
        ({"range_min": 3000, "range_max": 3000}, "3000..3000"),
        ({"range_max": 4096}, r"must rise within 0..4095"),
        ({"range_min": -1}, "-1"),
    ],
)
def test_what_cannot_be_right_is_refused_in_one_line(change, said):
    made = joints()
    made["gripper"] = replace(made["gripper"], **change)
    with pytest.raises(BadCalibration, match=said) as caught:
        Calibration(made)
    assert "\n" not in str(caught.value)


def test_missing_and_unknown_joints_are_named(tmp_path):
    made = joints()
    del made["elbow_flex"]
    with pytest.raises(BadCalibration, match="lacks elbow_flex"):
        Calibration(made)
    with pytest.raises(BadCalibration, match="names tail"):
        Calibration(joints(tail=JointCalibration(7, 0, 0, 0, 1)))
    path = tmp_path / "arm.json"
    path.write_text(
        json.dumps(
            {
                "shoulder_pan": {
                    "id": 1,
                    "drive_mode": 0,
                    "homing_offset": 1.5,
                    "range_min": 0,
                    "range_max": 1,
                }
            }
        )
    )
    with pytest.raises(BadCalibration, match=r"1\.5 is no whole number"):
        Calibration.load(path)


def test_a_goal_that_is_no_number_is_refused():
    calibration = Calibration(joints())
    for goal in ([0, 0, 0, 0, 0, np.nan], [0, 0, np.inf, 0, 0, 0], [0, 0]):
        with pytest.raises(ValueError, match="six finite"):
            calibration.to_raw(np.array(goal, np.float32))
