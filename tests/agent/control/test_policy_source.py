"""The policy as a source of actions: it never waits, it holds, and it says why it gives up.

Time is the test's own; the far end answers when the test says so, by the real PolicyServer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tiny_policy import STEP, change_manifest, tiny_spec, write_config, write_policy

from agent.config import load_config
from agent.control.observation import Observation, SourceAction
from agent.control.policy_source import PolicySource
from agent.inference.channel import InferenceEnd, PolicyChannel
from agent.inference.errors import EpisodeRunning
from agent.inference.process import PolicyServer
from agent.inference.wire import UPCOMING
from agent.inference.wire import InferenceMessage as ChannelFrame
from agent.policies.compatibility import RobotSignature
from agent.policies.errors import PolicyRefused

FPS = 30.0
MAX_HOLD_S = 0.5


@dataclass
class Picture:
    image: np.ndarray


def seen(tick: int, value: float = 0.0, *, pixel: int = 0, cube: float = 0.1) -> Observation:
    frame = Picture(np.full((48, 64, 3), pixel, np.uint8))
    return Observation(
        tick=tick,
        t_s=tick / FPS,
        state=np.full(6, value, np.float32),
        environment=np.full(2, cube, np.float32),
        frames={"overhead": frame},  # type: ignore[dict-item]
    )


class Rig:
    """A channel, the source on one end, and the server on the other, by hand."""

    def __init__(self, folder: Path) -> None:
        config = load_config(write_config(folder, max_hold_s=MAX_HOLD_S, blend_ticks=0))
        self.channel = PolicyChannel(config.inference_socket)
        self.channel.open()
        self.source = PolicySource.from_config(config, self.channel)
        self.server = PolicyServer(RobotSignature.of(config), 1)
        self.far = self.connect()

    def connect(self) -> InferenceEnd:
        far = InferenceEnd(self.channel.path)
        self.until(lambda: self.channel.connected)
        return far

    def reconnect(self, server: PolicyServer | None = None) -> None:
        """The process dies and another one comes."""
        self.far.close()
        self.until(lambda: not self.channel.connected)
        self.server = server or PolicyServer(self.server._robot, 1)
        self.far = self.connect()
        self.answer()  # the greeting

    def requests(self) -> list[ChannelFrame]:
        frames: list[ChannelFrame] = []
        self.until(lambda: bool(frames.extend(self.far.receive(0.02)) or frames))
        return frames

    def answer(self) -> None:
        """Answer what was asked, and wait until the answer lies on control's side."""
        for header, arrays in self.server.answer(self.requests()):
            before = len(self.channel._replies)
            self.far.send(header, arrays)
            self.until(lambda before=before: len(self.channel._replies) > before)

    def load(self, folder: Path) -> None:
        with ThreadPoolExecutor(1) as pool:
            loading = pool.submit(self.source.load, folder, 5.0)
            while not loading.done():
                for header, arrays in self.server.answer(self.far.receive(0.02)):
                    self.far.send(header, arrays)
            loading.result()

    def begin(self, tick: int, value: float = 0.0) -> None:
        self.source.begin(seen(tick, value), tick / FPS)

    def act(self, tick: int, value: float = 0.0) -> SourceAction:
        return self.source.action(seen(tick, value), tick / FPS)

    @staticmethod
    def until(condition: Callable[[], bool]) -> None:
        end_s = time.monotonic() + 5.0
        while not condition():
            assert time.monotonic() < end_s, "it did not come about"
            time.sleep(0.001)

    def close(self) -> None:
        self.far.close()
        self.channel.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()


@pytest.fixture
def armed(rig: Rig, tmp_path: Path) -> Rig:
    rig.load(write_policy(tmp_path / "7", version=7))
    return rig


def hold_until_fault(rig: Rig, tick: int) -> str:
    for later in range(tick, tick + int(MAX_HOLD_S * FPS) + 2):
        action = rig.act(later)
        assert action.goal is None
        if action.fault:
            assert later > tick + MAX_HOLD_S * FPS - 2, "it gave up too soon"
            return action.fault
    raise AssertionError("it holds for ever")


def test_it_plays_the_row_of_each_tick_from_the_observation_it_asked_with(armed: Rig) -> None:
    armed.begin(100, value=5.0)
    assert armed.act(100) == SourceAction(goal=None)
    armed.answer()
    for tick in (103, 104, 105):
        goal = armed.act(tick, value=50.0).goal
        assert goal is not None
        assert goal == pytest.approx(np.full(6, 5.0 + (tick - 100) * STEP))


def test_what_was_loaded_is_told(armed: Rig) -> None:
    loaded = armed.source.loaded
    assert loaded is not None
    assert (loaded.name, loaded.version, loaded.chunk_size, loaded.fps) == ("7", 7, 20, 30)
    assert armed.source.status()["policy"] == "7"


