"""What can go wrong in the twin, each also a standard exception."""

from __future__ import annotations


class TwinError(Exception):
    """Base of all that the twin raises."""


class TwinBusy(TwinError, BlockingIOError):
    """Another twin already lives in this folder."""


class BadCameraSpec(TwinError, ValueError):
    """A ``--camera`` argument that does not read NAME:WxH@FPS, or names no camera of the model."""


class BadRequest(TwinError, ValueError):
    """A control request that cannot be carried out; the text goes back to the caller."""


class OutOfReach(TwinError, ValueError):
    """A placement at which the arm cannot grasp the cube."""


class NoSuchTask(TwinError, LookupError):
    """A task that the twin does not know."""


class BadMemory(TwinError, ValueError):
    """A persisted control table or assembly file that is not what the twin wrote."""


class TwinProcessDied(TwinError, ChildProcessError):
    """One of the twin's processes ended by itself."""


class TornRead(TwinError, RuntimeError):
    """A shared block stayed half-written, so its writer must have died in the middle."""
