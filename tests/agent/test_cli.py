"""`armada` at an agent: what it prints, for people and for machines, and its exit status."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_robot import FakeRobot, served, small_config

from agent.cli import KEYS_HELP
from agent.operations.state_machine import State
from deploy.command import main

RECORD = ["record", "--task", "lift"]


class Host:
    """A served robot and its command line."""

    def __init__(self, robot: FakeRobot, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.robot = robot
        self._path = path
        self._capsys = capsys

    def armada(self, *arguments: str) -> tuple[int, str, str]:
        """Exit status, standard output, standard error."""
        code = main([*arguments, "--config", str(self._path)])
        out, error = self._capsys.readouterr()
        return code, out, error


@pytest.fixture
def host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Host]:
    with served(tmp_path) as (robot, path):
        robot.answer("record_finish", episode="e.mcap", frames=12)
        robot.answer("rollout_arm", version=7, latency_ms=12.4, lease="a1", lease_s=1.0)
        yield Host(robot, path, capsys)


def at_the_terminal(monkeypatch: pytest.MonkeyPatch, *answers: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{answer}\n" for answer in answers)))


@pytest.mark.parametrize(
    ("arguments", "said", "told"),
    [
        (["park"], "parked, torque off", "released"),
        (["estop"], "stopped; `armada reset` lifts", "control:estop(release=False)"),
        (["estop", "--release"], "stopped; ", "control:estop(release=True)"),
        (["reset"], "ready", "reset"),
    ],
)
def test_a_command_of_the_table(host: Host, arguments: list[str], said: str, told: str) -> None:
    code, out, error = host.armada(*arguments)
    assert (code, error) == (0, "")
    assert out.startswith(said) and out.count("\n") == 1
    assert host.robot.told[-1] == told


def test_reset_says_that_it_parked(host: Host) -> None:
    host.robot.machine.state = State.FAULT
    host.robot.answer("reset", parked=True)
    assert host.armada("reset") == (0, "parked, torque off\n", "")


@pytest.mark.parametrize("verb", ["park", "estop", "reset", "status"])
def test_json_is_the_agents_whole_reply(host: Host, verb: str) -> None:
    code, out, _ = host.armada(verb, "--json")
    reply = json.loads(out)
    assert code == 0
    assert reply["ok"] is True and reply["state"] == host.robot.state.value


def test_a_refusal_is_one_line_on_stderr_and_exit_1(host: Host) -> None:
    host.robot.machine.state = State.FAULT
    code, out, error = host.armada("park", "--json")
    assert (code, out) == (1, "")
    assert error.startswith("armada: park is not possible: ") and error.count("\n") == 1


def test_status_for_people_begins_with_the_state_and_every_fault(host: Host) -> None:
    host.robot.faults = ["follower unplugged"]
    code, out, _ = host.armada("status")
    assert code == 0
    assert out.splitlines()[:2] == ["arm: idle, ready", "  ! follower unplugged"]


def test_the_configuration_may_come_from_the_environment(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ARMADA_CONFIG", str(tmp_path / "agent.toml"))
    assert main(["park"]) == 0
    monkeypatch.setenv("ARMADA_CONFIG", str(tmp_path / "other.toml"))
    assert main(["park"]) == 2
    assert "other.toml: no such file" in capsys.readouterr().err


def test_any_setting_may_be_a_flag_of_agent_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ARMADA_AGENT_CONTROL__FPS", "30")  # put back afterwards
    path = str(small_config(tmp_path))
    assert main(["agent", "run", "--config", path, "--control.fps", "100000"]) == 2
    assert "control.fps" in capsys.readouterr().err


def test_no_agent_is_exit_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["park", "--config", str(small_config(tmp_path))]) == 1
    assert "no agent answers at" in capsys.readouterr().err


# Recording.


@pytest.mark.parametrize("verb", ["success", "failure", "stop", "takeover", "handback"])
def test_what_a_key_does_is_a_command_as_well(host: Host, verb: str) -> None:
    code, _, error = host.armada("rollout", verb)
    assert code == 1 and "no rollout is armed" in error
    host.robot.machine.state = State.ROLLOUT
    code, out, _ = host.armada("rollout", verb)
    assert code == 0 and out.count("\n") == 1
    assert host.robot.told == [f"control:rollout_{verb}()"]


def test_keys_end_an_episode_without_enter(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, keyboard = os.openpty()
    monkeypatch.setattr("sys.stdin", os.fdopen(keyboard))
    running = host.robot.status

    def until_success() -> dict[str, Any]:
        on = "control:rollout_success()" not in host.robot.told
        status = running()
        return {**status, "rollout": status["rollout"] | {"running": on}}

    monkeypatch.setattr(host.robot, "status", until_success)
    os.write(terminal, b"xts")
    code, _, error = host.armada("rollout", "--policy", "7")
    assert (code, error.splitlines()[0]) == (0, KEYS_HELP)
    told = [line for line in host.robot.told if line.startswith("control:rollout_")]
    assert "control:rollout_takeover()" in told
    assert told.index("control:rollout_takeover()") < told.index("control:rollout_success()")
    os.close(terminal)


def test_a_rollout_renews_its_lease_while_it_runs(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    over, until_s = host.robot.status, time.monotonic() + 1.0

    def status() -> dict[str, Any]:
        on = time.monotonic() < until_s
        return {**over(), "rollout": over()["rollout"] | {"running": on}}

    monkeypatch.setattr(host.robot, "status", status)
    assert host.armada("rollout", "--policy", "7")[0] == 0
    assert host.robot.told.count("control:rollout_beat(lease=a1)") >= 2


def test_record_by_the_clock_saves_each_episode_and_parks(host: Host) -> None:
    times = ["--episode-time-s", "0.01", "--reset-time-s", "0.01"]
    code, out, error = host.armada(*RECORD, "--num-episodes", "2", *times)
    assert code == 0
    assert out == "  saved e.mcap, 12 frames\n" * 2
    assert "episode 2/2: recording" in error
    assert host.robot.told.count("control:record_finish(success=None)") == 2
    assert host.robot.state is State.IDLE


def test_record_at_a_terminal_saves_or_throws_away(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_the_terminal(monkeypatch, "", "", "d")
    code, out, error = host.armada(*RECORD, "--episodes", "2")
    assert (code, out) == (0, "  saved e.mcap, 12 frames\n  thrown away\n")
    assert "Enter saves it, d and Enter throws it away" in error
    assert host.robot.state is State.IDLE


def test_record_for_a_machine_is_one_json_line_an_episode(host: Host) -> None:
    times = ["--episode-time-s", "0.01", "--reset-time-s", "0"]
    _, out, _ = host.armada(*RECORD, "--episodes", "2", *times, "--json")
    assert [json.loads(line)["frames"] for line in out.splitlines()] == [12, 12]


def test_a_terminal_that_is_gone_throws_the_episode_away_and_parks(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_the_terminal(monkeypatch)
    code, _, error = host.armada(*RECORD)
    assert code == 1
    assert "nobody is there to answer" in error
    assert "control:record_discard()" in host.robot.told
    assert "control:record_finish(success=None)" not in host.robot.told
    assert host.robot.state is State.IDLE


def test_ctrl_c_throws_the_episode_away_and_parks(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("agent.cli.time.sleep", interrupted)
    code, _, _ = host.armada(*RECORD, "--episode-time-s", "9")
    assert code == 130
    assert "control:record_discard()" in host.robot.told
    assert host.robot.state is State.IDLE


def test_an_empty_task_is_refused_before_anything_is_sent(host: Host) -> None:
    code, _, error = host.armada("record", "--task", "")
    assert code == 1
    assert "task: " in error
    assert "teleop_start" not in host.robot.told


# Rollouts.


def test_rollout_runs_its_episodes_and_parks(host: Host) -> None:
    code, out, _ = host.armada(
        "rollout", "--policy", "7", "--num-episodes", "2", "--episode-time-s", "3", "--record"
    )
    assert code == 0
    assert out.splitlines() == [
        "policy 7 is loaded, 12 ms a chunk",
        "episode 1/2: ran its time; 60 ticks, 0 held, 1 deadlines missed",
        "episode 2/2: ran its time; 60 ticks, 0 held, 1 deadlines missed",
    ]
    start = "control:rollout_start(seconds=3.0,task=None,record=True)"
    assert host.robot.told.count(start) == 2
    assert host.robot.state is State.IDLE


def test_a_policy_that_cannot_be_armed_is_exit_1_and_nothing_is_parked(host: Host) -> None:
    code, out, error = host.armada("rollout")
    assert (code, out) == (1, "")
    assert "no policy 'active'" in error
    assert host.robot.told == []


def test_a_fault_ends_a_rollout_with_exit_1(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    faulty = host.robot.status()
    faulty["rollout"]["outcome"] = "fault: the bus is gone"
    monkeypatch.setattr(host.robot, "status", lambda: faulty)
    code, out, _ = host.armada("rollout", "--policy", "7", "--episodes", "5", "--json")
    assert code == 1
    assert [json.loads(line).get("outcome") for line in out.splitlines()] == [
        None,
        "fault: the bus is gone",
    ]
    assert host.robot.state is State.IDLE  # parked all the same


# One arm alone.


def test_train_shows_what_it_waits_for_and_ends_when_the_policy_is_ready(host: Host) -> None:
    host.robot.outcomes = [None, {"state": "training", "loss": 0.25}, {"state": "ready"}]
    code, out, _ = host.armada("train", "--local", "--steps", "400")
    assert code == 0
    assert out.splitlines() == [
        "step 120 of 400",
        "ready after 400 steps, held-out error 0.52 joint units; "
        "`armada rollout --policy local` uses it",
    ]
    assert host.robot.told == ["train_local(400,False)"]


def test_a_local_policy_that_may_not_drive_is_exit_1_with_the_reason(host: Host) -> None:
    host.robot.outcomes = [{"state": "refused", "refusal": "a chunk takes 900 ms"}]
    code, out, _ = host.armada("train", "--local", "--again")
    assert (code, out) == (1, "the policy is refused: a chunk takes 900 ms\n")
    assert host.robot.told == ["train_local(None,True)"]


def test_training_that_is_not_local_is_wrong_usage_and_says_what_goes_on_by_itself(
    host: Host,
) -> None:
    code, _, error = host.armada("train")
    assert code == 2
    assert "goes on by itself" in error and "--local" in error
    assert host.robot.told == []


# Setting up.


def test_calibrate_asks_leads_and_saves(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.robot.answer("calibrate", ranges={"elbow_flex": [10, 900]}, path="/c/arm.json")
    at_the_terminal(monkeypatch, "", "")
    code, out, error = host.armada("setup", "calibrate", "--arm", "follower")
    assert code == 0
    assert out.splitlines() == ["  elbow_flex       10 .. 900", "saved /c/arm.json"]
    assert "middle of its range" in error
    steps = [line for line in host.robot.told if line.startswith("control:")]
    assert [step.split("step=")[1] for step in steps] == [
        "homing)",
        "range_start)",
        "range_finish)",
    ]


def test_doctor_gives_one_finding_a_line_and_exit_1_for_a_bad_one(host: Host) -> None:
    host.robot.faults = ["follower unplugged"]
    code, out, _ = host.armada("doctor")
    assert code == 1
    assert "BAD  agent: follower unplugged" in out.splitlines()
    code, out, _ = host.armada("doctor", "--json")
    findings = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    bad = {"what": "agent", "well": False, "line": "follower unplugged"}
    assert bad in findings


def test_policies_are_one_clear_table(host: Host) -> None:
    code, out, _ = host.armada("policy", "list")
    assert (code, out.splitlines()) == (
        0,
        [
            "VERSION  STATE   ROLE            WHY",
            "7        active  active, pinned  driven well",
            "7 is pinned; `armada policy use newest` follows the releases again",
        ],
    )


def test_policies_for_a_machine_are_one_line_of_json(host: Host) -> None:
    code, out, _ = host.armada("policy", "list", "--json")
    assert code == 0 and out.count("\n") == 1
    assert json.loads(out)["policies"][0]["state"] == "active"


def test_a_policy_is_chosen_and_taken_back(host: Host) -> None:
    assert host.armada("policy", "use", "7")[0] == 0
    code, out, _ = host.armada("policy", "rollback")
    assert code == 0 and out.startswith("rolled back to 6\nVERSION")
    assert host.robot.told == ["use 7", "roll_back"]
