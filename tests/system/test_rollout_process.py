"""Asynchronous inference with a real process: the loop keeps its time whatever becomes of it."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from tiny_policy import STEP, beside, install_policy, tiny_spec, write_config, write_policy

from agent.config import load_config
from agent.control.observation import Observation, SourceAction
from agent.control.policy_source import PolicySource
from agent.inference.channel import PolicyChannel
from agent.inference.errors import InferenceLate
from agent.policies.qualification import qualify
from agent.policies.store import PolicyStore
from policy.release.manifest import POLICY_NAME, write_manifest
from policy.spec import PolicySpec

pytestmark = pytest.mark.system

FPS = 30.0
MAX_HOLD_S = 1.0


@dataclass
class Run:
    """What a fake loop at 30 Hz saw."""

    actions: list[SourceAction] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)
    spent_s: list[float] = field(default_factory=list)

    @property
    def fault(self) -> str | None:
        return next((action.fault for action in self.actions if action.fault), None)

    @property
    def held(self) -> list[bool]:
        return [action.goal is None for action in self.actions]


class Robot:
    """Control's side with a real inference process beside it."""

    def __init__(self, folder: Path) -> None:
        self.config_path = write_config(folder, max_hold_s=MAX_HOLD_S, blend_ticks=4)
        config = load_config(self.config_path)
        self.channel = PolicyChannel(config.inference_socket)
        self.channel.open()
        self.source = PolicySource.from_config(config, self.channel)
        self.store = PolicyStore(config.policies_dir)
        self.log = folder / "inference.log"
        self.process = self.start()
        self.state = np.zeros(6, np.float32)
        self.tick = 0

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "agent.inference.process"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--config", str(self.config_path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self.process

    def end_process(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait(timeout=10.0)

    def observe(self) -> Observation:
        return Observation(
            self.tick, time.monotonic(), self.state.copy(), np.zeros(2, np.float32), {}
        )

    def episode(self, seconds: float, at: dict[int, int] | None = None) -> Run:
        """Run a loop at 30 Hz; `at`: tick of the episode -> signal for the process."""
        run = Run()
        gc.collect()
        begun_s = time.monotonic()
        self.source.begin(self.observe(), begun_s)
        for index in range(int(seconds * FPS)):
            due_s = begun_s + index / FPS
            time.sleep(max(0.0, due_s - time.monotonic()))
            if at and index in at:
                self.process.send_signal(at[index])
            observation = self.observe()
            before_s, spent_s = time.perf_counter(), time.thread_time()
            action = self.source.action(observation, time.monotonic())
            run.spent_s.append(time.thread_time() - spent_s)
            run.took_s.append(time.perf_counter() - before_s)
            run.actions.append(action)
            if action.goal is not None:
                self.state = action.goal
            self.tick += 1
        self.source.end()
        return run

    def close(self) -> None:
        self.end_process()
        self.channel.close()


@pytest.fixture
def robot(tmp_path: Path) -> Iterator[Robot]:
    robot = Robot(tmp_path)
    yield robot
    robot.close()


def arm(robot: Robot, **graph: int) -> None:
    install_policy(robot.store, **graph)
    robot.store.use(1)
    robot.source.load(robot.store.resolve("active"), 20.0)


def never_waited(run: Run) -> None:
    # Processor time is the code's own; the wall clock also counts what else this machine does.
    assert sorted(run.spent_s)[len(run.spent_s) // 2] < 0.0003
    assert max(run.took_s) < 0.25, "the loop waited for the policy"


def test_it_plays_without_a_hold_and_on_time(robot: Robot) -> None:
    arm(robot)
    run = robot.episode(3.0)
    assert run.fault is None
    assert not any(run.held[10:])
    never_waited(run)
    goals = np.array([action.goal for action in run.actions[10:]])
    assert np.abs(np.diff(goals, axis=0)).max() < 10 * STEP, "the chunks are joined smoothly"
    assert robot.source.status()["joined"] >= 5


def test_a_stopped_process_is_a_hold_then_a_fault_and_it_goes_on_when_let_go(
    robot: Robot,
) -> None:
    arm(robot)
    run = robot.episode(3.5, at={30: signal.SIGSTOP})
    never_waited(run)
    assert run.fault is not None
    assert "does not answer" in run.fault
    first_fault = next(index for index, action in enumerate(run.actions) if action.fault)
    first_hold = run.held.index(True, 25)
    assert 30 + 20 - 12 <= first_hold <= 30 + 20, "what was there was played to its end"
    assert first_fault - first_hold == pytest.approx(MAX_HOLD_S * FPS, abs=4)
    robot.process.send_signal(signal.SIGCONT)
    again = robot.episode(1.5)
    assert again.fault is None
    assert not any(again.held[15:])


def test_a_short_stop_is_played_over(robot: Robot) -> None:
    arm(robot)
    run = robot.episode(3.0, at={30: signal.SIGSTOP, 60: signal.SIGCONT})
    assert run.fault is None
    assert not any(run.held[75:])
    never_waited(run)


def test_a_killed_process_is_a_fault_and_the_next_episode_works_after_its_restart(
    robot: Robot,
) -> None:
    arm(robot)
    run = robot.episode(3.5, at={30: signal.SIGKILL})
    never_waited(run)
    assert run.fault is not None
    assert "the inference process is gone" in run.fault
    robot.process.wait(timeout=10.0)
    robot.start()
    end_s = time.monotonic() + 20.0
    while not robot.channel.connected:
        assert time.monotonic() < end_s
        time.sleep(0.02)
    time.sleep(0.5)  # it loads the same policy by itself
    again = robot.episode(1.5)
    assert again.fault is None
    assert not any(again.held[15:])


def test_a_policy_that_hangs_inside_the_runtime_does_not_stop_the_loop(robot: Robot) -> None:
    arm(robot)
    with pytest.raises(InferenceLate, match="did not answer 'load' within 2 s"):
        robot.source.load(write_policy(robot.log.parent / "2", version=2, hang=True), 2.0)
    run = robot.episode(2.0)
    never_waited(run)
    assert run.fault is not None
    assert "does not answer" in run.fault


def test_a_real_act_goes_from_export_through_qualification_to_the_loop(robot: Robot) -> None:
    staged = beside(robot.store)
    spec = tiny_spec(chunk_size=30)
    write_act(staged, spec)
    verdict = qualify(staged, robot.config_path)
    assert verdict.ok, verdict.reasons
    robot.store.install(staged, 5)
    robot.store.use(5)
    loaded = robot.source.load(robot.store.resolve("active"), 20.0)
    assert (loaded.version, loaded.chunk_size) == (5, 30)
    run = robot.episode(3.0)
    assert run.fault is None
    assert not any(run.held[15:])
    never_waited(run)


def write_act(folder: Path, spec: PolicySpec) -> None:
    """An untrained ACT as the coordinator would release it."""
    from policy.build import build_policy
    from policy.export import export_policy
    from policy.statistics import Component, FeatureSketch, Normalizer, Sketch

    random = np.random.default_rng(0)
    features = {
        name: FeatureSketch.measure(
            [Component(name=part, low=-180.0, high=180.0) for part in parts],
            random.normal(0.0, 20.0, (200, len(parts))).astype(np.float32),
        )
        for name, parts in spec.vectors.items()
    }
    normalizer = Normalizer.from_sketches([Sketch(features=features)])
    policy = build_policy(spec, normalizer, seed=0)
    exported = export_policy(policy, spec, normalizer, folder / POLICY_NAME, version=5)
    write_manifest(
        folder, exported.described, evaluation={}, contributors=(), created_unix_s=time.time()
    )
