"""How a process of the agent begins and ends: 2 with one line for what the operator must mend."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from agent.child.entry import STOPPED, TO_BE_MENDED, serve_as_child
from agent.child.link import ChildLink
from agent.config import AgentConfig
from agent.errors import ConfigError, LinkClosed

GOOD = '[robot]\nport = "/dev/ttyACM0"\n[paths]\nstate_dir = "state"\n'


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text(GOOD)
    return path


def test_it_serves_with_the_configuration_it_was_given(config_path: Path) -> None:
    seen: list[Path] = []

    def serve(config: AgentConfig, path: Path, _link: ChildLink) -> None:
        seen.extend([config.state_dir, path])

    assert serve_as_child(serve, ["--config", str(config_path)]) == STOPPED
    assert seen == [config_path.parent / "state", config_path]


def test_the_end_of_the_supervisor_is_an_orderly_end(config_path: Path) -> None:
    def serve(*_: object) -> None:
        raise LinkClosed("the supervisor is gone")

    assert serve_as_child(serve, ["--config", str(config_path)]) == STOPPED


def test_a_bad_configuration_is_one_line_and_nothing_is_begun(
    config_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config_path.write_text(GOOD + "[control]\nfsp = 1\n")

    def serve(*_: object) -> None:
        raise AssertionError("begun")

    with caplog.at_level(logging.ERROR):
        assert serve_as_child(serve, ["--config", str(config_path)]) == TO_BE_MENDED
    assert "control.fsp" in caplog.text


def test_what_the_operator_must_mend_is_told_without_a_traceback(
    config_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def serve(*_: object) -> None:
        raise ConfigError("there is no [federation] table")

    with caplog.at_level(logging.ERROR):
        assert serve_as_child(serve, ["--config", str(config_path)]) == TO_BE_MENDED
    assert "no [federation] table" in caplog.text and "Traceback" not in caplog.text


def test_a_bug_is_not_hidden(config_path: Path) -> None:
    def serve(*_: object) -> None:
        raise TypeError("a bug")

    with pytest.raises(TypeError):
        serve_as_child(serve, ["--config", str(config_path)])
