"""The control table agrees with itself, with LeRobot's, and codes every value it can hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robot_io.sts3215 import (
    BAUD_RATES,
    MODEL_NUMBER,
    REGISTERS,
    TELEMETRY_ADDRESS,
    TELEMETRY_SIZE,
    Register,
    ServoError,
)


@given(st.sampled_from(list(REGISTERS.values())), st.data())
def test_every_value_a_register_can_hold_survives(register: Register, data: st.DataObject):
    if register.sign_bit is None:
        value = data.draw(st.integers(0, (1 << 8 * register.size) - 1))
    else:
        limit = (1 << register.sign_bit) - 1
        value = data.draw(st.integers(-limit, limit))
    assert register.decode(register.encode(value)) == value


@given(st.sampled_from(list(REGISTERS.values())), st.integers(1, 1 << 20))
def test_a_value_that_does_not_fit_is_refused_by_name(register: Register, beyond: int):
    top = (1 << (8 * register.size if register.sign_bit is None else register.sign_bit)) - 1
    with pytest.raises(ValueError, match=register.name):
        register.encode(top + beyond)


def test_registers_do_not_overlap():
    taken: dict[int, str] = {}
    for register in REGISTERS.values():
        for address in range(register.address, register.end):
            assert address not in taken, f"{register.name} overlaps {taken.get(address)}"
            taken[address] = register.name


def test_the_telemetry_span_is_the_fifteen_bytes_56_to_70():
    assert (TELEMETRY_ADDRESS, TELEMETRY_SIZE) == (56, 15)


def test_table_agrees_with_lerobot():
    tables = pytest.importorskip("lerobot.motors.feetech.tables")
    theirs = tables.MODEL_CONTROL_TABLE["sts3215"]
    signs = tables.MODEL_ENCODING_TABLE["sts3215"]
    common = set(theirs) & set(REGISTERS)
    assert len(common) > 45
    for name in common:
        assert (REGISTERS[name].address, REGISTERS[name].size) == theirs[name], name
        if name in signs:
            assert REGISTERS[name].sign_bit == signs[name], name
    assert tables.MODEL_NUMBER_TABLE["sts3215"] == MODEL_NUMBER
    assert tables.MODEL_BAUDRATE_TABLE["sts3215"] == BAUD_RATES


def test_error_bits_are_put_into_words_and_unknown_ones_are_shown():
    assert ServoError(0).words() == ()
    assert ServoError(1 | 4).words() == ("input voltage out of range", "overheated")
    assert ServoError(64).words() == ("bit 0x40",)
