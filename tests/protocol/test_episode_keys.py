"""Keys tell episodes apart to the fleet, and nothing to anybody else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.episode_keys import KEY_BYTES, episode_key, pack_keys, unpack_keys
from protocol.errors import MalformedMessage

DIGESTS = st.binary(min_size=32, max_size=32).map(bytes.hex)


@given(DIGESTS, DIGESTS, DIGESTS)
def test_a_key_is_of_one_episode_and_one_fleet(secret: str, one: str, other: str) -> None:
    assert episode_key(secret, one) == episode_key(secret, one)
    assert (episode_key(secret, one) == episode_key(secret, other)) == (one == other)
    assert (episode_key(secret, one) == episode_key(other, one)) == (secret == other)


@given(st.lists(st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES).map(bytes.hex)))
def test_keys_come_back_as_they_were_packed(keys: list[str]) -> None:
    assert unpack_keys(pack_keys(keys)) == tuple(keys)


@pytest.mark.parametrize("blob", [b"1234567", b"x" * 8 * 100_001])
def test_what_is_no_list_of_keys_is_refused(blob: bytes) -> None:
    with pytest.raises(MalformedMessage, match="no list of episode keys"):
        unpack_keys(blob)
