"""What the federation process must remember over a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from host.files import write_durable

MAX_HANDLED = 64


class FederationMemory(BaseModel):
    """`handled`: manifest digest -> how that release ended, oldest first. Never tried again."""

    model_config = ConfigDict(extra="forbid")

    paused: bool = False
    handled: dict[str, Literal["active", "refused"]] = {}

    @classmethod
    def load(cls, path: Path) -> FederationMemory:
        """A fresh memory when there is none, or when it cannot be read: nothing is lost by it."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return cls()

    def save(self, path: Path) -> None:
        """Write durably. Raises OSError."""
        while len(self.handled) > MAX_HANDLED:
            self.handled.pop(next(iter(self.handled)))
        write_durable(path, self.model_dump_json().encode())
