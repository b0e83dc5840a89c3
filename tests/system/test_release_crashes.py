"""kill -9 of a real process at each durable step of a release's life, and what goes wrong in each.

Version 1 is active; version 2 is offered, served over HTTPS, and dies with its process just before
and right after each of its states is on the disk. A fresh process then takes up what it finds.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from release_site import Site
from release_victim import ILL, RULES, WELL

from agent.config import TrialConfig
from agent.policies import updater
from agent.policies.errors import NoSuchPolicy
from agent.policies.qualification import Qualification
from agent.policies.release_book import OfferAnswer, RobotRelease
from agent.policies.release_states import ReleaseEvent, ReleaseState
from agent.policies.store import PolicyStore
from agent.policies.trials import PolicyTrials, judge_episode
from agent.policies.updater import PolicyUpdater
from policy.release.folder import read_policy_folder
from protocol.messages import ReleaseNotice

VICTIM = Path(__file__).parents[1] / "support" / "release_victim.py"
S = ReleaseState
BOTH = pytest.mark.parametrize("when", ["before", "after"])


class Robot:
    """A robot's folder, its coordinator's server, and the processes that come and go."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.site = Site(folder)
        self.monkeypatch = monkeypatch
        self.store = self.site.store
        self.qualified: list[Qualification] = []
        monkeypatch.setattr(updater, "qualify", self._qualify)
        for name in ("away", "damaged", "busy"):
            monkeypatch.setattr(updater, name, lambda: updater.Pause(0.05, 0.05))
        self.fetch(TrialConfig(canary_episodes=0))
        assert self.store.active() == "1"
        self.notice = self.site.publish(2)
        self.site.server.requests.clear()

    def _qualify(self, folder: Path, config: Path | None) -> Qualification:
        return self.qualified.pop(0) if self.qualified else Qualification(True)

    def killed_in(self, state: ReleaseState, when: str, scene: str = "") -> None:
        command = [sys.executable, str(VICTIM), str(self.site.folder), state.value, when, scene]
        done = subprocess.run(
            [*command, self.notice.model_dump_json()], timeout=60, stderr=subprocess.PIPE
        )
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-500:]
        fresh = PolicyStore(self.store.folder)
        fresh.sweep()
        assert not [path for path in fresh.folder.iterdir() if path.name.startswith(".")]
        for version in fresh.versions():
            read_policy_folder(fresh.folder / str(version), hash_all=True)
        assert (fresh.active() == "1") or state in (S.ACTIVE, S.RETIRED)

    @property
    def record(self) -> RobotRelease:
        return self.store.book().releases[self.site.notice.manifest_digest]

    def fetch(self, rules: TrialConfig = RULES) -> None:
        """A federation process comes up, hears the notice, and is done with it."""
        worker = PolicyUpdater(
            self.site.bundle, self.store, self.site.downloads, rules, None, lambda: None
        )
        worker.start()
        worker.offer(self.site.notice)
        deadline = time.monotonic() + 20
        while worker._wanted is not None:
            assert time.monotonic() < deadline, worker.error
            time.sleep(0.01)
        worker.stop()

    def boot(self) -> PolicyTrials:
        """A daemon comes up."""
        trials = PolicyTrials(PolicyStore(self.store.folder), RULES)
        trials.agent_started()
        return trials

    def finish(self, trials: PolicyTrials | None = None) -> None:
        """Bring version 2 from wherever it is to the end of its trial."""
        trials = trials or self.boot()
        if self.record.state is S.SHADOW:
            trials.shadow_seen("2", {"seconds": 5.0, "difference": 1.0, "fault": None})
        while self.record.state is S.CANARY:
            self.drive(trials, WELL)

    def drive(self, trials: PolicyTrials, episode: dict[str, object]) -> None:
        armed = trials.to_drive("active")
        assert armed.limits == RULES.canary_limits
        trials.armed(armed)
        trials.drive_begins()
        assert self.record.state is S.DRIVING
        trials.drive_ended(episode)

    def to(self, state: ReleaseState) -> PolicyTrials:
        self.fetch()
        trials = self.boot()
        if state is not S.SHADOW:
            trials.shadow_seen("2", {"seconds": 5.0, "difference": 1.0, "fault": None})
        if state is S.ACTIVE:
            self.finish(trials)
        assert self.record.state is state
        return trials

    def offered_again(self) -> None:
        before = self.record
        self.fetch()
        assert self.record == before


