"""What ends a motion."""

from __future__ import annotations

from agent.errors import AgentError


class MotionFault(AgentError, RuntimeError):
    """The motion must end and the pose be held. The text is one clear line."""


class FirstMoveRefused(AgentError, RuntimeError):
    """A source's first goal is too far from the arm; nothing was moved."""
