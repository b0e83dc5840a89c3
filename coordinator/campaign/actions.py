"""What the campaign asks its shell to do, and what comes back from a build. Plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from coordinator.campaign.state import Base, RoundKind, WindowRecord

# Pushing a base to robots that answer must not hold up the next window for long.
INSTALL_S = 20.0


@dataclass(frozen=True)
class RunRound:
    """Run one Flower round over `members`; `seconds` is what it may take."""

    kind: RoundKind
    round: int
    members: tuple[str, ...]
    seconds: float
    window_id: str | None = None


@dataclass(frozen=True)
class BuildBase:
    """Merge the sketches, build the normaliser and base 0."""


@dataclass(frozen=True)
class Announce:
    """Say the present window, open or closed, to the fleet."""

    window: WindowRecord
    closed: bool


@dataclass(frozen=True)
class ExportRelease:
    """Export, check and publish the state's `export`."""


@dataclass(frozen=True)
class Note:
    """One entry for the audit log."""

    kind: str
    fields: dict[str, Any] = field(default_factory=dict)


Action = RunRound | BuildBase | Announce | ExportRelease | Note


@dataclass(frozen=True)
class BuiltBase:
    """What the build job made."""

    base: Base
    spec: dict[str, Any]
    normalizer: dict[str, Any]
    normalizer_digest: str
