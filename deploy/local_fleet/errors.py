"""What can go wrong in a local fleet."""

from __future__ import annotations


class LocalFleetError(Exception):
    """Anything that keeps the demo from completing its walks."""


class ProcessDied(LocalFleetError, ChildProcessError):
    """A process of the fleet ended by itself."""


class StepTimeout(LocalFleetError, TimeoutError):
    """A step of the demo took longer than it may."""


class TwinRefused(LocalFleetError, RuntimeError):
    """The twin's control socket answered with an error."""


class Interrupted(LocalFleetError, InterruptedError):
    """The person asked to stop."""
