"""`armada` hands each command to its room, and says what there is when there is none."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from deploy.command import ROOMS, main


@pytest.mark.parametrize("room", sorted({module for module, _ in ROOMS.values()}))
def test_every_room_exists_and_has_a_main(room):
    assert callable(importlib.import_module(room).main)


def test_an_unknown_command_is_one_clear_line(capsys):
    assert main(["recrod"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "recrod" in error and "record" in error


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ROOMS)


def test_status_pays_for_no_learning_library():
    heavy = "('torch', 'lerobot', 'flwr', 'onnxruntime', 'mujoco')"
    code = f"import sys, agent.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
