"""Real-time chunking: what a policy that continues a chunk is given, and when it is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from agent.inference.process import _continuing
from agent.inference.wire import UPCOMING, InferenceMessage
from policy.errors import BadObservation
from policy.kinds import PREFIX_WEIGHTS, PREVIOUS
from policy.session import OnnxPolicy

CHUNK, SIZE = 8, 6
STATE = np.zeros(SIZE, np.float32)


class Continuing(OnnxPolicy):
    """A policy whose graph has these inputs."""

    def __init__(self, *names: str) -> None:
        self.inputs: dict[str, Any] = {
            name: (np.dtype(np.float32), (1, CHUNK, SIZE)) for name in names
        }


def message(rows: int, delay: object = 3, width: int = SIZE) -> InferenceMessage:
    left = np.repeat(np.arange(rows, dtype=np.float32)[:, None], width, axis=1)
    return InferenceMessage(
        {"kind": "infer", "delay_ticks": delay}, {"observation.state": STATE, UPCOMING: left}
    )


def test_the_chunk_in_flight_binds_fully_until_the_answer_comes_then_less_and_less() -> None:
    given = _continuing(Continuing(PREVIOUS, PREFIX_WEIGHTS), message(6))
    assert given.keys() == {"observation.state", PREVIOUS, PREFIX_WEIGHTS}
    assert given[PREVIOUS][:, 0].tolist() == [0, 1, 2, 3, 4, 5, 5, 5]
    weights = given[PREFIX_WEIGHTS]
    assert weights[:3].tolist() == [1, 1, 1] and weights[6:].tolist() == [0, 0]
    assert np.all(np.diff(weights[2:7]) < 0)


@pytest.mark.parametrize("names", [(), (PREVIOUS, PREFIX_WEIGHTS)])
def test_a_first_chunk_and_a_policy_that_continues_nothing_plan_afresh(
    names: tuple[str, ...],
) -> None:
    assert _continuing(Continuing(*names), message(0)).keys() == {"observation.state"}
    assert _continuing(Continuing(), message(4)).keys() == {"observation.state"}


def test_rows_of_another_width_and_a_delay_that_is_no_number_are_not_believed() -> None:
    policy = Continuing(PREVIOUS, PREFIX_WEIGHTS)
    with pytest.raises(BadObservation, match=r"\[4, 5\], the policy wants \[N, 6\]"):
        _continuing(policy, message(4, width=5))
    assert _continuing(policy, message(4, delay="x"))[PREFIX_WEIGHTS][0] < 1
