"""What can go wrong between the coordinator and Flower."""

from __future__ import annotations

from coordinator.errors import CoordinatorError


class FederationError(CoordinatorError):
    """Base of what the Flower side of the coordinator raises."""


class FlowerVersionError(FederationError, ImportError):
    """The installed flwr is not the one version that this package was written against."""


class SuperLinkUnreachable(FederationError, ConnectionError):
    """No SuperLink answers at the address, or TLS with it fails."""


def unreachable(address: str, why: str) -> SuperLinkUnreachable:
    """The one line for a SuperLink that does not answer."""
    return SuperLinkUnreachable(
        f"no SuperLink answers at {address} ({why}); start `armada coordinator superlink`"
    )


class SuperLinkRefused(FederationError, PermissionError):
    """The SuperLink answered, and said no."""


class RoundFailed(FederationError, RuntimeError):
    """A round that cannot give an aggregate; the text is the reason in the round's result."""
