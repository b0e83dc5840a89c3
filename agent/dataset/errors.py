"""What can go wrong between the journal and the dataset."""

from __future__ import annotations

from agent.errors import AgentError, BadJournal


class DatasetError(AgentError):
    """Base of this room's errors."""


class UnknownUnit(DatasetError, ValueError):
    """A number whose name does not tell its unit, so that its bounds are not known."""


class EpisodeRefused(DatasetError, BadJournal):
    """A sound journal whose episode does not fit the dataset."""


class IngestFailed(DatasetError, OSError):
    """Episodes could not be added to the dataset; the journals are kept."""
