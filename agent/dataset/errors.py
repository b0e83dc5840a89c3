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


class BadForeignDataset(DatasetError, ValueError):
    """A dataset from elsewhere is not what it says, or does not fit this robot."""


class BadImportPlan(DatasetError, ValueError):
    """An import plan has no such row, or a row that cannot be used."""


class HubUnreachable(DatasetError, ConnectionError):
    """A dataset cannot be fetched from its hub."""


class ImportRunning(DatasetError, BlockingIOError):
    """Another process imports into this robot's journals just now."""
