"""What can go wrong in the federation processes beside the agent."""

from __future__ import annotations

from agent.errors import AgentError


class FederationError(AgentError):
    """Base of what the Flower side of an agent raises."""


class FlowerVersionError(FederationError, ImportError):
    """The installed flwr is not the one version that this package was written against."""


class RuntimeRefused(FederationError, PermissionError):
    """The SuperNode beside us does not accept our client."""


class RequestDeclined(FederationError, RuntimeError):
    """A request that this robot declines; the text is what the coordinator is told."""


class SuperNodeFailed(FederationError, ConnectionError):
    """The SuperNode could not be started or could not reach its SuperLink."""
