"""What can go wrong between the journal and the dataset."""

from __future__ import annotations

from agent.errors import AgentError


class DatasetError(AgentError):
    """Base of this room's errors."""


class UnknownUnit(DatasetError, ValueError):
    """A number whose name does not tell its unit, so that its bounds are not known."""


class EpisodeRefused(DatasetError, ValueError):
    """An episode that cannot become part of the dataset; its journal stays where it is."""


class IngestFailed(DatasetError, OSError):
    """Episodes could not be added to the dataset; the journals are kept."""