@pytest.fixture
def robot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Robot]:
    made = Robot(tmp_path, monkeypatch)
    yield made
    made.site.close()


def goes_on(robot: Robot, *, fetched: bool) -> None:
    """A fresh process brings the release to its end, and fetches only what is not here."""
    robot.site.server.requests.clear()
    robot.fetch()
    assert bool(robot.site.server.requests) is fetched
    robot.finish()
    assert (robot.store.active(), robot.record.state) == ("2", S.ACTIVE)
    assert not list(robot.site.downloads.iterdir())


@BOTH
def test_killed_in_offered(robot: Robot, when: str) -> None:
    robot.killed_in(S.OFFERED, when)
    goes_on(robot, fetched=True)


@BOTH
def test_killed_in_downloading(robot: Robot, when: str) -> None:
    robot.killed_in(S.DOWNLOADING, when)
    goes_on(robot, fetched=True)


@BOTH
def test_killed_in_verified(robot: Robot, when: str) -> None:
    robot.killed_in(S.VERIFIED, when)
    goes_on(robot, fetched=False)


@BOTH
def test_killed_in_qualifying(robot: Robot, when: str) -> None:
    robot.killed_in(S.QUALIFYING, when)
    goes_on(robot, fetched=False)


@BOTH
def test_killed_in_waiting_for_idle(robot: Robot, when: str) -> None:
    robot.killed_in(S.WAITING_FOR_IDLE, when, "busy")
    goes_on(robot, fetched=False)


@BOTH
def test_killed_in_shadow(robot: Robot, when: str) -> None:
    robot.killed_in(S.SHADOW, when)
    trials = robot.boot()
    assert trials.to_drive("active").folder.name == "1"
    goes_on(robot, fetched=False)


@BOTH
def test_killed_in_canary(robot: Robot, when: str) -> None:
    robot.killed_in(S.CANARY, when)
    robot.boot()
    assert robot.record.state is (S.SHADOW if when == "before" else S.CANARY)  # not blamed
    goes_on(robot, fetched=False)


def test_killed_in_driving(robot: Robot) -> None:
    robot.killed_in(S.DRIVING, "after")
    assert robot.store.book().to_drive() == "2"
    trials = robot.boot()
    assert robot.record.state is S.ROLLED_BACK
    assert "went down while this version had the arm" in robot.record.reason
    assert trials.to_drive("active").folder.name == "1"
    robot.offered_again()


def test_killed_before_driving_the_version_is_not_blamed(robot: Robot) -> None:
    robot.killed_in(S.DRIVING, "before")
    robot.boot()
    assert robot.record.state is S.CANARY
    goes_on(robot, fetched=False)


def test_killed_in_active(robot: Robot) -> None:
    robot.killed_in(S.ACTIVE, "after")
    robot.boot()
    assert (robot.store.active(), robot.record.state) == ("2", S.ACTIVE)
    robot.offered_again()


def test_killed_before_active_the_last_episode_is_blamed(robot: Robot) -> None:
    robot.killed_in(S.ACTIVE, "before")  # its marker is on the disk
    robot.boot()
    assert (robot.store.active(), robot.record.state) == ("1", S.ROLLED_BACK)


@BOTH
def test_killed_in_retired(robot: Robot, when: str) -> None:
    robot.killed_in(S.RETIRED, when, "retired")
    robot.boot()
    assert robot.store.active() == ("2" if when == "before" else "1")
    assert robot.store.book().pinned is (when == "after")
    robot.offered_again()


