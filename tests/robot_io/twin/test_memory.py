"""What a twin keeps between two runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from robot_io.sts3215 import EEPROM_END, MAX_HOMING_OFFSET
from robot_io.twin.errors import BadMemory
from robot_io.twin.memory import SERVO_IDS, EepromKeeper, load_assembly, load_eeprom
from robot_io.twin.shared import ARMS


def test_an_assembly_is_drawn_once_and_kept(tmp_path: Path) -> None:
    first = load_assembly(tmp_path, seed=5)
    assert load_assembly(tmp_path, seed=5) == first
    assert load_assembly(tmp_path, seed=6) == first, "the arms stay as they were put together"


def test_different_seeds_make_different_arms(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    one = load_assembly(tmp_path / "a", seed=1)
    two = load_assembly(tmp_path / "b", seed=2)
    assert one.centre_tick != two.centre_tick
    assert one.centre_tick["follower"] != one.centre_tick["leader"]


def test_every_arm_can_be_homed_even_a_little_off_its_middle(tmp_path: Path) -> None:
    for seed in range(50):
        folder = tmp_path / str(seed)
        folder.mkdir()
        assembly = load_assembly(folder, seed)
        for arm in ARMS:
            for tick in assembly.centre_tick[arm]:
                for slip in (-50, 50):
                    assert abs(tick + slip - 2047) <= MAX_HOMING_OFFSET


def test_eeprom_survives_and_only_the_newest_counts(tmp_path: Path) -> None:
    assert load_eeprom(tmp_path, "leader") == {}
    keeper = EepromKeeper(tmp_path)
    for value in range(10):
        keeper.keep("leader", {place: bytes([value]) * EEPROM_END for place in SERVO_IDS})
    keeper.close()
    assert load_eeprom(tmp_path, "leader") == dict.fromkeys(SERVO_IDS, b"\t" * EEPROM_END)
    assert [path.name for path in tmp_path.iterdir()] == ["leader.eeprom.json"]


@pytest.mark.parametrize("text", ["", "[]", '{"1": "zz"}', '{"1": "00"}', '{"x": "00"}'])
def test_a_spoilt_eeprom_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "follower.eeprom.json").write_text(text)
    with pytest.raises(BadMemory, match=r"follower\.eeprom\.json"):
        load_eeprom(tmp_path, "follower")


@pytest.mark.parametrize("text", ["{", "{}", '{"seed": 1, "centre_tick": {"follower": [1]}}'])
def test_a_spoilt_assembly_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "assembly.json").write_text(text)
    with pytest.raises(BadMemory, match=r"assembly\.json"):
        load_assembly(tmp_path, 1)
