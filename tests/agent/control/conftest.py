"""A controller on two arms as bytes, one a test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from arm_rig import ArmRig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[ArmRig]:
    made = ArmRig(tmp_path)
    yield made
    made.close()
