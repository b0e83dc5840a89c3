"""What can go wrong between the trainer and the federation."""

from __future__ import annotations

from agent.errors import AgentError


class TrainingError(AgentError):
    """Root of this package's errors."""


class BadExchangeFile(TrainingError, ValueError):
    """A file of the exchange does not hold what its name promises."""


class BadBase(TrainingError, ValueError):
    """A base whose digest, spec or normaliser does not fit its weights."""
