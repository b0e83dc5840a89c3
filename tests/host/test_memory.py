from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from host.memory import MemoryReserve, available_bytes, resident_bytes

SIZES = st.integers(0, 1 << 40)


def test_what_is_left_is_what_the_kernel_says(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       24000000 kB\nMemAvailable:    1048576 kB\n")
    assert available_bytes(meminfo) == 1 << 30
    meminfo.write_text("MemTotal:       24000000 kB\n")
    assert available_bytes(meminfo) is None
    assert available_bytes(tmp_path / "none") is None
    here = available_bytes()
    assert here is None or here > 0


def test_what_a_process_holds_and_nothing_for_one_that_is_not_there() -> None:
    assert resident_bytes(os.getpid()) > 1 << 20
    assert resident_bytes(2**22 + 7) == 0


@given(below=SIZES, left=SIZES, wanted=SIZES)
def test_what_takes_the_room_there_is_need_not_give_it_back_at_once(
    below: int, left: int, wanted: int
) -> None:
    reserve = MemoryReserve(below)
    if reserve.has_room(left, wanted):
        assert not reserve.is_short(left - wanted)
    assert not MemoryReserve(0).is_short(left)
    assert not reserve.is_short(None)
    assert reserve.has_room(None, wanted)


def test_beyond_its_limit_a_process_is_told_so_and_not_killed() -> None:
    program = """
import sys
from host.memory import limit_memory
limit_memory(256 << 20)
try:
    held = bytearray(400 << 20)
except MemoryError:
    sys.exit(7)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 7
