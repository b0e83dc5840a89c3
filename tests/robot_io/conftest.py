"""Six servos as bytes, one set a test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_servos import FakeServos


@pytest.fixture
def servos() -> Iterator[FakeServos]:
    fake = FakeServos()
    yield fake
    fake.unplug()
