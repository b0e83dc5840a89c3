"""What comes over the wire is taken under the row's model, or refused in one line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fake_robot import FIELDS
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import BadArguments
from agent.operations.arguments import Calibrate, RecordStart, RolloutStart
from agent.operations.operation import Operation
from agent.operations.table import OPERATIONS

JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=10), inner),
    max_leaves=20,
)
KEYS = ["arm", "step", "task", "policy", "seconds", "record", "release"]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda row: row.verb)
def test_a_right_request_passes_as_json_and_as_fields(operation: Operation) -> None:
    fields = FIELDS.get(operation.verb, {})
    parsed = operation.arguments.parse(fields)
    assert operation.arguments.parse(json.dumps(fields).encode()) == parsed
    assert operation.arguments.parse(parsed.model_dump()) == parsed  # as the control process does


def test_no_body_is_no_fields() -> None:
    assert [row.verb for row in OPERATIONS if not takes_nothing(row)] == [
        "calibrate",
        "record_start",
        "rollout_beat",
        "rollout_start",
        "policy_use",
    ]


def takes_nothing(row: Operation) -> bool:
    try:
        row.arguments.parse(b"")
    except BadArguments:
        return False
    return True


@pytest.mark.parametrize(
    ("model", "raw", "line"),
    [
        (RecordStart, {}, r"^task: Field required \(fields: task\)$"),
        (RecordStart, {"task": ""}, "^task: .*at least 1 character"),
        (RecordStart, {"task": "x" * 501}, "^task: .*at most 500"),
        (RecordStart, {"task": 3}, "^task: .*valid string"),
        (Calibrate, {"arm": "third", "step": "homing"}, "^arm: .*'follower' or 'leader'"),
        (Calibrate, {"arm": "leader", "step": "homing", "x": 1}, r"^x: .*\(fields: arm, step\)$"),
        (RolloutStart, {"seconds": "soon"}, "^seconds: .*valid number"),
        (RolloutStart, b"[1]", "^body: "),
        (RolloutStart, b"{", "^body: Invalid JSON"),
        (RolloutStart, b"\xff\xfe", "^body: Invalid JSON"),
        (RolloutStart, b"[" * 60_000, "^body: Invalid JSON"),  # no stack is deep enough
        (RolloutStart, None, "^body: "),
        (RolloutStart, {"two\nlines": 1, "seconds": 1.0}, "^two lines: Extra"),
        (RolloutStart, {"x" * 60_000: 1, "seconds": 1.0}, "^x{100}: Extra"),
    ],
)
def test_a_wrong_request_is_one_line_that_names_the_fields(
    model: type[RecordStart], raw: Any, line: str
) -> None:
    with pytest.raises(BadArguments, match=line) as error:
        model.parse(raw)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300  # not the megabytes that came


@given(JSON | st.dictionaries(st.sampled_from(KEYS), JSON) | st.binary(max_size=50))
def test_whatever_comes_is_taken_or_refused(raw: Any) -> None:
    for operation in OPERATIONS:
        try:
            parsed = operation.arguments.parse(raw)
        except BadArguments as error:
            assert "\n" not in str(error) and len(str(error)) < 300
        else:
            assert set(parsed.model_dump()) == set(operation.arguments.model_fields)
