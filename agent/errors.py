"""What can go wrong in the agent. Each error is also the standard exception it resembles."""

from __future__ import annotations

from pathlib import Path


class AgentError(Exception):
    """Base of every error the agent raises. Its text is one clear line for the operator."""


class ConfigError(AgentError, ValueError):
    """The configuration file is missing, is not TOML, or has a key or value that is not allowed."""


class LinkClosed(AgentError, EOFError):
    """The process at the other end of a supervisor link is gone."""


class BadLinkMessage(AgentError, ValueError):
    """A line on a supervisor link is not a JSON object with a `kind`, or is too long."""


class JournalError(AgentError, OSError):
    """An episode could not be written, finished or discarded."""


class UnreadableJournal(JournalError):
    """The disk does not give a journal's bytes; ``path`` says which one's."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path.name}: {reason}")
        self.path = path


class BadJournal(AgentError, ValueError):
    """A file is not an episode journal, or its episode cannot be used; ``path`` says which."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path.name}: {reason}")
        self.path = path


class BadLedger(AgentError, OSError):
    """The list of a dataset's episodes is missing or damaged."""


class Refused(AgentError, RuntimeError):
    """A command does not fit the present state, or what it asks for is not possible now."""


class ProcessUnavailable(Refused):
    """A command needs a child process that is not running or does not answer."""


class BadArguments(AgentError, ValueError):
    """A request has a field that is missing, unknown or out of bounds."""


class OperationFailed(AgentError, RuntimeError):
    """An operation met what nobody foresaw; the robot is in fault, which names it."""


class AgentClientError(AgentError):
    """A request to the agent had no success."""


class AgentUnreachable(AgentClientError, ConnectionError):
    """No agent answers on the socket."""


class RequestFailed(AgentClientError, RuntimeError):
    """The agent answered a request with an error; the text is the agent's own line."""


class UnknownOperation(AgentClientError, AttributeError):
    """The operations table has no row of that verb."""


class NoTerminal(AgentError, EOFError):
    """A command has something to ask and standard input has ended."""
