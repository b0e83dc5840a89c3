"""Topics go both ways; a bundle says what it lacks."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.bundle import BUNDLE_FILES, load_bundle
from protocol.errors import BadBundle, BadTopic
from protocol.topics import AGENT_KINDS, Address, Kind, Topics

TOPICS = Topics("fleet")


@given(
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True).filter(
        lambda name: name.lower() != "coordinator"
    ),
    st.sampled_from(AGENT_KINDS),
)
def test_an_agents_topic_reads_back(agent_id: str, kind: Kind) -> None:
    assert TOPICS.parse(TOPICS.of_agent(agent_id, kind)) == Address(kind, agent_id)


@given(st.text(max_size=100))
def test_any_other_topic_is_refused_and_nothing_else_is_raised(topic: str) -> None:
    with pytest.raises(BadTopic):
        TOPICS.parse(topic)


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "a b", "-x", "x" * 64, "coordinator", "é"])
def test_a_name_that_would_change_a_topic_is_refused(name: str) -> None:
    with pytest.raises(BadTopic):
        TOPICS.status(name)


@pytest.mark.parametrize(
    "topic",
    [
        "armada/v1/other/window",
        "armada/v1/fleet/window/x",
        "armada/v1/fleet/agents/arm-1/window",
        "armada/v1/fleet/status",
        "armada/v1/fleet/agents//status",
    ],
)
def test_a_topic_of_another_fleet_or_shape_is_refused(topic: str) -> None:
    with pytest.raises(BadTopic):
        TOPICS.parse(topic)


def test_a_bundle_says_what_it_lacks(tmp_path: Path) -> None:
    for name in BUNDLE_FILES:
        (tmp_path / name).write_text("{}")
    (tmp_path / "key.pem").unlink()
    with pytest.raises(BadBundle, match=r"lacks key\.pem; make it with"):
        load_bundle(tmp_path)
    (tmp_path / "key.pem").write_text("")
    with pytest.raises(BadBundle, match=r"bundle\.json: agent_id"):
        load_bundle(tmp_path)
