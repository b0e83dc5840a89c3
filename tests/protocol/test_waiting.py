"""Reasons for waiting: one list, the text from the reason, the same on both sides of the wire."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from protocol.waiting import MAX_TEXT_CHARS, Reason, Waiting, waiting


def places(reason: Reason) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(reason.text) if name]


details = st.one_of(
    st.text(max_size=400),
    st.integers(-(2**53), 2**53),
    st.floats(-1e11, 1e11),
)


@given(st.sampled_from(Reason), st.data())
def test_every_reason_travels_and_gives_one_line_whatever_its_details(
    reason: Reason, data: st.DataObject
) -> None:
    told = waiting(reason, **{name: data.draw(details) for name in places(reason)})
    assert Waiting.model_validate_json(told.model_dump_json()) == told
    assert told.text.strip() or not reason.text.replace("{why}", "")
    assert "\n" not in told.text


def test_texts_count_and_tell_the_time() -> None:
    assert waiting(Reason.MORE_ROBOTS, count=1).text == "waiting for 1 more robot"
    assert waiting(Reason.MORE_ROBOTS, count=2).text == "waiting for 2 more robots"
    assert waiting(Reason.STEPS, step=120, steps=400).text == "step 120 of 400"
    camera = waiting(Reason.ROBOT_WITHOUT_CAMERA, robot="arm-2", camera="front")
    assert camera.text == "arm-2 has no camera 'front', which the policy sees"
    text = waiting(Reason.NEXT_WINDOW, at=1_700_000_000.0).text
    assert text.startswith("no window open, next at ") and text.count(":") == 2


@pytest.mark.parametrize(
    "given_details", [{}, {"count": 1, "more": 2}, {"robots": 1}], ids=["none", "more", "other"]
)
def test_details_that_do_not_fit_the_reason_are_refused(given_details: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match="count"):
        Waiting(reason=Reason.MORE_ROBOTS, details=given_details)


def test_a_long_text_is_cut_before_it_travels() -> None:
    told = waiting(Reason.NO_BROKER, why="x\n" * 1000)
    assert len(str(told.details["why"])) <= MAX_TEXT_CHARS