@BOTH
def test_killed_in_set_aside(robot: Robot, when: str) -> None:
    robot.killed_in(S.SET_ASIDE, when, "set_aside")
    trials = robot.boot()
    if when == "before":
        trials.use("1")
    assert (robot.store.active(), robot.record.state) == ("1", S.SET_ASIDE)
    trials.use("newest")
    goes_on(robot, fetched=False)


@BOTH
def test_killed_in_rolled_back(robot: Robot, when: str) -> None:
    robot.killed_in(S.ROLLED_BACK, when, "fault")
    robot.boot()  # before: the marker is found; after: it is known
    assert (robot.store.active(), robot.record.state) == ("1", S.ROLLED_BACK)
    robot.offered_again()


@BOTH
def test_killed_in_refused(robot: Robot, when: str) -> None:
    robot.killed_in(S.REFUSED, when, "content")
    robot.qualified = [Qualification(False, reasons=("golden actions differ",))]
    robot.fetch()
    assert (robot.store.active(), robot.record.state) == ("1", S.REFUSED)
    robot.qualified = []
    robot.offered_again()


# What goes wrong in each state.


def test_error_in_offered(robot: Robot) -> None:
    robot.site.notice = older = robot.notice.model_copy(update={"version": 1})
    robot.fetch()
    assert older.manifest_digest not in robot.store.book().releases


def test_error_in_downloading(robot: Robot) -> None:
    files, robot.site.server.files = robot.site.server.files, {}
    back = threading.Timer(0.3, lambda: robot.site.server.files.update(files))
    back.start()
    goes_on(robot, fetched=True)


def test_error_in_verified(robot: Robot) -> None:
    """Damaged after it was verified: found in its trial, deleted, fetched again."""
    robot.qualified = [Qualification(False, reasons=("SHA-256",), cause="damage")]
    goes_on(robot, fetched=True)
    assert [name for name, _ in robot.site.server.requests].count("manifest.json") == 2


def test_error_in_qualifying(robot: Robot) -> None:
    robot.qualified = [Qualification(False, reasons=("golden actions differ",))]
    robot.fetch()
    assert (robot.record.state, robot.record.reason) == (S.REFUSED, "golden actions differ")
    robot.offered_again()


def test_error_in_waiting_for_idle(robot: Robot) -> None:
    busy = Qualification(False, reasons=("it takes 900 ms",), cause="load")
    robot.qualified = [busy] * 5
    goes_on(robot, fetched=True)


def test_error_in_shadow(robot: Robot) -> None:
    trials = robot.to(S.SHADOW)
    trials.shadow_seen("2", {"seconds": 1.0, "difference": None, "fault": "it hangs"})
    assert (robot.record.state, robot.record.reason) == (S.ROLLED_BACK, "as a shadow: it hangs")
    robot.offered_again()


def test_error_in_canary(robot: Robot) -> None:
    trials = robot.to(S.CANARY)
    trials.armed(trials.to_drive("active"))
    trials.drive_begins()
    trials.drive_called_off()  # control refused: no camera
    assert robot.record.state is S.CANARY
    with pytest.raises(NoSuchPolicy, match="is on trial"):
        trials.to_drive("2")  # past the limits by its name
    assert trials.roll_back()["rolled_back_to"] == "1"
    with pytest.raises(NoSuchPolicy, match="version 2 is rolled_back"):
        trials.drive_begins()
    robot.offered_again()


def test_error_in_driving(robot: Robot) -> None:
    trials = robot.to(S.CANARY)
    robot.drive(trials, ILL)
    assert (robot.store.active(), robot.record.state) == ("1", S.ROLLED_BACK)
    assert robot.record.reason == "it does not answer"
    with pytest.raises(NoSuchPolicy, match="version 2 is rolled_back"):
        trials.drive_begins()  # the control process has it loaded still
    robot.offered_again()


