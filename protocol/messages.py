"""What is said over MQTT: one pydantic model a topic, and the rules for dropping what does not fit.

Every message carries an `Envelope`. A message is dropped, and the drop counted, when
  - it does not fit its model, or is larger than MAX_PAYLOAD_BYTES       (decode raises)
  - the identity inside differs from the identity its topic belongs to   (wrong_identity)
  - its session was superseded, or its sequence was seen                 (replayed)
  - it expired, or was issued in the future, on the receiver's clock     (late, early)
The broker's access list already binds a topic to a certificate; the guard here is the second lock.

No message can move an arm: the only commands are pause, resume, roll_back and collect.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from enum import StrEnum
from hashlib import sha256
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from host.complaints import first_complaint
from protocol.contribution import MAX_LOSS
from protocol.eligibility import Terms
from protocol.episode_keys import EpisodeKey
from protocol.errors import MalformedMessage
from protocol.fields import Count, Digest, WireModel
from protocol.topics import IDENTITY_PATTERN
from protocol.waiting import MAX_WAITING, Waiting

# 2: a window carries its terms; 3: a status says for what its robot waits
SCHEMA_VERSION: Literal[3] = 3
MAX_PAYLOAD_BYTES = 64 * 1024

# What a robot may claim of its held-out errors. So many bases and episodes fit into one payload.
MAX_REPORTED_BASES = 4
MAX_REPORTED_EPISODES = 64
MAX_REPORTED_JOINTS = 32
MAX_REPORTED_RELEASES = 8
MAX_EPISODE_FRAMES = 10**6
MAX_HELD_OUT_FRAMES = 10**8
MAX_ACTION_ERROR = 1e6  # raw joint units; a joint has 360 degrees

Identity = Annotated[str, Field(pattern=IDENTITY_PATTERN)]
ShortText = Annotated[str, Field(max_length=300)]
Name = Annotated[str, Field(min_length=1, max_length=64)]
UnixSeconds = Annotated[float, Field(ge=0, le=1e11)]
ActionError = Annotated[float, Field(ge=0, le=MAX_ACTION_ERROR)]

CommandWord = Literal["pause", "resume", "roll_back", "collect"]


class Envelope(WireModel):
    """Who speaks in which breath: one session a connection, one sequence a session.

    `expires_unix_s` None means that the message holds until it is replaced.
    """

    schema_version: Literal[3] = SCHEMA_VERSION
    session: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    sequence: Count
    issued_unix_s: UnixSeconds
    expires_unix_s: UnixSeconds | None


class Message(WireModel):
    """Base of all messages."""

    envelope: Envelope

    def encode(self) -> bytes:
        """UTF-8 JSON, as it goes on the wire."""
        return self.model_dump_json().encode()


class Window(Message):
    """A call for contributions. All times are the coordinator's clock.

    A window that was closed early is announced again with `closed` true.
    """

    window_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    round: Count
    terms: Terms
    opens_unix_s: UnixSeconds
    join_by_unix_s: UnixSeconds
    closes_unix_s: UnixSeconds
    closed: bool = False

    @model_validator(mode="after")
    def _in_order(self) -> Window:
        if not self.opens_unix_s <= self.join_by_unix_s <= self.closes_unix_s:
            raise ValueError("a window must open before join_by and join_by before it closes")
        return self


class ReleaseNotice(Message):
    """The newest release. `manifest_digest` is the SHA-256 of manifest.json as served."""

    version: Annotated[int, Field(ge=1)]
    round: Count
    manifest_digest: Digest
    stage: Literal["canary", "percentage", "all"] = "all"
    percentage: Annotated[int, Field(ge=0, le=100)] = 100
    canaries: Annotated[tuple[Identity, ...], Field(max_length=256)] = ()

    def applies_to(self, agent_id: str) -> bool:
        """Whether `agent_id` is in the stage; a percentage draws by a stable hash."""
        if self.stage == "all" or agent_id in self.canaries:
            return True
        if self.stage == "canary":
            return False
        draw = int.from_bytes(sha256(f"{self.version}/{agent_id}".encode()).digest()[:8], "big")
        return draw % 100 < self.percentage


class EpisodeError(WireModel):
    """Mean absolute action errors on one held-out episode, in raw joint units.

    `key` (protocol.episode_keys) tells it from all others and says nothing else. Beside the base's
    own error stand those of holding still and of replaying the nearest demonstration.
    """

    key: EpisodeKey
    frames: Annotated[int, Field(ge=1, le=MAX_EPISODE_FRAMES)]
    error: ActionError
    hold_still: ActionError
    nearest: ActionError


class HeldOutReport(WireModel):
    """Error of one base on the episodes this robot kept aside, the newest of them one by one.

    `joints`: mean absolute error of each action, in the order of the policy's action names.
    """

    round: Count
    action_mae: ActionError
    loss: Annotated[float, Field(ge=-MAX_LOSS, le=MAX_LOSS)]
    frames: Annotated[int, Field(ge=0, le=MAX_HELD_OUT_FRAMES)]
    episodes: Annotated[tuple[EpisodeError, ...], Field(max_length=MAX_REPORTED_EPISODES)] = ()
    joints: Annotated[tuple[ActionError, ...], Field(max_length=MAX_REPORTED_JOINTS)] = ()

    @model_validator(mode="after")
    def _adds_up(self) -> HeldOutReport:
        if len({episode.key for episode in self.episodes}) < len(self.episodes):
            raise ValueError("an episode is reported twice")
        if sum(episode.frames for episode in self.episodes) > self.frames:
            raise ValueError("the episodes have more frames than all held-out ones together")
        return self


class TrainingReport(WireModel):
    """How far local training is. Losses are dimensionless."""

    base_digest: Digest | None = None
    base_round: Count | None = None
    steps_since_base: Count = 0
    steps_total: Count = 0
    examples_total: Count = 0
    loss: float | None = None


class Features(WireModel):
    """What this robot's policy can see and must say; all members of a fleet must agree."""

    state_names: tuple[Name, ...]
    action_names: tuple[Name, ...]
    environment_names: tuple[Name, ...] = ()
    fps: Annotated[float, Field(gt=0, le=1000)]


