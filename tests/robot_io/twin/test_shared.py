"""Readers of the shared blocks see whole publications only."""

from __future__ import annotations

import multiprocessing
import os

import numpy as np
import pytest

from robot_io.twin import shared as shared_module
from robot_io.twin.errors import TornRead
from robot_io.twin.shared import N_JOINTS, Servo, SharedState


def test_two_mappings_of_one_descriptor_see_each_other() -> None:
    one = SharedState.create()
    two = SharedState(os.dup(one.descriptor))
    values = np.arange(N_JOINTS * len(Servo), dtype=float).reshape(N_JOINTS, len(Servo))
    before = two.servos["leader"].sequence
    one.servos["leader"].publish(values)
    np.testing.assert_array_equal(two.servos["leader"].read(), values)
    assert two.servos["leader"].sequence != before
    assert not two.servos["follower"].read().any()


def _publish(descriptor: int, rounds: int) -> None:
    block = SharedState(descriptor).servos["follower"]
    for number in range(rounds):
        block.publish(np.full((N_JOINTS, len(Servo)), float(number)))


def test_no_reader_ever_sees_half_a_publication() -> None:
    state = SharedState.create()
    context = multiprocessing.get_context("fork")
    writer = context.Process(target=_publish, args=(state.descriptor, 20_000))
    writer.start()
    seen = set()
    while writer.is_alive():
        values = state.servos["follower"].read()
        assert (values == values[0, 0]).all()
        seen.add(float(values[0, 0]))
    writer.join()
    assert len(seen) > 2


def test_a_writer_that_died_in_the_middle_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_module, "_TRIES", 50)
    state = SharedState.create()
    state.world._sequence[0] = 1
    with pytest.raises(TornRead):
        state.world.read()