def test_error_in_driving_of_the_process_that_moves_the_arm(robot: Robot) -> None:
    trials = robot.to(S.CANARY)
    trials.armed(trials.to_drive("active"))
    trials.drive_begins()
    trials.control_died("the control process died (SIGSEGV)")
    assert "SIGSEGV" in robot.record.reason and robot.store.active() == "1"
    robot.offered_again()


def test_error_in_active(robot: Robot) -> None:
    """A trusted version is taken away by a person alone; its rollback lasts."""
    trials = robot.to(S.ACTIVE)
    trials.armed(trials.to_drive("active"))
    trials.drive_ended(ILL)
    assert robot.record.state is S.ACTIVE
    assert trials.roll_back()["rolled_back_to"] == "1"
    assert robot.record.state is S.ROLLED_BACK
    robot.offered_again()


def test_error_in_retired(robot: Robot) -> None:
    trials = robot.to(S.ACTIVE)
    (robot.store.folder / "1" / "policy.onnx").write_bytes(b"damaged")
    with pytest.raises(Exception, match="its manifest says"):
        trials.roll_back()
    assert robot.store.active() == "2" and robot.record.state is S.ACTIVE


def test_error_in_set_aside(robot: Robot) -> None:
    trials = robot.to(S.SHADOW)
    trials.use("1")
    robot.notice = robot.site.publish(3)
    trials.use("newest")
    robot.fetch()
    book = robot.store.book()
    assert {r.version: r.state for r in book.releases.values()} == {
        1: S.ACTIVE,
        2: S.SET_ASIDE,
        3: S.SHADOW,
    }


def test_error_in_rolled_back(robot: Robot) -> None:
    """The operator may bring it back, and only the operator."""
    trials = robot.to(S.CANARY)
    robot.drive(trials, ILL)
    robot.offered_again()
    trials.use("2")
    assert (robot.store.active(), robot.record.state) == ("2", S.ACTIVE)
    assert robot.store.book().pinned


def test_error_in_refused(robot: Robot) -> None:
    robot.qualified = [Qualification(False, reasons=("golden actions differ",))]
    robot.fetch()
    with pytest.raises(NoSuchPolicy, match="no policy '2'"):
        robot.boot().use("2")
    assert robot.store.book().answer(robot.notice.manifest_digest, 2)[0] is OfferAnswer.LEAVE


# What an episode says of a canary.


@pytest.mark.parametrize(
    ("episode", "event"),
    [
        ({}, ReleaseEvent.EPISODE_PASSED),
        ({"outcome": "stopped by the operator"}, ReleaseEvent.NOT_COUNTED),
        ({"outcome": "stopped by the operator", "success": True}, ReleaseEvent.EPISODE_PASSED),
        ({"outcome": "stopped by the operator", "success": False}, ReleaseEvent.FAULT),
        ({"success": False}, ReleaseEvent.FAULT),
        ({"intervention_ticks": 9}, ReleaseEvent.NOT_COUNTED),
        ({"outcome": "the emergency stop ended it"}, ReleaseEvent.FAULT),
        ({"outcome": "fault: follower unplugged"}, ReleaseEvent.NOT_COUNTED),
        ({"inference": {"fault": "gave a chunk that is no action"}}, ReleaseEvent.FAULT),
        ({"clamped_ticks": 30}, ReleaseEvent.EPISODE_PASSED),
        ({"clamped_ticks": 31}, ReleaseEvent.FAULT),
        ({"ticks": 0, "outcome": "too far away"}, ReleaseEvent.NOT_COUNTED),
    ],
)
def test_what_an_episode_says(episode: dict[str, object], event: ReleaseEvent) -> None:
    assert judge_episode({**WELL, **episode}, RULES)[0] is event


def test_the_notice_of_these_tests_is_a_notice(robot: Robot) -> None:
    assert ReleaseNotice.model_validate_json(robot.notice.model_dump_json()) == robot.notice
