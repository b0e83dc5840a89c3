"""What the federation process must remember over a restart."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from agent.policies.release_states import ReleaseState
from host.files import write_durable


class FederationMemory(BaseModel):
    """`told`: manifest digest -> the release's state that the coordinator was told of last."""

    model_config = ConfigDict(extra="forbid")

    paused: bool = False
    told: dict[str, ReleaseState] = {}

    @classmethod
    def load(cls, path: Path) -> FederationMemory:
        """A fresh memory when there is none, or when it cannot be read: nothing is lost by it."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return cls()

    def save(self, path: Path) -> None:
        """Write durably. Raises OSError."""
        write_durable(path, self.model_dump_json().encode())
