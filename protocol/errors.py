"""What can be wrong with what the two sides say to each other."""

from __future__ import annotations


class ProtocolError(Exception):
    """Root of everything this package raises."""


class MalformedMessage(ProtocolError, ValueError):
    """A payload that does not fit its model: not JSON, unknown or missing keys, out of bounds."""


class BadTopic(ProtocolError, ValueError):
    """A topic outside this fleet, or a fleet or robot name that cannot stand in a topic."""


class BadBundle(ProtocolError, ValueError):
    """An enrolment bundle that is incomplete or was damaged."""


class BadUpdate(ProtocolError, ValueError):
    """An encoded update that cannot be decoded within its limits."""


class BadTrials(ProtocolError, ValueError):
    """A report of closed-loop trials that does not fit its model, or does not add up."""
