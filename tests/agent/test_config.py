"""The configuration file: what is wrong, where, and what is allowed, in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.config import load_config
from agent.errors import ConfigError

GOOD = '[robot]\nport = "/dev/ttyACM0"\n[paths]\nstate_dir = "state"\n'
CAMERA = "[cameras.overhead]\nsource = 0\n"
HOMOGRAPHY = "homography = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "agent.toml"
    path.write_text(text)
    return path


def test_a_small_file_is_enough_and_paths_are_relative_to_it(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD + '[federation]\nbundle = "bundle"\n'))
    assert config.state_dir == tmp_path / "state"
    assert config.agent_socket == tmp_path / "state" / "run" / "agent.sock"
    assert config.follower_calibration == tmp_path / "state" / "calibration" / "follower.json"
    assert config.federation is not None and config.federation.bundle == tmp_path / "bundle"
    assert config.leader_calibration is None
    assert config.environment_names == ()
    assert config.state_names[0] == "shoulder_pan.pos"


def test_the_tracker_gives_the_environment_its_names(tmp_path: Path) -> None:
    tracker = '[tracker]\ncamera = "overhead"\nhue_min_deg = 340\nhue_max_deg = 20\n' + HOMOGRAPHY
    config = load_config(write(tmp_path, GOOD + CAMERA + tracker))
    assert config.environment_names == ("cube.x_m", "cube.y_m")
    assert config.camera_shapes == {"overhead": (480, 640)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD + "[robott]\na = 1\n", ["unknown key robott", "robot, teleop, cameras"]),
        (GOOD + "[control]\nfsp = 30\n", ["unknown key control.fsp", "fps"]),
        (GOOD + "[cameras.top]\nsource = 0\nheigth = 1\n", ["cameras.top.heigth", "height"]),
        ('[robot]\nport = "/dev/x"\n', ["key paths is missing"]),
        ('[robot]\n[paths]\nstate_dir = "s"\n', ["key robot.port is missing"]),
        (GOOD + '[control]\nfps = "fast"\n', ["control.fps", "'fast'", "number"]),
        (GOOD + "[control]\nfps = 0\n", ["control.fps", "greater than or equal to 1"]),
        (GOOD.replace("[paths]", 'type = "so999"\n[paths]'), ["robot.type", "'so101_follower'"]),
        (GOOD + '[teleop]\nport = "/dev/ttyACM0"\n', ["robot.port and teleop.port are both"]),
        (
            GOOD + '[teleop]\nport = "/dev/b"\nid = "follower"\n',
            ["robot.id and teleop.id are both", "share one calibration"],
        ),
        (
            GOOD + '[tracker]\ncamera = "top"\nhue_min_deg = 1\nhue_max_deg = 2\n' + HOMOGRAPHY,
            ["tracker.camera 'top' is not a camera", "known: none"],
        ),
        ("[robot", ["not TOML"]),
        (GOOD.replace('"state"', f'"{"s" * 120}"'), ["state_dir is too long by", "Unix socket"]),
    ],
)
def test_a_mistake_is_one_line_with_file_key_and_what_is_allowed(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"{path}: ")
    for word in words:
        assert word in line


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"agent.toml: no such file.*--config"):
        load_config(tmp_path / "agent.toml")
