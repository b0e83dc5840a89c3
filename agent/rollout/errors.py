"""What can go wrong between the control loop and a policy."""

from agent.errors import AgentError


class RolloutError(AgentError):
    """Base of this package's errors. Its text is one clear line for the operator."""


class BadFrame(RolloutError, ValueError):
    """Bytes on the inference socket are not a frame, or a frame is over its bounds."""


class InferenceGone(RolloutError, ConnectionError):
    """No inference process is connected, or it went away while it was asked."""


class ControlGone(RolloutError, ConnectionError):
    """The control process does not listen, or closed the inference socket."""


class InferenceLate(RolloutError, TimeoutError):
    """The inference process did not answer in time."""


class PolicyRefused(RolloutError, ValueError):
    """A policy does not fit: wrong digest, wrong features, wrong rate, or it cannot be loaded."""


class EpisodeRunning(RolloutError, RuntimeError):
    """Policies are swapped between episodes only."""


class NoSuchPolicy(RolloutError, LookupError):
    """The store has no policy of that name, or none is active."""


class StoreDamaged(RolloutError, ValueError):
    """A file of the policy store is not what the store wrote."""
