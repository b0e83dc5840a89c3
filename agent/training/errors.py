"""What can go wrong between the trainer and the federation."""

from __future__ import annotations

from agent.errors import AgentError
from policy.errors import NoEpisodes


class TrainingError(AgentError):
    """Root of this package's errors."""


class BadExchangeFile(TrainingError, ValueError):
    """A file of the exchange does not hold what its name promises."""


class BadBase(TrainingError, ValueError):
    """A base whose digest, spec or normaliser does not fit its weights."""


class TooFewEpisodes(TrainingError, NoEpisodes):
    """Less is recorded than the configuration asks for."""

    def __init__(self, have: int, need: int) -> None:
        self.have, self.need = have, need
        super().__init__(f"{have} episodes recorded, {need} wanted")