def test_a_process_that_never_answers_is_a_hold_then_a_fault(armed: Rig) -> None:
    armed.begin(0)
    fault = hold_until_fault(armed, 0)
    assert "the inference process does not answer" in fault
    assert armed.act(100).fault == fault, "a fault stays until the next episode"


def test_a_dead_process_plays_to_the_end_of_the_chunk_then_holds_then_faults(armed: Rig) -> None:
    armed.begin(0)
    armed.answer()
    assert armed.act(1).goal is not None
    armed.far.close()
    armed.until(lambda: not armed.channel.connected)
    assert armed.act(19).goal is not None
    assert "the inference process is gone" in hold_until_fault(armed, 20)


def test_a_process_that_comes_back_in_time_goes_on_with_the_same_policy(armed: Rig) -> None:
    armed.begin(0)
    armed.answer()
    armed.act(1)
    armed.reconnect()
    assert armed.act(25).goal is None
    armed.answer()
    goal = armed.act(26).goal
    assert goal is not None
    assert goal[0] == pytest.approx(STEP)


def test_after_a_fault_and_a_restart_the_next_episode_works(armed: Rig) -> None:
    armed.begin(0)
    hold_until_fault(armed, 0)
    armed.source.end()
    armed.reconnect()
    armed.begin(50, value=2.0)
    armed.answer()
    goal = armed.act(51).goal
    assert goal is not None
    assert goal[0] == pytest.approx(2.0 + STEP)


def test_a_process_that_comes_back_with_other_weights_is_a_fault(
    armed: Rig, tmp_path: Path
) -> None:
    armed.begin(0)
    write_policy(tmp_path / "7", version=7, multiplications=1)
    armed.reconnect()
    assert "came back with another 7" in str(armed.act(1).fault)


def test_a_process_that_comes_back_and_cannot_load_says_why(armed: Rig, tmp_path: Path) -> None:
    armed.begin(0)
    (tmp_path / "7" / "manifest.json").unlink()
    armed.reconnect()
    fault = armed.act(1).fault
    assert fault is not None and "cannot load 7" in fault and "manifest.json" in fault


def test_the_reply_to_an_episode_that_ended_is_never_played(armed: Rig) -> None:
    armed.begin(0, value=-90.0)
    asked = armed.requests()
    armed.source.end()
    armed.begin(5, value=1.0)
    for header, arrays in armed.server.answer(asked):
        armed.far.send(header, arrays)
    armed.until(lambda: bool(armed.channel._replies))
    assert armed.act(6, value=1.0).goal is None
    armed.answer()
    goal = armed.act(7, value=1.0).goal
    assert goal is not None
    assert goal[0] == pytest.approx(1.0 + 2 * STEP)


def test_a_policy_is_never_swapped_under_an_episode(armed: Rig, tmp_path: Path) -> None:
    other = write_policy(tmp_path / "8", version=8)
    armed.begin(0)
    with pytest.raises(EpisodeRunning, match="stop the rollout first"):
        armed.source.load(other, 1.0)
    with pytest.raises(EpisodeRunning):
        armed.source.unload()
    armed.source.end()
    armed.load(other)
    assert armed.source.loaded is not None and armed.source.loaded.version == 8


def test_the_policy_armed_before_is_no_fault_of_the_one_armed_now(
    armed: Rig, tmp_path: Path
) -> None:
    armed.reconnect()  # greeted with 7 and answered, as after disarming and arming again
    armed.load(write_policy(tmp_path / "8", version=8, multiplications=1))
    armed.begin(0)
    armed.answer()
    assert armed.act(1).goal is not None


def test_a_process_restarted_between_episodes_that_lost_the_policy_is_a_fault_at_once(
    armed: Rig, tmp_path: Path
) -> None:
    (tmp_path / "7" / "policy.onnx").unlink()
    armed.reconnect()
    armed.begin(0)
    assert "cannot load 7" in str(armed.act(0).fault)


def test_an_episode_without_a_policy_is_a_fault_at_once(rig: Rig) -> None:
    rig.begin(0)
    assert rig.act(0).fault == "no policy is loaded; arm the rollout first"
    rig.source.end()


def test_a_policy_that_fails_on_every_observation_is_named_as_the_cause(
    rig: Rig, tmp_path: Path
) -> None:
    rig.load(write_policy(tmp_path / "7", version=7))
    rig.server._loaded = None  # as a process that lost its policy
    rig.begin(0)
    rig.answer()
    assert "the policy failed: no policy is loaded" in hold_until_fault(rig, 0)


def test_numbers_that_are_no_action_are_not_sent_to_the_arm(rig: Rig, tmp_path: Path) -> None:
    rig.load(write_policy(tmp_path / "7", version=7, not_a_number=True))
    rig.begin(0)
    rig.answer()
    assert "that is no action" in hold_until_fault(rig, 0)


