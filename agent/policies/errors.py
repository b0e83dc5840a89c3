"""What can go wrong with a policy on this robot's disk, or on its way there."""

from __future__ import annotations

from agent.errors import AgentError


class StoreError(AgentError):
    """Base of this room's errors. Its text is one clear line for the operator."""


class PolicyRefused(StoreError, ValueError):
    """A policy does not fit: wrong digest, wrong features, wrong rate, or it cannot be loaded."""


class PolicyDamaged(PolicyRefused):
    """A file is not what its manifest says; the same policy, fetched again, may well fit."""


class NoSuchPolicy(StoreError, LookupError):
    """The store has no policy of that name, or none is active."""


class StoreDamaged(StoreError, ValueError):
    """A file of the policy store is not what the store wrote."""


class StoreUnusable(StoreError, OSError):
    """The disk does not do its part."""


class ReleaseRefused(StoreError, ValueError):
    """A release that must not be used: a wrong digest, or it failed its qualification."""


class DownloadDamaged(ReleaseRefused):
    """What came does not have its digest: changed on the way or on the server."""


class DownloadInterrupted(StoreError, ConnectionError):
    """The download stopped on the way; it will be resumed."""
