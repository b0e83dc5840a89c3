"""A verdict names the joint, and never gets better when a value gets worse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from robot_io.arm import JOINTS, ArmReading
from robot_io.health import Level, judge
from robot_io.sts3215 import ServoError


def reading(**joint0: float) -> ArmReading:
    values = {"temperature_c": 30.0, "voltage_v": 7.4, "load": 5.0, "current_ma": 100.0}
    arrays = {name: np.full(6, value, np.float32) for name, value in values.items()}
    errors = [ServoError.NONE] * 6
    for name, value in joint0.items():
        if name == "error":
            errors[0] = ServoError(int(value))
        else:
            arrays[name][0] = value
    zero = np.zeros(6, np.float32)
    return ArmReading(0.0, zero, zero, errors=tuple(errors), raw=np.zeros(6, np.int64), **arrays)


def test_a_healthy_arm_is_ok():
    verdict = judge(reading())
    assert (verdict.level, verdict.reasons) == (Level.OK, ())
    assert str(verdict.level) == "ok"


def test_each_fault_names_its_joint_and_what_to_do():
    for values, said in [
        ({"temperature_c": 70.0}, "70 degC, let it cool"),
        ({"voltage_v": 3.6}, "3.6 V, check the power"),
        ({"voltage_v": 15.0}, "too high"),
        ({"current_ma": -3500.0}, "3500 mA, the joint is blocked"),
        ({"error": ServoError.OVERLOAD}, "servo reports overloaded"),
        ({"error": ServoError.VOLTAGE}, "input voltage out of range"),
    ]:
        verdict = judge(reading(**values))
        assert verdict.level == Level.FAULT, values
        assert verdict.reasons[0].startswith(f"{JOINTS[0]}: ")
        assert said in verdict.reasons[0]


def test_warnings_do_not_stop_the_arm():
    for values in (
        {"temperature_c": 60.0},
        {"voltage_v": 4.9},
        {"load": -95.0},
        {"current_ma": 2500.0},
        {"error": ServoError.ANGLE},
        {"error": 0x40},
    ):
        assert judge(reading(**values)).level == Level.WARN, values


def test_a_gripper_that_limits_its_own_squeeze_does_not_stop_the_arm():
    squeezing = reading()
    errors = (*[ServoError.NONE] * 5, ServoError.OVERLOAD)
    verdict = judge(replace(squeezing, errors=errors))
    assert verdict.level == Level.WARN
    assert verdict.reasons[0].startswith("gripper: servo reports overloaded")


def test_the_worst_reason_comes_first():
    verdict = judge(reading(load=95.0, temperature_c=80.0))
    assert [reason.split(": ")[1][:2] for reason in verdict.reasons] == ["80", "lo"]


@given(
    st.floats(0, 100), st.floats(0, 50), st.floats(0, 1000), st.floats(0, 5000), st.integers(0, 255)
)
def test_a_hotter_joint_is_never_judged_better(temperature, more, load, current, error):
    values = {"load": load / 10, "current_ma": current, "error": error}
    cool = judge(reading(temperature_c=temperature, **values))
    hot = judge(reading(temperature_c=temperature + more, **values))
    assert hot.level >= cool.level
