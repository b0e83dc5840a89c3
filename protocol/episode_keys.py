"""Keys by which a fleet tells episodes apart without seeing them, to prove that none leaked.

A key is the first 64 bits of an HMAC-SHA256 over what an episode's numbers hash to, under a secret
that only the fleet's members have. Two robots that hold the same episode give the same key; who is
not of the fleet cannot try out whose data was trained on.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

from protocol.errors import MalformedMessage

KEY_BYTES = 8
MAX_TRAINED_EPISODES = 100_000  # of one robot
NO_FLEET = "0" * 64  # the secret of a robot that trains alone: its keys go nowhere
MAX_KEYS_BYTES = KEY_BYTES * MAX_TRAINED_EPISODES

EpisodeKey = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
FleetSecret = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def episode_key(secret: str, content_digest: str) -> str:
    """16 hex digits; `secret` and `content_digest` are 64 each."""
    digest = hmac.digest(bytes.fromhex(secret), bytes.fromhex(content_digest), "sha256")
    return digest[:KEY_BYTES].hex()


def pack_keys(keys: Iterable[str]) -> bytes:
    """The newest MAX_TRAINED_EPISODES of them, eight bytes each."""
    return b"".join(bytes.fromhex(key) for key in list(keys)[-MAX_TRAINED_EPISODES:])


def unpack_keys(blob: bytes) -> tuple[str, ...]:
    """What `pack_keys` packed. Raises MalformedMessage."""
    if len(blob) % KEY_BYTES or len(blob) > MAX_KEYS_BYTES:
        raise MalformedMessage(f"{len(blob)} bytes are no list of episode keys")
    return tuple(blob[place : place + KEY_BYTES].hex() for place in range(0, len(blob), KEY_BYTES))
