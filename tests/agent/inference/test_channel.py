"""The inference socket between two ends that may stop, die and lie."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from agent.inference.channel import GONE, InferenceEnd, PolicyChannel
from agent.inference.errors import ControlGone, InferenceGone, InferenceLate
from agent.inference.wire import InferenceMessage


@pytest.fixture
def channel(tmp_path: Path) -> Iterator[PolicyChannel]:
    channel = PolicyChannel(tmp_path / "inference.sock")
    channel.open()
    yield channel
    channel.close()


@pytest.fixture
def far(channel: PolicyChannel) -> Iterator[InferenceEnd]:
    far = InferenceEnd(channel.path)
    until(lambda: channel.connected)
    yield far
    far.close()


def until(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    end_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end_s, "it did not come about"
        time.sleep(0.002)


def receive(far: InferenceEnd, count: int = 1) -> list[InferenceMessage]:
    frames: list[InferenceMessage] = []
    end_s = time.monotonic() + 5.0
    while len(frames) < count:
        assert time.monotonic() < end_s, f"{len(frames)} of {count} frames came"
        frames += far.receive(0.05)
    return frames


def replies(channel: PolicyChannel, count: int = 1) -> list[InferenceMessage]:
    frames: list[InferenceMessage] = []

    def enough() -> bool:
        frames.extend(channel.replies())
        return len(frames) >= count

    until(enough)
    return frames


def test_a_picture_and_its_answer_cross_unchanged(
    channel: PolicyChannel, far: InferenceEnd
) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    channel.submit({"kind": "infer", "id": 4}, {"image": picture})
    (request,) = receive(far)
    assert request.header == {"kind": "infer", "id": 4}
    assert np.array_equal(request.arrays["image"], picture)
    far.send({"kind": "chunk", "id": 4}, {"action": np.ones((3, 6), np.float32)})
    (reply,) = replies(channel)
    assert reply.arrays["action"].tolist() == np.ones((3, 6)).tolist()


def test_a_stopped_reader_gets_the_newest_request_not_a_backlog(
    channel: PolicyChannel, far: InferenceEnd
) -> None:
    picture = np.zeros((480, 640, 3), np.uint8)  # more than the kernel buffers
    for index in range(100):
        began_s = time.perf_counter()
        channel.submit({"kind": "infer", "id": index}, {"image": picture})
        assert time.perf_counter() - began_s < 0.1, "submit waited"
        time.sleep(0.001)
    got = [frame.header["id"] for frame in receive(far, 2)]
    while more := far.receive(0.2):
        got += [frame.header["id"] for frame in more]
    assert got[-1] == 99
    assert got == sorted(got)
    assert len(got) <= 6


def test_a_command_waits_for_the_process_to_come(channel: PolicyChannel) -> None:
    def come() -> None:
        time.sleep(0.1)
        far = InferenceEnd(channel.path)
        (frame,) = receive(far)
        far.send({"kind": "loaded", "command": frame.header["command"]})

    thread = threading.Thread(target=come)
    thread.start()
    assert channel.request({"kind": "load"}, 5.0).kind == "loaded"
    thread.join()


def test_nobody_there_no_answer_and_a_death_are_told_apart(channel: PolicyChannel) -> None:
    with pytest.raises(InferenceGone, match="no inference process connected"):
        channel.request({"kind": "load"}, 0.05)
    far = InferenceEnd(channel.path)
    until(lambda: channel.connected)
    with pytest.raises(InferenceLate, match="did not answer 'load'"):
        channel.request({"kind": "load"}, 0.05)
    timer = threading.Timer(0.1, far.close)
    timer.start()
    with pytest.raises(InferenceGone, match="ended during 'load'"):
        channel.request({"kind": "load"}, 5.0)
    timer.join()


def test_the_answer_to_a_command_given_up_is_not_the_next_ones(
    channel: PolicyChannel, far: InferenceEnd
) -> None:
    with pytest.raises(InferenceLate):
        channel.request({"kind": "load", "dir": "a"}, 0.05)
    (late,) = receive(far)

    def answer() -> None:
        far.send({"kind": "loaded", "command": late.header["command"], "policy": "a"})
        (frame,) = receive(far)
        far.send({"kind": "loaded", "command": frame.header["command"], "policy": "b"})

    thread = threading.Thread(target=answer)
    thread.start()
    assert channel.request({"kind": "load", "dir": "b"}, 5.0).header["policy"] == "b"
    thread.join()


def test_a_restarted_process_replaces_the_one_before_and_is_greeted(
    channel: PolicyChannel, far: InferenceEnd
) -> None:
    command = channel.greet_with({"kind": "load", "dir": "/p/3"})
    new = InferenceEnd(channel.path)
    (greeting,) = receive(new)
    assert greeting.header == {"kind": "load", "dir": "/p/3", "command": command}
    with pytest.raises(ControlGone):
        far.receive(1.0)
    assert replies(channel)[0].kind == GONE
    assert channel.connected
    channel.submit({"kind": "infer", "id": 1}, {})
    assert receive(new)[0].header["id"] == 1
    new.close()


def test_noise_closes_the_connection_and_the_next_one_works(
    channel: PolicyChannel, far: InferenceEnd
) -> None:
    with socket.socket(socket.AF_UNIX) as noisy:
        noisy.connect(str(channel.path))
        noisy.sendall(b"\x80\x04\x95" + b"pickle me" * 10)
        noisy.settimeout(5.0)
        with contextlib.suppress(ConnectionResetError):  # closed with bytes unread
            assert noisy.recv(1) == b""
    assert any("begins with" in frame.header["error"] for frame in replies(channel, 2))
    again = InferenceEnd(channel.path)
    until(lambda: channel.connected)
    channel.submit({"kind": "infer", "id": 2}, {})
    assert receive(again)[0].header["id"] == 2
    again.close()


def test_a_request_for_a_dead_process_is_not_sent_to_its_successor(
    channel: PolicyChannel,
) -> None:
    channel.submit({"kind": "infer", "id": 1}, {})
    far = InferenceEnd(channel.path)
    until(lambda: channel.connected)
    channel.submit({"kind": "infer", "id": 2}, {})
    assert [frame.header["id"] for frame in receive(far)] == [2]
    far.close()


def test_an_array_that_cannot_travel_fails_that_request_alone(
    channel: PolicyChannel, far: InferenceEnd
) -> None:
    channel.submit({"kind": "infer", "id": 8}, {"a": np.zeros(1, np.float64)})
    (reply,) = replies(channel)
    assert (reply.kind, reply.header["id"]) == ("failed", 8)
    channel.submit({"kind": "infer", "id": 9}, {})
    assert receive(far)[0].header["id"] == 9


def test_the_socket_is_the_owners_alone_and_goes_with_the_channel(tmp_path: Path) -> None:
    path = tmp_path / "run" / "inference.sock"
    path.parent.mkdir()
    path.write_text("left by a dead process")
    channel = PolicyChannel(path)
    channel.open()
    assert path.stat().st_mode & 0o777 == 0o600
    descriptors = len(os.listdir("/proc/self/fd"))
    channel.close()
    assert not path.exists()
    assert len(os.listdir("/proc/self/fd")) < descriptors
    with pytest.raises(ControlGone, match="control does not listen"):
        InferenceEnd(path)


def test_a_channel_whose_thread_dies_says_gone_to_whoever_waits(
    channel: PolicyChannel, far: InferenceEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object) -> None:
        raise TypeError("a bug")

    lines: list[str] = []
    monkeypatch.setattr(channel, "_on_crash", lines.append)
    monkeypatch.setattr(channel, "_send", bug)
    with pytest.raises(InferenceGone, match="ended during 'load'"):
        channel.request({"kind": "load"}, timeout_s=5.0)
    until(lambda: bool(lines))
    assert lines == ["thread inference-io died: TypeError: a bug"]
    assert not channel.connected
    assert [frame.kind for frame in channel.replies()] == [GONE]
