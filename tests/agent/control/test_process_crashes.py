"""A bug in any thread of the control process is named in its status, and the arm holds."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from arm_rig import ENERGISED, RELEASED, ArmRig

from agent.child.link import LINK_FD, ParentLink
from host.threads import CRASHED

pytestmark = pytest.mark.system

PROGRAM = Path(__file__).parents[2] / "support" / "crashing_control.py"


class Control(ArmRig):
    """The process, on two arms as bytes, as its supervisor sees it."""

    def __init__(self, folder: Path) -> None:
        camera = {"source": "http://127.0.0.1:9/none", "width": 64, "height": 48}
        super().__init__(
            folder,
            table={
                "control": {"fps": 20.0, "realtime_priority": 0, "max_missed_reads": 20},
                "cameras": {"overhead": camera},
            },
        )
        self.obey()
        self.status: dict[str, Any] = {}
        self.replies: dict[int, dict[str, Any]] = {}
        self.told: list[dict[str, Any]] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.link = ParentLink()

    def start(self, place: str, *, camera: bool = False) -> None:
        table = self.config.model_dump(mode="json", exclude_none=True)
        if not camera:
            del table["cameras"]
        path = self.config.state_dir / "agent.toml"
        path.write_text(toml(table))
        child_fd = self.link.child_fd()
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(path), place],
            env=os.environ | {LINK_FD: str(child_fd)},
            pass_fds=(child_fd,),
        )
        self.link.close_child_end()

    def hear(self, until: Callable[[], bool], what: str) -> None:
        end_s = time.monotonic() + 30.0
        while not until():
            assert time.monotonic() < end_s, f"no {what}; status {self.status}"
            for message in self.link.receive_all():
                match message.pop("kind"):
                    case "status":
                        self.status = message
                    case "reply":
                        self.replies[message["id"]] = message
                    case "event":
                        self.told.append(message)
            time.sleep(0.01)

    def ask(self, number: int, name: str, **arguments: Any) -> dict[str, Any]:
        self.link.send("command", name=name, id=number, arguments=arguments)
        self.hear(lambda: number in self.replies, f"reply to {name}")
        return self.replies[number]

    def ready(self) -> None:
        self.hear(lambda: bool(self.status.get("ready")), "arm")

    def problem(self, line: str) -> None:
        self.hear(lambda: line in self.status.get("problems", []), line)

    def end(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20.0)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.link.close()
        super().close()


def toml(table: dict[str, Any], prefix: str = "") -> str:
    """Just enough of it for a configuration."""
    lines = [f"{key} = {json.dumps(v)}" for key, v in table.items() if not isinstance(v, dict)]
    for key, value in table.items():
        if isinstance(value, dict):
            lines += [f"[{prefix}{key}]", toml(value, f"{prefix}{key}.")]
    return "\n".join(lines)


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Control]:
    made = Control(tmp_path)
    yield made
    made.close()


def test_a_bug_in_the_loop_ends_the_process_at_once_and_the_arm_holds(control: Control) -> None:
    control.start("loop")
    control.ready()
    control.link.send("command", name="teleop_start", id=1, arguments={})
    assert control.process is not None
    assert control.process.wait(20.0) == CRASHED
    assert control.torque == ENERGISED


def test_a_bug_in_a_command_is_its_reply_and_a_fault_that_holds(control: Control) -> None:
    control.start("command")
    control.ready()
    assert control.ask(1, "teleop_start")["ok"]
    line = "command park died: TypeError: a bug"
    reply = control.ask(2, "park", energise=False)
    assert (reply["ok"], reply["error"]) == (False, line)
    control.problem(line)
    control.hear(lambda: control.status["phase"] == "holding", "hold")
    assert [event["reason"] for event in control.told if event["name"] == "fault"] == [line]
    assert control.torque == ENERGISED
    assert control.ask(3, "reset")["result"] == {"parked": True}
    assert control.torque == RELEASED
    assert control.end() == 0


def test_a_command_with_wrong_arguments_is_refused_and_no_bug(control: Control) -> None:
    control.start("journal")
    control.ready()
    reply = control.ask(1, "park", energise=False, bogus=1)
    assert not reply["ok"] and "bogus" in reply["error"]
    assert control.status["problems"] == []
    assert control.end() == 0


def test_a_bug_in_the_journal_fails_the_episode_and_holds(control: Control) -> None:
    control.start("journal")
    control.ready()
    assert control.ask(1, "record_start", task="lift")["ok"]
    line = "thread journal died: TypeError: a bug"
    control.problem(line)
    control.hear(lambda: control.status["phase"] == "holding", "hold")
    reply = control.ask(2, "record_finish")
    assert (reply["ok"], reply["error"]) == (False, f"the episode was not saved: {line}")
    assert control.ask(3, "reset")["ok"]
    reply = control.ask(4, "record_start", task="lift")
    assert (reply["ok"], reply["error"]) == (False, line)
    assert control.end() == 0


def test_a_bug_in_the_listening_thread_is_named_in_the_last_status(control: Control) -> None:
    """Its heartbeats end with it, and the supervisor starts the process again."""
    control.start("link-in")
    control.problem("thread link-in died: TypeError: a bug")
    assert control.end() == 0


def test_a_bug_in_the_inference_channel_is_named(control: Control) -> None:
    control.start("channel")
    control.ready()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(control.config.inference_socket))
    control.problem("thread inference-io died: TypeError: a bug")
    assert control.end() == 0


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("opener", "thread opener-overhead died: TypeError: a bug"),
        ("camera", "thread camera-overhead died: TypeError: a bug"),
    ],
)
def test_a_bug_behind_a_camera_is_named(control: Control, place: str, line: str) -> None:
    control.start(place, camera=True)
    control.hear(lambda: line in " ".join(control.status.get("problems", [])), line)
    assert control.end() == 0
