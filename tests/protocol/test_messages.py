"""Messages survive the wire, and nothing that comes over it can make the receiver fail."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.eligibility import MAX_BASES, Terms
from protocol.errors import MalformedMessage
from protocol.messages import (
    MAX_ACTION_ERROR,
    MAX_EPISODE_FRAMES,
    MAX_HELD_OUT_FRAMES,
    MAX_PAYLOAD_BYTES,
    MAX_REPORTED_BASES,
    MAX_REPORTED_EPISODES,
    MAX_REPORTED_JOINTS,
    AgentEvent,
    AgentStatus,
    Answer,
    Command,
    Envelope,
    EpisodeError,
    Features,
    HeldOutReport,
    Message,
    ReleaseNotice,
    TrainingReport,
    Window,
    decode,
)

MODELS = (Window, ReleaseNotice, AgentStatus, Answer, AgentEvent, Command)
DIGEST = "ab" * 32

seconds = st.floats(0, 1e11, allow_nan=False)
counts = st.integers(0, 2**53)
hex_32 = st.text("0123456789abcdef", min_size=32, max_size=32)
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
identities = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
texts = st.text(max_size=300)
names = st.text(min_size=1, max_size=64)
envelopes = st.builds(
    Envelope,
    session=hex_32,
    sequence=counts,
    issued_unix_s=seconds,
    expires_unix_s=st.none() | seconds,
)
errors = st.floats(0, MAX_ACTION_ERROR)
episodes = st.builds(
    EpisodeError,
    key=st.text("0123456789abcdef", min_size=16, max_size=16),
    frames=st.integers(1, MAX_EPISODE_FRAMES),
    error=errors,
    hold_still=errors,
    nearest=errors,
)
reports = st.builds(
    HeldOutReport,
    round=counts,
    action_mae=errors,
    loss=st.floats(-1e6, 1e6),
    frames=st.integers(3 * MAX_EPISODE_FRAMES, MAX_HELD_OUT_FRAMES),
    episodes=st.lists(episodes, max_size=3, unique_by=lambda episode: episode.key).map(tuple),
)


terms = st.builds(
    Terms,
    bases=st.lists(digests, min_size=1, max_size=MAX_BASES).map(tuple),
    max_staleness=st.integers(0, MAX_BASES - 1),
    min_steps=st.integers(1, 10**6),
)


@st.composite
def windows(draw: st.DrawFn) -> Window:
    opens, join_by, closes = sorted(draw(seconds) for _ in range(3))
    return Window(
        envelope=draw(envelopes),
        window_id=draw(hex_32),
        round=draw(counts),
        terms=draw(terms),
        opens_unix_s=opens,
        join_by_unix_s=join_by,
        closes_unix_s=closes,
        closed=draw(st.booleans()),
    )


messages = st.one_of(
    windows(),
    st.builds(
        ReleaseNotice,
        envelope=envelopes,
        version=st.integers(1, 10**6),
        round=counts,
        manifest_digest=digests,
        canaries=st.lists(identities, max_size=3).map(tuple),
    ),
    st.builds(
        AgentStatus,
        envelope=envelopes,
        agent_id=identities,
        state=st.text(max_size=32),
        versions=st.dictionaries(names, names, max_size=3),
        episodes=counts,
        features=st.none()
        | st.builds(
            Features,
            state_names=st.lists(names, max_size=6).map(tuple),
            action_names=st.lists(names, max_size=6).map(tuple),
            fps=st.floats(1, 1000),
        ),
        cameras=st.dictionaries(names, st.tuples(counts, counts), max_size=2),
        training=st.builds(TrainingReport, base_digest=st.none() | digests),
        held_out=st.dictionaries(digests, reports, max_size=3),
        faults=st.lists(texts, max_size=3).map(tuple),
    ),
    st.builds(
        Answer,
        envelope=envelopes,
        agent_id=identities,
        window_id=hex_32,
        decision=st.sampled_from(("join", "decline")),
        reason=st.none() | texts,
        steps=counts,
    ),
    st.builds(AgentEvent, envelope=envelopes, agent_id=identities, name=names, detail=texts),
    st.builds(
        Command,
        envelope=envelopes,
        agent_id=identities,
        command=st.sampled_from(("pause", "resume", "roll_back", "collect")),
    ),
)

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(messages)
def test_a_message_reads_back_as_it_was(message: Message) -> None:
    assert decode(type(message), message.encode()) == message


@given(st.sampled_from(MODELS), st.binary(max_size=400))
def test_bytes_that_are_no_message_are_refused_and_nothing_else_is_raised(
    model: type[Message], payload: bytes
) -> None:
    with pytest.raises(MalformedMessage):
        decode(model, payload)


@given(st.sampled_from(MODELS), json_values)
def test_json_that_is_no_message_is_refused(model: type[Message], value: Any) -> None:
    with pytest.raises(MalformedMessage):
        decode(model, json.dumps(value).encode())


@given(messages, st.data())
def test_a_message_cut_or_changed_in_one_byte_never_raises_anything_else(
    message: Message, data: st.DataObject
) -> None:
    payload = bytearray(message.encode())
    position = data.draw(st.integers(0, len(payload) - 1))
    payload[position] = data.draw(st.integers(0, 255))
    for content in (bytes(payload), bytes(payload[:position])):
        try:
            decode(type(message), content)
        except MalformedMessage as error:
            assert "\n" not in str(error)


def episode(**fields: Any) -> dict[str, Any]:
    values = {"key": "0" * 16, "frames": 10, "error": 1.0, "hold_still": 2.0, "nearest": 1.5}
    return values | fields


def held_out(**fields: Any) -> bytes:
    values = {"round": 1, "action_mae": 1.0, "loss": 0.1, "frames": 10, "episodes": [episode()]}
    status = json.loads(
        AgentStatus(envelope=envelope(), agent_id="arm-1", state="idle").model_dump_json()
    )
    return json.dumps(status | {"held_out": {DIGEST: values | fields}}).encode()


@pytest.mark.parametrize(
    "fields",
    [
        {"action_mae": 1e308},
        {"action_mae": float("nan")},
        {"action_mae": -1.0},
        {"loss": 1e308},
        {"frames": 2**53},
        {"frames": 9},
        {"episodes": [episode(error=1e308)]},
        {"episodes": [episode(error=float("inf"))]},
        {"episodes": [episode(nearest=-0.1)]},
        {"episodes": [episode(frames=2**53)]},
        {"episodes": [episode(frames=0)]},
        {"episodes": [episode(key="pick the red cube")]},
        {"episodes": [episode(), episode()]},
        {"episodes": [episode(key=f"{n:016x}") for n in range(MAX_REPORTED_EPISODES + 1)]},
        {"episodes": [episode(task="pick the red cube")]},
        {"joints": [-1.0]},
        {"joints": [float("nan")]},
        {"joints": [1.0] * (MAX_REPORTED_JOINTS + 1)},
    ],
)
def test_a_held_out_claim_beyond_its_bounds_is_refused(fields: dict[str, Any]) -> None:
    assert decode(AgentStatus, held_out()).held_out[DIGEST].episodes[0].error == 1.0
    with pytest.raises(MalformedMessage, match="held_out"):
        decode(AgentStatus, held_out(**fields))


def test_a_status_with_as_many_held_out_episodes_as_are_allowed_fits_into_a_payload() -> None:
    report = HeldOutReport(
        round=2**53,
        action_mae=123456.789012345,
        loss=123456.789012345,
        frames=MAX_HELD_OUT_FRAMES,
        episodes=tuple(
            EpisodeError.model_validate(
                episode(
                    key=f"{n:016x}",
                    frames=MAX_EPISODE_FRAMES,
                    error=12345.6,
                    hold_still=1.23457e-05,
                    nearest=12345.6,
                )
            )
            for n in range(MAX_REPORTED_EPISODES)
        ),
        joints=(1.23457e-05,) * MAX_REPORTED_JOINTS,
    )
    status = AgentStatus(
        envelope=envelope(),
        agent_id="arm-1",
        state="idle",
        held_out={f"{n:064x}": report for n in range(MAX_REPORTED_BASES)},
    )
    assert len(status.encode()) < MAX_PAYLOAD_BYTES - 24 * 1024


def test_a_deeply_nested_payload_is_refused() -> None:
    with pytest.raises(MalformedMessage):
        decode(Answer, b"[" * 30_000)


def test_a_payload_over_the_limit_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(MalformedMessage, match="over the limit"):
        decode(Answer, b" " * (MAX_PAYLOAD_BYTES + 1))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_refused(number: str) -> None:
    payload = AgentStatus(
        envelope=envelope(), agent_id="arm-1", state="idle", training=TrainingReport(loss=0.5)
    ).encode()
    with pytest.raises(MalformedMessage):
        decode(AgentStatus, payload.replace(b'"loss":0.5', f'"loss":{number}'.encode()))


def test_no_command_moves_an_arm() -> None:
    choices = Command.model_json_schema()["properties"]["command"]["enum"]
    assert set(choices) == {"pause", "resume", "roll_back", "collect"}


def test_the_line_of_a_refusal_names_the_key() -> None:
    payload = AgentEvent(envelope=envelope(), agent_id="arm-1", name="x").encode()
    with pytest.raises(MalformedMessage, match="AgentEvent: agent_id"):
        decode(AgentEvent, payload.replace(b"arm-1", b"arm/1"))


def test_a_window_whose_times_are_out_of_order_is_refused() -> None:
    payload = window(opens=10.0, join_by=20.0, closes=30.0).encode()
    with pytest.raises(MalformedMessage, match="open before"):
        decode(Window, payload.replace(b"20.0", b"31.0"))


def test_a_canary_release_is_for_the_canaries_alone() -> None:
    notice = release(stage="canary", canaries=("arm-1",))
    assert notice.applies_to("arm-1")
    assert not notice.applies_to("arm-2")


def test_a_percentage_reaches_about_its_share_and_the_same_robots_each_time() -> None:
    notice = release(stage="percentage", percentage=30)
    chosen = [name for name in (f"arm-{n}" for n in range(1000)) if notice.applies_to(name)]
    assert 230 < len(chosen) < 370
    assert chosen == [name for name in (f"arm-{n}" for n in range(1000)) if notice.applies_to(name)]
    wider = release(stage="percentage", percentage=60)
    assert all(wider.applies_to(name) for name in chosen)


def envelope() -> Envelope:
    return Envelope(session="0" * 32, sequence=1, issued_unix_s=1.0, expires_unix_s=2.0)


def release(**fields: Any) -> ReleaseNotice:
    return ReleaseNotice(envelope=envelope(), version=3, round=3, manifest_digest=DIGEST, **fields)


def window(opens: float, join_by: float, closes: float) -> Window:
    return Window(
        envelope=envelope(),
        window_id="1" * 32,
        round=1,
        terms=Terms(bases=(DIGEST,)),
        opens_unix_s=opens,
        join_by_unix_s=join_by,
        closes_unix_s=closes,
    )
