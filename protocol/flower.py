"""What the two Flower apps say to each other: message types, records, models.

A Flower message carries one JSON text (a model of this file) and, if the kind has one, one blob:
the encoded update of `protocol.update`, or the sketch as JSON. Nothing else is read from a message.

| message type       | request             | blob down     | reply             | blob up      |
|--------------------|---------------------|---------------|-------------------|--------------|
| `query.statistics` | `StatisticsRequest` |               | `StatisticsReply` | sketch, JSON |
| `train`            | `TrainRequest`      |               | `TrainReply`      | delta        |
| `query.install`    | `InstallRequest`    | base, float32 | `InstallReply`    |              |

The blob travels as the raw data of a uint8 `Array` (Flower sends those in chunks of 5 MB, but a
ConfigRecord in one piece), and is never handed to `numpy.load`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from host.complaints import first_complaint
from protocol.errors import MalformedMessage

STATISTICS = "query.statistics"
TRAIN = "train"
INSTALL = "query.install"

TEXT_RECORD = "armada"
TEXT_KEY = "json"
BLOB_RECORD = "armada.blob"
BLOB_KEY = "blob"
BLOB_STYPE = "armada.bytes"

MAX_TEXT_BYTES = 1 << 20
MAX_SKETCH_BYTES = 4 << 20
MAX_REASON_CHARACTERS = 300

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=2**53)]
Precision = Literal["float16", "float32"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class StatisticsRequest(_Model):
    """Ask for the robot's mergeable sketch."""

    round: Count


class StatisticsReply(_Model):
    """The sketch is the blob."""


class TrainRequest(_Model):
    """Ask for what was gained since the base.

    `time_s` is how long the robot may work or wait before it answers, on its own clock. `steps`
    and `window_id` belong to `local_work="window"`.
    """

    round: Count
    base_digest: Digest
    local_work: Literal["anytime", "window"]
    window_id: str | None
    steps: Count | None
    proximal_mu: Annotated[float, Field(ge=0)]
    time_s: Annotated[float, Field(gt=0, le=86_400)]
    precision: Precision


class TrainReply(_Model):
    """What the delta in the blob was gained from. Claims of the robot, judged by the gate."""

    base_digest: Digest
    base_round: Count
    steps: int
    examples: int
    loss: float | None
    window_id: str | None
    sequence: int


class InstallRequest(_Model):
    """Put the base in the blob in place. `info` is the agent's BaseInfo as JSON.

    merged_base: the base from which this robot's work went into the one that is sent, if any did.
    """

    round: Count
    merged_base: Digest | None
    base_digest: Digest
    info: dict[str, JsonValue]


class InstallReply(_Model):
    """The base that is now in place."""

    base_digest: Digest


def pack(model: BaseModel, blob: bytes | None = None) -> RecordDict:
    """One model and at most one blob as the content of a Flower message."""
    records: dict[str, Any] = {
        TEXT_RECORD: ConfigRecord({TEXT_KEY: model.model_dump_json()}),
    }
    if blob is not None:
        array = Array(dtype="uint8", shape=(len(blob),), stype=BLOB_STYPE, data=blob)
        records[BLOB_RECORD] = ArrayRecord({BLOB_KEY: array})
    return RecordDict(records)


def unpack[ModelT: BaseModel](
    model: type[ModelT], content: RecordDict, max_blob_bytes: int
) -> tuple[ModelT, bytes]:
    """The model and the blob (empty if there is none) of a Flower message.

    Raises MalformedMessage if a record is missing, does not fit, or the blob is too large.
    """
    if extra := set(content) - {TEXT_RECORD, BLOB_RECORD}:
        raise MalformedMessage(f"unknown record in a Flower message: {sorted(extra)[0]!r:.80}")
    texts = content.config_records.get(TEXT_RECORD)
    text = None if texts is None else texts.get(TEXT_KEY)
    if not isinstance(text, str):
        raise MalformedMessage(f"Flower message has no {TEXT_RECORD}/{TEXT_KEY} text")
    if len(text) > MAX_TEXT_BYTES:
        raise MalformedMessage(f"Flower message text is longer than {MAX_TEXT_BYTES} bytes")
    try:
        parsed = model.model_validate_json(text)
    except ValidationError as error:
        raise MalformedMessage(f"{model.__name__}: {first_complaint(error)}") from error
    return parsed, _blob(content, max_blob_bytes)


def _blob(content: RecordDict, max_bytes: int) -> bytes:
    arrays = content.array_records.get(BLOB_RECORD)
    if arrays is None:
        return b""
    array = arrays.get(BLOB_KEY)
    if array is None or len(arrays) != 1 or array.stype != BLOB_STYPE:
        raise MalformedMessage(f"{BLOB_RECORD} does not hold one {BLOB_KEY} of {BLOB_STYPE}")
    if len(array.data) > max_bytes:
        raise MalformedMessage(f"blob of {len(array.data)} bytes; at most {max_bytes} are allowed")
    return bytes(array.data)
