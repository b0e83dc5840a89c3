"""`armada config`, and the reference that is made from the models."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.configuration import app, render_reference

DOCS = Path(__file__).parents[2] / "docs"
GOOD = '[robot]\nport = "/dev/ttyACM0"\n[paths]\nstate_dir = "state"\n'


@pytest.fixture
def agent_toml(tmp_path: Path) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text(GOOD)
    return path


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def test_the_reference_in_the_docs_is_the_one_of_the_models() -> None:
    assert (DOCS / "configuration.md").read_text() == render_reference()


def test_every_key_of_the_reference_has_a_meaning() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", render_reference(), re.MULTILINE)
    assert len(rows) > 80
    assert [key for key, meaning in rows if not meaning.strip()] == []


def test_show_prints_each_value_with_its_origin(agent_toml: Path) -> None:
    code, out, _ = run("show", "--config", str(agent_toml))
    assert code == 0
    assert re.search(rf'robot.port +"/dev/ttyACM0" +\({re.escape(str(agent_toml))}\)', out)
    assert re.search(r"control.fps +30.0 +\(default\)", out)


def test_show_for_a_machine_is_json(agent_toml: Path) -> None:
    code, out, _ = run("show", "--json", "--config", str(agent_toml))
    assert code == 0
    assert json.loads(out)["control.fps"] == {"value": 30.0, "origin": "default"}


def test_check_says_what_is_wrong_in_one_line_and_ends_with_2(agent_toml: Path) -> None:
    assert run("check", "--config", str(agent_toml))[0] == 0
    agent_toml.write_text(GOOD + "[control]\nfsp = 30\n")
    code, _, err = run("check", "--config", str(agent_toml))
    assert code == 2
    assert "unknown key control.fsp; did you mean fps?" in err
    code, out, _ = run("check", "--json", "--config", str(agent_toml))
    assert code == 2
    assert json.loads(out)["ok"] is False


def test_a_coordinators_folder_is_known_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "coordinator.toml").write_text("[campaign]\nround = 10\n")
    code, _, err = run("check", "--config", str(tmp_path))
    assert code == 2
    assert "did you mean rounds?" in err
