"""Which SHA-256s are computed, by the size of what is hashed."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import pytest


def count_hashes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of bytes of each hash from now on, by hashlib.sha256 or hashlib.file_digest."""
    sizes: list[int] = []
    sha256, file_digest = hashlib.sha256, hashlib.file_digest

    class Counted:
        def __init__(self, content: bytes = b"") -> None:
            self._digest = sha256(content)
            self._size = len(content)

        def update(self, content: bytes) -> None:
            self._digest.update(content)
            self._size += len(content)

        def hexdigest(self) -> str:
            sizes.append(self._size)
            return self._digest.hexdigest()

    def counted_file(stream: Any, name: str) -> Any:
        sizes.append(os.fstat(stream.fileno()).st_size)
        return file_digest(stream, name)

    monkeypatch.setattr(hashlib, "sha256", Counted)
    monkeypatch.setattr(hashlib, "file_digest", counted_file)
    return sizes
