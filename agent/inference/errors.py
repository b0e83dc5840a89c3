"""What can go wrong between the control loop and the process that runs the policy."""

from __future__ import annotations

from agent.errors import AgentError


class InferenceError(AgentError):
    """Base of this room's errors. Its text is one clear line for the operator."""


class BadFrame(InferenceError, ValueError):
    """Bytes on the inference socket are not a message, or a message is over its bounds."""


class InferenceGone(InferenceError, ConnectionError):
    """No inference process is connected, or it went away while it was asked."""


class ControlGone(InferenceError, ConnectionError):
    """The control process does not listen, or closed the inference socket."""


class InferenceLate(InferenceError, TimeoutError):
    """The inference process did not answer in time."""


class EpisodeRunning(InferenceError, RuntimeError):
    """Policies are swapped between episodes only."""
