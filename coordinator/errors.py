"""What can go wrong in the coordinator."""

from __future__ import annotations


class CoordinatorError(Exception):
    """Root of everything this package raises."""


class ConfigError(CoordinatorError, ValueError):
    """coordinator.toml is missing, unreadable or holds something that is not allowed."""


class EnrolmentError(CoordinatorError, ValueError):
    """A robot cannot be enrolled, or the folder is not an initialised coordinator."""


class AuditBroken(CoordinatorError, ValueError):
    """The audit log does not chain: a line was changed, removed or put in."""


class StateError(CoordinatorError, ValueError):
    """Durable campaign state cannot be read or does not fit the configuration."""


class ExportFailed(CoordinatorError, RuntimeError):
    """A job that builds or exports a policy failed; the message is its last line."""
