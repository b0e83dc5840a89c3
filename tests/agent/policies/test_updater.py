"""A release from its notice to the active policy, over a real HTTPS server on loopback."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from counted_hashes import count_hashes
from release_site import ONNX, Site, notice
from tiny_policy import tiny_spec, write_config, write_policy

from agent.config import load_config
from agent.inference.process import PolicyServer
from agent.inference.wire import InferenceMessage
from agent.policies import updater
from agent.policies.compatibility import RobotSignature
from agent.policies.qualification import Qualification, examine
from agent.policies.updater import PolicyUpdater
from policy.session import blank_observation


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


def verdict(ok: bool) -> Callable[[Path, Path | None], Qualification]:
    reasons = () if ok else ("golden actions differ",)
    return lambda folder, config: Qualification(ok, 1, 0.0, 1.0, reasons)


class Watched:
    """A worker, and what it came to."""

    def __init__(self, site: Site) -> None:
        self.worker = PolicyUpdater(site.bundle, site.store, site.downloads, None, lambda: None)
        self.worker.start()

    def end(self, timeout_s: float = 20.0):
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            outcomes = self.worker.take_outcomes()
            if outcomes:
                return outcomes[0]
            time.sleep(0.02)
        raise AssertionError(f"no outcome: {self.worker.state} {self.worker.error}")


@pytest.fixture
def watched(site: Site) -> Iterator[Watched]:
    made = Watched(site)
    yield made
    made.worker.stop()


def test_a_release_that_qualifies_becomes_the_active_policy(
    site: Site, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updater, "qualify", verdict(True))
    watched.worker.offer(site.notice)
    assert watched.end().ok
    assert site.store.active() == "1"
    assert not list(site.downloads.iterdir())


def test_from_download_to_first_inference_each_file_is_hashed_once(
    site: Site, watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = write_policy(tmp_path / "made", notes=b"a second file of the release")
    site.serve(made)
    robot = RobotSignature.of(load_config(write_config(tmp_path)))
    # The trial runs here, not in its child, so that its hashes are counted.
    monkeypatch.setattr(updater, "qualify", lambda folder, config: examine(folder, robot))
    sizes = count_hashes(monkeypatch)
    watched.worker.offer(site.notice)
    assert watched.end().ok
    server = PolicyServer(robot, 1)
    load = InferenceMessage(
        {"kind": "load", "command": 1, "dir": str(site.store.resolve("active"))}
    )
    ((loaded, _),) = server.answer([load])
    asked = {"kind": "infer", "id": 1, "digest": loaded["digest"]}
    ((reply, arrays),) = server.answer([InferenceMessage(asked, blank_observation(tiny_spec()))])
    assert reply["kind"] == "chunk" and arrays["action"].shape == (20, 6)
    files = json.loads((made / "manifest.json").read_bytes())["files"]
    assert sizes == [entry["size"] for _, entry in sorted(files.items())]


def test_a_release_with_a_wrong_digest_never_becomes_active(
    site: Site, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updater, "qualify", verdict(True))
    watched.worker.offer(site.notice)
    assert watched.end().ok
    site.publish(2, head=ONNX[1:])
    name = f"{hashlib.sha256(ONNX[1:]).hexdigest()}.bin"
    site.server.files[name] = ONNX[1:-1] + b"\0"
    watched.worker.offer(site.notice)
    outcome = watched.end()
    assert not outcome.ok and "SHA-256" in outcome.detail
    assert site.store.active() == "1" and site.store.versions() == [1]
    assert watched.worker.state == "refused"


def test_a_release_that_fails_its_trial_never_becomes_active(
    site: Site, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updater, "qualify", verdict(False))
    watched.worker.offer(site.notice)
    outcome = watched.end()
    assert not outcome.ok and outcome.detail == "golden actions differ"
    assert site.store.active() is None and site.store.versions() == []


def test_a_real_trial_refuses_what_is_no_policy(site: Site, watched: Watched) -> None:
    watched.worker.offer(site.notice)
    outcome = watched.end(60.0)
    assert not outcome.ok
    assert site.store.active() is None


def test_a_server_that_is_away_is_waited_for(
    site: Site, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updater, "qualify", verdict(True))
    monkeypatch.setattr(updater, "FIRST_BACKOFF_S", 0.05)
    files, site.server.files = site.server.files, {}
    watched.worker.offer(site.notice)
    deadline = time.monotonic() + 10
    while watched.worker.state != "waiting" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "404" in (watched.worker.error or "")
    site.server.files = files
    assert watched.end().ok
    assert watched.worker.error is None


def test_a_newer_notice_replaces_one_that_cannot_be_had(
    site: Site, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updater, "qualify", verdict(True))
    watched.worker.offer(notice(7, "ee" * 32))
    assert "SHA-256" in watched.end().detail
    watched.worker.offer(site.publish(8))
    assert watched.end().ok
    assert site.store.active() == "8"


def test_a_worker_that_dies_says_so_in_its_error(
    site: Site, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr(updater, "qualify", bug)
    watched.worker.offer(site.notice)
    deadline = time.monotonic() + 10.0
    while watched.worker.state != "refused":
        assert time.monotonic() < deadline, watched.worker.state
        time.sleep(0.02)
    assert watched.worker.error == "thread releases died: TypeError: a bug"