def test_a_camera_the_policy_needs_and_does_not_get_is_named(rig: Rig, tmp_path: Path) -> None:
    rig.load(write_policy(tmp_path / "7", tiny_spec(camera=(48, 64)), version=7))
    rig.source.begin(seen(0, pixel=9), 0.0)
    rig.answer()
    goal = rig.source.action(seen(1), 0.03).goal
    assert goal is not None
    assert goal[0] == pytest.approx(9.0 + STEP), "the picture was seen"
    rig.source.end()
    blind = Observation(0, 0.0, np.zeros(6, np.float32), np.zeros(2, np.float32), {})
    rig.source.begin(blind, 1.0)
    rig.source.action(blind, 1.0)
    action = rig.source.action(blind, 1.0 + MAX_HOLD_S + 0.1)
    assert "camera overhead gives no fresh picture" in str(action.fault)


def test_a_cube_out_of_sight_is_a_hold_and_then_named(armed: Rig) -> None:
    lost = seen(0, cube=float("nan"))
    armed.source.begin(lost, 0.0)
    assert armed.source.action(lost, 0.0) == SourceAction(goal=None)
    action = armed.source.action(lost, MAX_HOLD_S + 0.1)
    assert "cube.x_m, cube.y_m is out of sight" in str(action.fault)


def test_a_wrong_rate_a_wrong_feature_and_a_wrong_digest_are_one_line_each(
    rig: Rig, tmp_path: Path
) -> None:
    slow = write_policy(tmp_path / "1", tiny_spec(fps=20))
    with pytest.raises(PolicyRefused, match=r"acts at 20 Hz, this robot's control\.fps is 30"):
        rig.load(slow)
    other = write_policy(tmp_path / "2")
    spec = tiny_spec().to_json() | {"environment_names": ["ball.x_m", "ball.y_m"]}
    change_manifest(other, spec=spec)
    with pytest.raises(PolicyRefused, match=r"needs ball\.x_m, ball\.y_m, this robot tracks cube"):
        rig.load(other)
    camera = write_policy(tmp_path / "3", tiny_spec(camera=(96, 96)))
    with pytest.raises(PolicyRefused, match="'overhead' at 96x96, this robot's gives 64x48"):
        rig.load(camera)
    changed = write_policy(tmp_path / "4")
    graph = changed / "policy.onnx"
    graph.write_bytes(graph.read_bytes().replace(b"tiny", b"tinY"))
    with pytest.raises(PolicyRefused, match=r"policy\.onnx has SHA-256") as refusal:
        rig.load(changed)
    assert "\n" not in str(refusal.value)
    assert rig.source.loaded is None


def test_a_refused_policy_leaves_the_one_before(armed: Rig, tmp_path: Path) -> None:
    with pytest.raises(PolicyRefused):
        armed.load(tmp_path / "nowhere")
    armed.begin(0)
    armed.answer()
    assert armed.act(1).goal is not None


def test_of_several_observations_that_wait_only_the_newest_is_worked_on(
    rig: Rig, tmp_path: Path
) -> None:
    folder = write_policy(tmp_path / "7", version=7)
    ((loaded, _),) = rig.server.answer(
        [ChannelFrame({"kind": "load", "dir": str(folder), "command": 1})]
    )
    inputs = {
        "observation.state": np.zeros(6, np.float32),
        "observation.environment_state": np.zeros(2, np.float32),
    }
    asked = [
        ChannelFrame({"kind": "infer", "id": index, "digest": loaded["digest"]}, inputs)
        for index in range(5)
    ]
    assert [header["id"] for header, _ in rig.server.answer(asked)] == [4]
    assert rig.server.status()["superseded"] == 4


def test_a_policy_is_told_the_task_with_each_observation(armed: Rig) -> None:
    armed.source.task = "stack the cubes"
    armed.begin(0)
    [request] = armed.requests()
    assert (request.kind, request.header["task"]) == ("infer", "stack the cubes")


def test_a_policy_is_told_what_the_arm_will_play_until_its_answer_comes(armed: Rig) -> None:
    armed.begin(0)
    [request] = armed.requests()
    assert request.arrays[UPCOMING].shape == (0, 6)
    for header, arrays in armed.server.answer([request]):
        armed.far.send(header, arrays)
    armed.until(lambda: armed.act(1).goal is not None)
    for tick in range(2, 40):
        armed.act(tick)
        frames = armed.far.receive(0.0)
        if frames:
            break
    left = armed.source._episode.scheduler.upcoming(tick)  # type: ignore[union-attr]
    assert len(left) > 0
    assert frames[0].arrays[UPCOMING].tolist() == left.tolist()
    assert frames[0].header["delay_ticks"] >= 1