class ReleaseReport(WireModel):
    """Where one release is on a robot, and why; the states are the agent's own words."""

    version: Count
    manifest_digest: Digest
    state: Name
    reason: ShortText = ""


class AgentStatus(Message):
    """Retained state of one agent; its will says `online` false.

    `waiting`: for what its training waits, or how far it is.
    `data_plane`: its SuperNode is connected. `policy`: the version that is active, `releases` the
    newest ones and their trials. `cameras`: (height, width) in pixels.
    """

    agent_id: Identity
    online: bool = True
    state: Annotated[str, Field(max_length=32)]
    paused: bool = False
    data_plane: bool = False
    versions: Annotated[dict[Name, Name], Field(max_length=16)] = {}
    policy: Count | None = None
    releases: Annotated[tuple[ReleaseReport, ...], Field(max_length=MAX_REPORTED_RELEASES)] = ()
    episodes: Count = 0
    frames: Count = 0
    has_sketch: bool = False
    features: Features | None = None
    cameras: Annotated[dict[Name, tuple[int, int]], Field(max_length=16)] = {}
    training: TrainingReport = TrainingReport()
    held_out: Annotated[dict[Digest, HeldOutReport], Field(max_length=MAX_REPORTED_BASES)] = {}
    waiting: Annotated[tuple[Waiting, ...], Field(max_length=MAX_WAITING)] = ()
    disk_free_mb: Count | None = None
    faults: Annotated[tuple[ShortText, ...], Field(max_length=16)] = ()
    dropped: Annotated[dict[Name, Count], Field(max_length=16)] = {}


class Answer(Message):
    """An agent's word on a window. `base_digest` and `steps`: what it would hand over."""

    agent_id: Identity
    window_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    decision: Literal["join", "decline"]
    reason: ShortText | None = None
    base_digest: Digest | None = None
    steps: Count = 0


class AgentEvent(Message):
    """Something that happened once: a qualification, a refusal, a rollback."""

    agent_id: Identity
    name: Name
    detail: ShortText = ""
    version: Count | None = None


class Command(Message):
    """All that the coordinator may ask of an agent outside a window. None of it moves an arm.

    pause and resume: federated work. roll_back: the previous release becomes active. collect:
    publish status and counters now.
    """

    agent_id: Identity
    command: CommandWord


def decode[M: Message](model: type[M], payload: bytes) -> M:
    """Parse `payload` as `model`; raises MalformedMessage and nothing else."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise MalformedMessage(
            f"{model.__name__} of {len(payload)} bytes is over the limit of {MAX_PAYLOAD_BYTES}"
        )
    try:
        return model.model_validate_json(payload)
    except ValidationError as error:
        raise MalformedMessage(f"{model.__name__}: {first_complaint(error, 'payload')}") from error


class Drop(StrEnum):
    """Why a message was not acted on."""

    MALFORMED = "malformed"
    WRONG_IDENTITY = "wrong_identity"
    REPLAYED = "replayed"
    LATE = "late"
    EARLY = "early"


class ReplayGuard:
    """Admits each message of a stream once, in order, from its own identity, in its time.

    A stream is (sender, kind). Within a session the sequence must grow. A new session supersedes
    the former one for good; the last MAX_RETIRED sessions of a stream are remembered. `skew_s`
    is what the two clocks may differ by.
    """

    MAX_RETIRED = 64

    def __init__(self, skew_s: float = 5.0) -> None:
        self._skew_s = skew_s
        self._current: dict[tuple[str, str], tuple[str, int]] = {}
        self._retired: dict[tuple[str, str], OrderedDict[str, None]] = {}
        self.dropped: Counter[str] = Counter()

    def count(self, drop: Drop) -> Drop:
        """Count a drop that was decided elsewhere (a malformed payload)."""
        self.dropped[drop.value] += 1
        return drop

    def admit(
        self, message: Message, *, sender: str, claimed: str, now_unix_s: float
    ) -> Drop | None:
        """None when `message` may be acted on, else the reason, which is counted.

        `sender` is the identity that the topic belongs to, `claimed` the one inside the message.
        """
        if claimed != sender:
            return self.count(Drop.WRONG_IDENTITY)
        envelope = message.envelope
        if (
            envelope.expires_unix_s is not None
            and now_unix_s > envelope.expires_unix_s + self._skew_s
        ):
            return self.count(Drop.LATE)
        if envelope.issued_unix_s > now_unix_s + self._skew_s:
            return self.count(Drop.EARLY)
        stream = (sender, type(message).__name__)
        retired = self._retired.setdefault(stream, OrderedDict())
        if envelope.session in retired:
            return self.count(Drop.REPLAYED)
        current = self._current.get(stream)
        if current is not None:
            session, sequence = current
            if envelope.session == session and envelope.sequence <= sequence:
                return self.count(Drop.REPLAYED)
            if envelope.session != session:
                retired[session] = None
                while len(retired) > self.MAX_RETIRED:
                    retired.popitem(last=False)
        self._current[stream] = (envelope.session, envelope.sequence)
        return None
