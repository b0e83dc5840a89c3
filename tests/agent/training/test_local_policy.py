"""One arm alone: an order, its reasons, its policy, and what survives a kill."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from written_episodes import write_config, write_episode

from agent.config import load_config
from agent.dataset.ingest import Ingest
from agent.policies.qualification import Qualification
from agent.training import local_policy
from agent.training.exchange import LocalOrder, LocalProgress, TrainingExchange
from agent.training.scheduler import TrainingScheduler
from policy.release.folder import read_policy_folder
from protocol.waiting import Reason

TRACKER = """
[tracker]
camera = "overhead"
hue_min_deg = 340
hue_max_deg = 20
homography = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
"""
STEPS = 24


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state folder with three ingested episodes."""
    folder = tmp_path_factory.mktemp("recorded")
    config = load_config(write_config(folder, federation=TRACKER))
    for number in range(3):
        write_episode(config.journal_dir, number, frames=20, cameras={})
    ingest = Ingest(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
        ingest.take(ingest.waiting())
    yield folder / "state"


class Alone:
    """A trainer whose robot belongs to no fleet."""

    def __init__(self, folder: Path, recorded: Path | None, sensors: str = TRACKER) -> None:
        self.path = write_config(folder, federation=sensors)
        self.config = load_config(self.path)
        if recorded is not None:
            shutil.copytree(recorded, self.config.state_dir, symlinks=True)
        self.exchange = TrainingExchange(self.config.training_dir)
        self.now_s = 100.0
        self.start()

    def clock(self) -> float:
        self.now_s += 0.01
        return self.now_s

    def start(self) -> None:
        """As after a kill: nothing is left but the files."""
        self.scheduler = TrainingScheduler(self.config, self.path, self.clock, self.clock)

    def order(self, letter: str = "a") -> None:
        self.exchange.order_local(LocalOrder(order_id=letter * 32, steps=STEPS))

    def turns(self, count: int) -> None:
        for _ in range(count):
            self.scheduler.turn()

    @property
    def reason(self) -> Reason | None:
        return None if self.scheduler.waiting is None else self.scheduler.waiting.reason

    @property
    def local(self) -> LocalProgress:
        local = self.scheduler.progress().local
        assert local is not None
        return local


@pytest.fixture
def alone(tmp_path: Path, recorded: Path, monkeypatch: pytest.MonkeyPatch) -> Alone:
    """Its policies qualify without a child process; the real one is in the system test."""
    monkeypatch.setattr(local_policy, "qualify", lambda *_: Qualification(ok=True))
    return Alone(tmp_path, recorded)


def test_without_an_order_it_waits_for_one_and_trains_nothing(alone: Alone) -> None:
    alone.turns(3)
    assert alone.reason is Reason.NO_ORDER
    assert alone.scheduler.progress().local is None


def test_an_order_is_trained_exported_and_becomes_the_local_policy(alone: Alone) -> None:
    alone.order()
    alone.turns(6)
    assert (alone.scheduler.phase, alone.reason) == ("local", Reason.STEPS)
    assert alone.scheduler.waiting is not None
    assert alone.scheduler.waiting.text == f"step 6 of {STEPS}"
    alone.turns(STEPS)
    folder = read_policy_folder(alone.config.policies_dir / "local")
    assert folder.spec == alone.config.own_policy()
    assert folder.spec.environment_names == ("cube.x_m", "cube.y_m")
    assert (alone.local.state, alone.local.step) == ("ready", STEPS)
    assert alone.local.held_out_mae is not None
    assert alone.exchange.local_order() is None
    assert not list((alone.config.training_dir / "local").glob("*"))


def test_a_finished_order_is_remembered_by_the_next_trainer_and_not_done_twice(
    alone: Alone,
) -> None:
    alone.order()
    alone.turns(STEPS + 3)
    made = (alone.config.policies_dir / "local" / "manifest.json").stat().st_ino
    alone.start()
    alone.turns(3)
    assert alone.local.state == "ready"
    assert (alone.config.policies_dir / "local" / "manifest.json").stat().st_ino == made


def test_a_new_order_of_the_same_episodes_is_trained_anew(alone: Alone) -> None:
    alone.order()
    alone.turns(STEPS + 3)
    alone.order("b")
    alone.turns(2)
    assert (alone.local.state, alone.local.step) == ("training", 2)


def test_killed_it_goes_on_from_its_checkpoint_also_with_an_episode_more(
    alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.training.local_baseline.CHECKPOINT_EVERY_S", 0.0)
    monkeypatch.setattr("agent.training.local_baseline._SAVING_SHARE", 1e9)
    alone.order()
    alone.turns(10)
    ingest = Ingest(alone.config)
    write_episode(alone.config.journal_dir, 9, frames=20, cameras={})
    ingest.take(ingest.waiting())
    alone.start()
    alone.turns(1)
    assert alone.local.step == 11


def test_episodes_that_are_still_to_be_ingested_are_waited_for_but_not_for_ever(
    alone: Alone,
) -> None:
    write_episode(alone.config.journal_dir, 9, frames=20, cameras={})
    alone.order()
    alone.turns(3)
    assert alone.reason is Reason.INGESTING
    alone.now_s += local_policy.INGEST_PATIENCE_S
    alone.turns(1)
    assert alone.reason is Reason.STEPS


def test_without_enough_episodes_it_says_how_many_there_are(tmp_path: Path) -> None:
    alone = Alone(tmp_path, None)
    alone.order()
    alone.turns(2)
    assert alone.reason is Reason.NO_EPISODES
    assert alone.local.state == "waiting"


def test_a_policy_that_does_not_qualify_is_refused_and_the_one_before_stays(
    alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone.order()
    alone.turns(STEPS + 3)
    made = (alone.config.policies_dir / "local" / "manifest.json").stat().st_ino
    slow = Qualification(ok=False, reasons=("a chunk takes 900 ms",))
    monkeypatch.setattr(local_policy, "qualify", lambda *_: slow)
    alone.order("b")
    alone.turns(STEPS + 3)
    assert (alone.local.state, alone.local.refusal) == ("refused", "a chunk takes 900 ms")
    assert (alone.config.policies_dir / "local" / "manifest.json").stat().st_ino == made
    assert alone.exchange.local_order() is None


def test_a_damaged_order_is_no_order(alone: Alone) -> None:
    alone.exchange.folder.mkdir(parents=True, exist_ok=True)
    (alone.exchange.folder / "local_order.json").write_text("{")
    alone.turns(2)
    assert alone.reason is Reason.NO_ORDER


def test_with_cameras_alone_the_policy_sees_their_pictures(tmp_path: Path) -> None:
    alone = Alone(tmp_path, None, sensors="")
    spec = alone.config.own_policy()
    assert [(camera.name, camera.height, camera.width) for camera in spec.cameras] == [
        ("overhead", 48, 64)
    ]
    assert spec.environment_names == ()
