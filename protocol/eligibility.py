"""Whether work counts: of which base it is, how stale, merged already, or nothing gained. Pure.

Both sides ask here, with the same terms: the robot before it joins and before it uploads, the
coordinator when it opens a window, hears an answer, judges a reply, or looks for robots that need
a base.

Staleness counts bases: how many came after the one that the work was gained on. That is what the
weight 1/sqrt(1 + staleness) is defined over (FedBuff, Nguyen et al. 2022: server updates). Round
numbers do not measure it: a round that failed makes no base, and no work older.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

from pydantic import Field, model_validator

from protocol.fields import Count, Digest, LocalWork, WireModel

# What both sides can tell from an unknown base; bounds a window's message (67 bytes each).
MAX_BASES = 32


class Ineligible(StrEnum):
    """Why work does not count."""

    UNKNOWN_BASE = "unknown_base"  # none, another policy's, or older than the last MAX_BASES
    STALE = "stale_base"
    MERGED = "already_merged"
    NOTHING_GAINED = "nothing_gained"


class Terms(WireModel):
    """What a window takes. `bases`: digests, newest first; the first is the present base.

    Work inside a window ("window") begins from the present base; "anytime" work may be of a base
    up to `max_staleness` older, and counts from `min_steps` steps on.
    """

    bases: Annotated[tuple[Digest, ...], Field(min_length=1, max_length=MAX_BASES)]
    local_work: LocalWork = "anytime"
    max_staleness: Annotated[int, Field(ge=0, lt=MAX_BASES)] = 0
    min_steps: Annotated[Count, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _synchronous(self) -> Terms:
        if self.local_work == "window" and (self.max_staleness, self.min_steps) != (0, 1):
            raise ValueError('local_work "window" takes the present base and any number of steps')
        return self

    @property
    def base_digest(self) -> str:
        """Digest of the present base."""
        return self.bases[0]


def staleness(base_digest: str | None, bases: Sequence[str]) -> int | None:
    """How many of `bases` (newest first) came after this one; None if it is not among them."""
    return bases.index(base_digest) if base_digest in bases else None


def judge_base(base_digest: str | None, merged_base: str | None, terms: Terms) -> Ineligible | None:
    """Why no work on this base counts, or None.

    `merged_base`: the base from which this robot's work was last merged. While that is the present
    base, nothing of it was merged: the last round failed.
    """
    age = staleness(base_digest, terms.bases)
    if age is None:
        return Ineligible.UNKNOWN_BASE
    if age > terms.max_staleness:
        return Ineligible.STALE
    if age > 0 and base_digest == merged_base:
        return Ineligible.MERGED
    return None


def judge_work(
    base_digest: str | None, steps: int, merged_base: str | None, terms: Terms
) -> Ineligible | None:
    """Why what was gained does not count, or None."""
    refusal = judge_base(base_digest, merged_base, terms)
    if refusal is None and steps < terms.min_steps:
        return Ineligible.NOTHING_GAINED
    return refusal


def judge_join(
    base_digest: str | None, steps: int, merged_base: str | None, terms: Terms
) -> Ineligible | None:
    """Why a robot cannot join, or None. Work inside the window is still to be done."""
    if terms.local_work == "window":
        return judge_base(base_digest, merged_base, terms)
    return judge_work(base_digest, steps, merged_base, terms)


def needs_base(base_digest: str | None, steps: int, merged_base: str | None, terms: Terms) -> bool:
    """Whether a robot gets the present base: it has another, and nothing on it can ever count.

    Any step counts here: below `min_steps` there may still be enough before the base is stale.
    """
    if base_digest == terms.base_digest:
        return False
    return steps == 0 or judge_base(base_digest, merged_base, terms) is not None


def explain(refusal: Ineligible, base_digest: str | None, steps: int, terms: Terms) -> str:
    """One line for an answer, a reply and the audit log."""
    base = (base_digest or "none")[:12]
    match refusal:
        case Ineligible.UNKNOWN_BASE:
            return f"its base {base} is not one of this campaign"
        case Ineligible.STALE:
            age = staleness(base_digest, terms.bases)
            return f"its base is {age} bases old; at most {terms.max_staleness} are allowed"
        case Ineligible.MERGED:
            return f"its work from base {base} was merged already"
        case Ineligible.NOTHING_GAINED:
            return (
                f"nothing gained yet: {steps} steps since its base, of at least {terms.min_steps}"
            )
