"""A member of a fleet always says for what it waits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.federation.reasons import Membership, fleet_waits
from protocol.waiting import Reason

WELL: dict[str, Any] = {
    "connected": True, "broker_error": None, "supernode": "connected", "supernode_error": None,
    "paused": False, "window_round": None, "declined": None, "release": None,
    "release_state": "idle",
}  # fmt: skip
words = st.none() | st.text(min_size=1, max_size=20)


@given(
    st.builds(
        Membership,
        connected=st.booleans(),
        broker_error=words,
        supernode=st.sampled_from(["connected", "connecting", "failed", "stopped"]),
        supernode_error=words,
        paused=st.booleans(),
        window_round=st.none() | st.integers(0, 99),
        declined=words,
        release=st.none() | st.integers(1, 9),
        release_state=st.sampled_from(["idle", "downloading", "qualifying", "active", "waiting"]),
    )
)
def test_no_state_is_without_a_reason(now: Membership) -> None:
    assert fleet_waits(now)


@pytest.mark.parametrize(
    ("now", "reason", "text"),
    [
        ({}, Reason.NO_WINDOW, "no window is open"),
        ({"paused": True}, Reason.PAUSED, "paused by the coordinator"),
        (
            {"connected": False, "broker_error": "refused"},
            Reason.NO_BROKER,
            "no connection to the broker: refused",
        ),
        (
            {"supernode": "failed", "supernode_error": "nothing listens"},
            Reason.NO_SUPERNODE,
            "no connection to the SuperLink: nothing listens",
        ),
        (
            {"window_round": 4, "declined": "nothing gained yet"},
            Reason.DECLINED,
            "sits this window out: nothing gained yet",
        ),
        (
            {"window_round": 4},
            Reason.JOINED,
            "joined the window of round 4, which is being collected",
        ),
        (
            {"release": 2, "release_state": "qualifying"},
            Reason.RELEASE_UNDERWAY,
            "release 2 is qualifying",
        ),
    ],
)
def test_each_state_names_its_own_reason(now: dict[str, Any], reason: Reason, text: str) -> None:
    found = fleet_waits(Membership(**{**WELL, **now}))
    assert text in [each.text for each in found if each.reason is reason]
