"""What the two Flower apps say to each other: message types, records, models.

A Flower message carries one JSON text (a model of this file) and, if the kind has one, one blob:
the encoded update of `protocol.update`, the sketch as JSON, or the keys of `protocol.episode_keys`.
Nothing else is read from a message.

| message type       | request             | blob down     | reply             | blob up      |
|--------------------|---------------------|---------------|-------------------|--------------|
| `query.statistics` | `StatisticsRequest` |               | `StatisticsReply` | sketch, JSON |
| `train`            | `TrainRequest`      |               | `Contribution`    | delta        |
| `query.install`    | `InstallRequest`    | base, float32 | `InstallReply`    | episode keys |

The blob travels as the raw data of a uint8 `Array` (Flower sends those in chunks of 5 MB, but a
ConfigRecord in one piece), and is never handed to `numpy.load`.
"""

from __future__ import annotations

from typing import Annotated, Any

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from pydantic import BaseModel, Field, JsonValue, ValidationError

from host.complaints import first_complaint
from protocol.contribution import WindowName
from protocol.eligibility import Terms
from protocol.errors import MalformedMessage
from protocol.fields import Count, Digest, WireModel
from protocol.update import Precision

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


class StatisticsRequest(WireModel):
    """Ask for the robot's mergeable sketch."""

    round: Count


class StatisticsReply(WireModel):
    """The sketch is the blob."""


class TrainRequest(WireModel):
    """Ask for what was gained since the base.

    `time_s` is how long the robot may work or wait before it answers, on its own clock. `steps`,
    `window_id` and `proximal_mu` are for work inside the window.
    """

    round: Count
    terms: Terms
    window_id: WindowName | None
    steps: Count | None
    proximal_mu: Annotated[float, Field(ge=0)]
    time_s: Annotated[float, Field(gt=0, le=86_400)]
    precision: Precision


class InstallRequest(WireModel):
    """Put the base in the blob in place. `info` is the agent's BaseInfo as JSON.

    merged_base: the base from which this robot's work went into the one that is sent, if any did.
    """

    round: Count
    merged_base: Digest | None
    base_digest: Digest
    info: dict[str, JsonValue]


class InstallReply(WireModel):
    """The base that is now in place. The blob: keys of all episodes ever trained on here."""

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
