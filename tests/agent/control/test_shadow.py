"""A policy in its shadow is compared and blamed; it never commands."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_policy import write_config, write_policy

from agent.config import load_config
from agent.control import shadow as shadow_module
from agent.control.loop import Tick
from agent.control.observation import Observation
from agent.control.policy_source import PolicySource
from agent.control.shadow import Shadow
from agent.inference.channel import InferenceEnd, PolicyChannel
from agent.inference.process import PolicyServer
from agent.policies.compatibility import RobotSignature

FPS = 30.0


class Rig:
    """The shadow on one end of a channel of its own, a real PolicyServer on the other."""

    def __init__(self, folder: Path) -> None:
        config = load_config(write_config(folder, max_hold_s=0.5, blend_ticks=0))
        self.channel = PolicyChannel(config.shadow_socket)
        self.channel.open()
        self.now_s = 0.0
        source = PolicySource.from_config(config, self.channel)
        self.shadow = Shadow(source, FPS, lambda: self.now_s)
        self.server = PolicyServer(RobotSignature.of(config), 1)
        self.answers = True
        self._ending = False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self.count = 0

    def _serve(self) -> None:
        end = InferenceEnd(self.channel.path)
        while not self._ending:
            for header, arrays in self.server.answer(end.receive(0.02)):
                if self.answers or header["kind"] == "loaded":
                    end.send(header, arrays)
        end.close()

    def tick(self, requested: float = 0.0, *, cube: float = 0.1) -> None:
        self.count += 1
        self.now_s = self.count / FPS
        seen = Observation(
            self.count,
            self.now_s,
            np.zeros(6, np.float32),
            np.full(2, cube, np.float32),
            {},
        )
        wanted = np.full(6, requested, np.float32)
        self.shadow.tick(Tick(seen, None, wanted, wanted, self.now_s, ()))  # type: ignore[arg-type]

    def ticks_until(self, condition: Callable[[], bool], **tick: float) -> None:
        for _ in range(2000):
            self.tick(**tick)
            if condition():
                return
            time.sleep(0.002)
        raise AssertionError(self.shadow.report)

    def close(self) -> None:
        self._ending = True
        self._thread.join()
        self.channel.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


@pytest.fixture
def loaded(rig: Rig, tmp_path: Path) -> Rig:
    rig.shadow.want(write_policy(tmp_path / "2", version=2), 20.0)
    return rig


def test_without_a_policy_it_does_nothing(rig: Rig) -> None:
    rig.tick()
    assert rig.shadow.report.number == 0


def test_its_difference_from_what_was_asked_of_the_arm_is_reported(
    loaded: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow_module, "REPORT_S", 1.0)
    differences = []
    for requested in (0.0, 50.0):
        number = loaded.shadow.report.number
        loaded.ticks_until(
            lambda number=number: loaded.shadow.report.number > number, requested=requested
        )
        report = loaded.shadow.report
        assert (report.policy, report.fault, report.seconds) == ("2", None, 1.0)
        assert report.difference is not None
        differences.append(report.difference)
    assert differences[1] > differences[0] + 20.0


def test_one_that_hangs_is_at_fault(loaded: Rig) -> None:
    loaded.answers = False
    loaded.ticks_until(lambda: loaded.shadow.report.number > 0)
    assert "does not answer" in (loaded.shadow.report.fault or "")


def test_one_whose_actions_are_no_numbers_is_at_fault(rig: Rig, tmp_path: Path) -> None:
    rig.shadow.want(write_policy(tmp_path / "3", version=3, not_a_number=True), 20.0)
    rig.ticks_until(lambda: rig.shadow.report.number > 0)
    assert rig.shadow.report.policy == "3" and rig.shadow.report.fault


def test_what_it_cannot_see_is_not_its_fault(loaded: Rig) -> None:
    for _ in range(60):
        loaded.tick(cube=float("nan"))
    assert loaded.shadow.report.number == 0


def test_a_policy_that_does_not_fit_is_at_fault_before_it_predicts(
    rig: Rig, tmp_path: Path
) -> None:
    folder = write_policy(tmp_path / "4", version=4)
    (folder / "policy.onnx").write_bytes(b"damaged")
    rig.shadow.want(folder, 20.0)
    assert rig.shadow.report.policy == "4" and "its manifest says" in (
        rig.shadow.report.fault or ""
    )


def test_it_is_forgotten_when_nobody_commands(loaded: Rig) -> None:
    loaded.tick()
    loaded.shadow.pause()
    loaded.shadow.want(None, 1.0)
    number = loaded.shadow.report.number
    for _ in range(60):
        loaded.tick()
    assert loaded.shadow.report.number == number
