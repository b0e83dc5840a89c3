"""A release from its notice to the active policy, over a real HTTPS server on loopback."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from counted_hashes import count_hashes
from release_site import ONNX, Site, notice
from tiny_policy import tiny_spec, write_config, write_policy

from agent.config import TrialConfig, load_config
from agent.inference.process import PolicyServer
from agent.inference.wire import InferenceMessage
from agent.policies import updater
from agent.policies.compatibility import RobotSignature
from agent.policies.qualification import Qualification, examine
from agent.policies.release_book import RobotRelease
from agent.policies.release_states import ReleaseState
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


NO_TRIAL = TrialConfig(canary_episodes=0)


@dataclass
class Outcome:
    """Where the release that was offered last came to rest."""

    ok: bool
    detail: str


class Watched:
    """A worker, and what it came to."""

    def __init__(self, site: Site, rules: TrialConfig = NO_TRIAL) -> None:
        self.site = site
        self.worker = PolicyUpdater(
            site.bundle, site.store, site.downloads, rules, None, lambda: None
        )
        self.worker.start()

    def record(self) -> RobotRelease | None:
        return self.site.store.book().releases.get(self.site.notice.manifest_digest)

    def until(self, state: ReleaseState, timeout_s: float = 20.0) -> RobotRelease:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            record = self.record()
            if record is not None and record.state is state:
                return record
            time.sleep(0.02)
        raise AssertionError(f"not {state}: {self.record()} {self.worker.error}")

    def end(self, timeout_s: float = 20.0) -> Outcome:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            record = self.record()
            # Nothing is wanted any more: the worker is done with it.
            if record is not None and self.worker._wanted is None:
                return Outcome(record.state is not ReleaseState.REFUSED, record.reason)
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
    while (watched.record() or RobotRelease(version=2)).reason == "":
        time.sleep(0.02)
    record = watched.until(ReleaseState.OFFERED)
    assert "SHA-256" in record.reason and "it is fetched again" in record.reason
    assert site.store.active() == "1" and site.store.versions() == [1]
    assert not list(site.downloads.iterdir()), "what is damaged is not kept"


def test_a_release_that_came_damaged_is_fetched_again_and_becomes_active(
    site: Site, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updater, "qualify", verdict(True))
    monkeypatch.setattr(updater, "damaged", lambda: updater.Pause(0.1, 0.1))
    whole = site.server.files["policy.onnx"]
    site.server.files["policy.onnx"] = whole[:-1] + b"\0"
    watched.worker.offer(site.notice)
    while "SHA-256" not in (watched.worker.error or ""):
        time.sleep(0.02)
    site.server.files["policy.onnx"] = whole
    assert watched.end().ok and site.store.active() == "1"


def test_an_installed_release_that_was_damaged_is_fetched_again_when_it_is_offered_again(
    site: Site, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updater, "qualify", verdict(True))
    watched.worker.offer(site.notice)
    assert watched.end().ok
    graph = site.store.folder / "1" / "policy.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    fresh = Watched(site)  # as after a restart
    fresh.worker.offer(site.notice)
    assert fresh.end().ok
    fresh.worker.stop()
    assert graph.read_bytes() == ONNX
    assert (site.store.active(), watched.until(ReleaseState.ACTIVE).version) == ("1", 1)


def test_an_older_release_that_is_offered_later_is_left(
    site: Site, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updater, "qualify", verdict(True))
    watched.worker.offer(site.publish(5))
    assert watched.end().ok
    watched.worker.offer(site.publish(4))
    while watched.worker.state != "left":
        time.sleep(0.02)
    assert "release 4 is not newer than 5; versions only go up" in (watched.worker.error or "")
    assert site.store.active() == "5" and site.store.versions() == [5]


def test_a_busy_host_is_no_refusal_and_the_release_is_tried_again(
    site: Site, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdicts = [
        Qualification(False, 1, 0.0, 900.0, ("a chunk takes 900 ms",), "load"),
        Qualification(True, 1, 0.0, 1.0),
    ]
    seen: list[ReleaseState] = []

    def qualify(folder: Path, config: Path | None) -> Qualification:
        record = watched.record()
        assert record is not None
        seen.append(record.state)
        return verdicts.pop(0)

    monkeypatch.setattr(updater, "qualify", qualify)
    monkeypatch.setattr(updater, "busy", lambda: updater.Pause(0.5, 0.5))
    watched.worker.offer(site.notice)
    waiting = watched.until(ReleaseState.WAITING_FOR_IDLE)
    assert "a chunk takes 900 ms; tried again when the robot is idle" in waiting.reason
    fetched = len(site.server.requests)
    assert watched.end().ok and site.store.active() == "1"
    assert seen == [ReleaseState.QUALIFYING] * 2
    assert len(site.server.requests) == fetched, "what is here is not fetched again"


def test_a_robot_in_use_tries_no_release_out_until_it_is_idle(
    site: Site, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updater, "qualify", verdict(True))
    watched.worker.set_idle(False)
    watched.worker.offer(site.notice)
    assert watched.until(ReleaseState.WAITING_FOR_IDLE).reason == "the robot is in use"
    watched.worker.set_idle(True)
    assert watched.end().ok and site.store.active() == "1"


def test_a_pinned_policy_holds_releases_until_the_pin_is_lifted(
    site: Site, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updater, "qualify", verdict(True))
    monkeypatch.setattr(updater, "LOOK_S", 0.1)
    watched.worker.offer(site.notice)
    assert watched.end().ok
    site.store.use(1)
    watched.worker.offer(site.publish(2))
    while watched.worker.state != "held":
        time.sleep(0.02)
    assert "version 1 is pinned by the operator" in (watched.worker.error or "")
    assert site.store.versions() == [1]
    with site.store.change() as book:
        book.follow()
    watched.until(ReleaseState.ACTIVE)
    assert site.store.active() == "2"


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
    monkeypatch.setattr(updater, "away", lambda: updater.Pause(0.05, 0.05))
    files, site.server.files = site.server.files, {}
    watched.worker.offer(site.notice)
    deadline = time.monotonic() + 10
    while not watched.worker.error and time.monotonic() < deadline:
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
    while "SHA-256" not in (watched.worker.error or ""):
        time.sleep(0.02)
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
    while watched.worker.state != "died":
        assert time.monotonic() < deadline, watched.worker.state
        time.sleep(0.02)
    assert watched.worker.error == "thread releases died: TypeError: a bug"
