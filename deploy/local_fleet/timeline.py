"""When each robot and the coordinator did what. Pure: from notes and from the audit log."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

COORDINATOR = "coordinator"
# What a robot is doing, by the first word of what it says of itself, and the kind to draw.
KINDS = {
    "calibrating": "calibrate",
    "demonstrating": "demonstrate",
    "baseline": "train alone",
    "local": "train alone",
    "training": "train",
    "trial": "drive",
}


@dataclass(frozen=True)
class Span:
    """Something that lasted, or happened (`end_s` is `start_s`); seconds since the start."""

    lane: str
    kind: str
    start_s: float
    end_s: float
    label: str


def robot_spans(
    lane: str, notes: Sequence[tuple[float, str]], start_s: float, end_s: float
) -> list[Span]:
    """From (time, what it does from then on), oldest first; what is waiting is left blank.

    Neighbours of one kind become one span. Times are unix seconds.
    """
    found: list[Span] = []
    ends = [*(at for at, _ in notes[1:]), end_s]
    for (at, what), until in zip(notes, ends, strict=True):
        kind = KINDS.get(what.split(" ", 1)[0])
        if kind is None:
            continue
        begin, end = at - start_s, until - start_s
        if found and found[-1].kind == kind and begin - found[-1].end_s < 1e-6:
            found[-1] = Span(lane, kind, found[-1].start_s, end, kind)
        else:
            found.append(Span(lane, kind, begin, end, kind))
    return found


def coordinator_spans(entries: Iterable[Mapping[str, Any]], start_s: float) -> list[Span]:
    """Windows, rounds and releases out of audit entries, oldest first."""
    found: list[Span] = []
    opened: dict[str, float] = {}
    for entry in entries:
        at, fields = float(entry["unix_s"]) - start_s, entry["fields"]
        match entry["kind"]:
            case "window_opened":
                opened[fields["window_id"]] = at
            case "window_closed":
                begin = opened.pop(fields["window_id"], at)
                label = f"window of round {fields['round']}: {fields['outcome']}"
                found.append(Span(COORDINATOR, "window", begin, at, label))
            case "round":
                begin = max(0.0, at - float(fields["seconds"]))
                label = f"{fields['kind']} round {fields['round']}, {len(fields['members'])} robots"
                found.append(Span(COORDINATOR, "round", begin, at, label))
            case "released":
                label = f"release {fields['version']} of round {fields['round']}"
                found.append(Span(COORDINATOR, "release", at, at, label))
            case "release_refused":
                label = f"round {fields['round']} refused: {fields['reason']}"
                found.append(Span(COORDINATOR, "refused", at, at, label))
    return found


def audit_entries(log: bytes) -> list[dict[str, Any]]:
    """The whole lines of an audit log; the coordinator itself verifies its chain."""
    whole = log[: log.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()]
