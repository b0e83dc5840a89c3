"""What can be wrong with what is to be tried."""

from __future__ import annotations


class ClosedLoopError(Exception):
    """Base of this room's errors."""


class CannotTry(ClosedLoopError, ValueError):
    """A policy, sector or matrix that the twin cannot try; the text is one clear line."""
