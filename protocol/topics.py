"""Names on the broker: `armada/v1/<fleet>/...`, who writes what, and the way back.

The broker's access list (coordinator/identity/mosquitto.py) is written from the same builders, so
that a topic has one spelling.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from protocol.errors import BadTopic

ROOT = "armada/v1"

# An identity stands in a topic, a certificate's CN, a file name and a shell line.
IDENTITY_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
_IDENTITY = re.compile(IDENTITY_PATTERN)

COORDINATOR_IDENTITY = "coordinator"


class Kind(StrEnum):
    """The last word of a topic."""

    WINDOW = "window"
    RELEASE = "release"
    STATUS = "status"
    ANSWER = "answer"
    EVENT = "event"
    COMMAND = "command"


FLEET_KINDS = (Kind.WINDOW, Kind.RELEASE)
AGENT_KINDS = (Kind.STATUS, Kind.ANSWER, Kind.EVENT, Kind.COMMAND)


@dataclass(frozen=True)
class Address:
    """What a topic means: its kind, and the agent it belongs to (None for the fleet's own)."""

    kind: Kind
    agent_id: str | None


def check_identity(name: str, what: str = "robot id") -> str:
    """Return `name` when it can be an identity; raises BadTopic otherwise."""
    if not _IDENTITY.fullmatch(name):
        raise BadTopic(
            f"{what} {name!r} must be 1 to 63 letters, digits, '.', '_' or '-', "
            "starting with a letter or a digit"
        )
    return name


def check_agent_id(name: str) -> str:
    """Like check_identity, and not the coordinator's own name."""
    if check_identity(name).lower() == COORDINATOR_IDENTITY:
        raise BadTopic(f"robot id {name!r} is reserved for the coordinator")
    return name


@dataclass(frozen=True)
class Topics:
    """Builders for one fleet. Raises BadTopic for names that cannot stand in a topic."""

    fleet: str

    def __post_init__(self) -> None:
        check_identity(self.fleet, "fleet")

    @property
    def base(self) -> str:
        return f"{ROOT}/{self.fleet}"

    def window(self) -> str:
        return f"{self.base}/{Kind.WINDOW}"

    def release(self) -> str:
        return f"{self.base}/{Kind.RELEASE}"

    def status(self, agent_id: str) -> str:
        return self.of_agent(agent_id, Kind.STATUS)

    def answer(self, agent_id: str) -> str:
        return self.of_agent(agent_id, Kind.ANSWER)

    def event(self, agent_id: str) -> str:
        return self.of_agent(agent_id, Kind.EVENT)

    def command(self, agent_id: str) -> str:
        return self.of_agent(agent_id, Kind.COMMAND)

    def of_agent(self, agent_id: str, kind: Kind) -> str:
        if kind not in AGENT_KINDS:
            raise BadTopic(f"{kind} is not an agent's topic")
        return f"{self.base}/agents/{check_agent_id(agent_id)}/{kind}"

    def of_every_agent(self, kind: Kind) -> str:
        """The subscription that matches `kind` of all agents."""
        if kind not in AGENT_KINDS:
            raise BadTopic(f"{kind} is not an agent's topic")
        return f"{self.base}/agents/+/{kind}"

    def parse(self, topic: str) -> Address:
        """What `topic` means in this fleet; raises BadTopic for anything else."""
        prefix = self.base + "/"
        if not topic.startswith(prefix):
            raise BadTopic(f"topic {topic!r} is not under {self.base}")
        parts = topic.removeprefix(prefix).split("/")
        match parts:
            case [kind] if kind in FLEET_KINDS:
                return Address(Kind(kind), None)
            case ["agents", agent_id, kind] if kind in AGENT_KINDS:
                return Address(Kind(kind), check_agent_id(agent_id))
            case _:
                raise BadTopic(f"topic {topic!r} is none of ours")
