"""What can go wrong between the journal, the dataset, the trainer and the federation."""

from agent.errors import AgentError


class TrainingError(AgentError):
    """Root of this package's errors."""


class BadExchangeFile(TrainingError, ValueError):
    """A file of the exchange does not hold what its name promises."""


class BadBase(TrainingError, ValueError):
    """A base whose digest, spec or normaliser does not fit its weights."""


class UnknownUnit(TrainingError, ValueError):
    """A number whose name does not tell its unit, so that its bounds are not known."""


class EpisodeRefused(TrainingError, ValueError):
    """An episode that cannot become part of the dataset; its journal stays where it is."""


class IngestFailed(TrainingError, OSError):
    """Episodes could not be added to the dataset; the journals are kept."""
