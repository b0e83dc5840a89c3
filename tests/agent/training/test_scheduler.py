from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from bases import NORMALIZER, SPEC, base
from written_episodes import configured, write_config, write_episode

from agent.config import AgentConfig, load_config
from agent.dataset.ingest import Ingest
from agent.recording.ledger import read_ledger
from agent.training.episode_roles import episode_roles
from agent.training.exchange import BaseInfo, MergedWork, TrainingExchange, WorkOrder
from agent.training.scheduler import TrainingScheduler
from policy.batches import open_batches
from policy.build import build_policy, read_weights, write_weights
from policy.release.folder import read_policy_folder
from policy.release.trial import goldens_of, load_graph, worst_golden_error
from policy.train import ChunkErrors, chunk_errors, held_out_error
from policy.weights import Weights, add, subtract, weights_digest
from protocol.contribution import MAX_LOSS
from protocol.waiting import Reason


class Clock:
    """Goes on by a fixed time with each look."""

    def __init__(self, tick_s: float = 0.01) -> None:
        self.now_s, self.tick_s = 1000.0, tick_s

    def __call__(self) -> float:
        self.now_s += self.tick_s
        return self.now_s


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state folder with five ingested episodes."""
    folder = tmp_path_factory.mktemp("recorded")
    config = configured(folder)
    for number in range(5):
        write_episode(config.journal_dir, number, frames=20, cameras={})
    ingest = Ingest(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
        ingest.take(ingest.waiting())
    yield folder / "state"


class Site:
    """One robot's trainer with its exchange."""

    def __init__(self, folder: Path, recorded: Path, training: str = "", federation: str = ""):
        self.path = write_config(folder, training, federation)
        self.config: AgentConfig = load_config(self.path)
        shutil.copytree(recorded, self.config.state_dir, symlinks=True)
        self.exchange = TrainingExchange(self.config.training_dir)
        self.clock = Clock()
        self.unix = Clock(0.0)
        self.start()

    def start(self) -> None:
        """As after a kill: nothing is left but the files."""
        self.scheduler = TrainingScheduler(self.config, self.path, self.clock, self.unix)

    def turns(self, count: int) -> None:
        for _ in range(count):
            self.scheduler.turn()
            # Steps without an end are the only thing that goes on without a reason.
            assert self.scheduler.waiting is not None or self.scheduler.phase == "training"

    def merge(self) -> None:
        """As the client app does: what is published goes out, and into the aggregate."""
        found = self.exchange.contribution()
        assert found is not None
        self.exchange.note_handed_over(found[1], found[0])
        merged = MergedWork(base_digest=found[0].base_digest, round=found[0].base_round + 1)
        self.exchange.note_merged(merged)


def reason(site: Site) -> Reason:
    assert site.scheduler.waiting is not None
    return site.scheduler.waiting.reason


def text(site: Site) -> str:
    assert site.scheduler.waiting is not None
    return site.scheduler.waiting.text


WINDOWS = '[federation]\nbundle = "bundle"\nlocal_work = "window"'


@pytest.fixture
def site(tmp_path: Path, recorded: Path) -> Site:
    return Site(tmp_path, recorded)


def test_without_a_base_or_without_episodes_it_waits_and_says_why(
    tmp_path: Path, recorded: Path, site: Site
) -> None:
    site.turns(1)
    assert (site.scheduler.phase, reason(site)) == ("waiting", Reason.NO_ORDER)
    fleet = tmp_path / "fleet"
    fleet.mkdir()
    member = Site(fleet, recorded, federation=WINDOWS)
    member.turns(1)
    assert (member.scheduler.phase, reason(member)) == ("waiting", Reason.NO_BASE)
    folder = tmp_path / "few"
    folder.mkdir()
    few = Site(folder, recorded, training="min_episodes = 6")
    few.exchange.install_base(*base(0))
    few.turns(2)
    assert few.scheduler.phase == "waiting"
    assert text(few) == "5 episodes recorded, 6 wanted"
    progress = few.exchange.progress()
    assert progress is not None
    assert progress.waiting == few.scheduler.waiting


def test_a_base_is_evaluated_before_any_step_is_made_from_it(site: Site) -> None:
    weights, info = base(4)
    site.exchange.install_base(weights, info)
    site.turns(1)
    result = site.exchange.held_out()[info.digest]
    assert site.scheduler.progress().steps_since_base == 0
    policy = build_policy(SPEC, NORMALIZER, 3)
    write_weights(policy, weights)
    root = site.config.dataset_dir.resolve()
    held_out = open_batches(root, SPEC, NORMALIZER, [1, 4])  # held_out_every = 3
    exact = held_out_error(policy, held_out.ordered(64), NORMALIZER)
    assert (result.frames, result.round) == (40, 4)
    assert result.action_mae == pytest.approx(exact.action_mae, rel=1e-4)


def inflated(factor: float) -> tuple[Weights, BaseInfo]:
    """A base with weights that no training would give."""
    weights, info = base(0)
    large = {
        name: (value * np.float32(factor)).astype(np.float32) for name, value in weights.items()
    }
    return large, info.model_copy(update={"digest": weights_digest(large)})


def test_what_is_trained_on_is_noted_for_good_and_what_is_held_out_is_not(site: Site) -> None:
    site.exchange.install_base(*base(0))
    site.turns(1)
    assert site.exchange.trained() == []
    site.turns(4)
    ledger = read_ledger(site.config.dataset_dir.resolve())
    roles = episode_roles(ledger, site.config.training.held_out_every)
    assert roles.held_out
    assert site.exchange.trained() == [ledger[index].content_digest for index in roles.training]


def test_an_error_that_is_no_number_is_not_reported_and_training_goes_on(site: Site) -> None:
    weights, info = inflated(1e30)
    site.exchange.install_base(weights, info)
    site.turns(5)
    assert site.exchange.held_out() == {}
    assert site.scheduler.phase == "training"
    site.exchange.install_base(*base(1))
    site.turns(3)
    assert set(site.exchange.held_out()) == {base(1)[1].digest}


def test_a_loss_beyond_what_may_be_claimed_is_claimed_as_that(site: Site) -> None:
    weights, info = inflated(1e6)
    site.exchange.install_base(weights, info.model_copy(update={"max_local_steps": 2}))
    site.turns(10)
    found = site.exchange.contribution_info()
    assert found is not None
    assert (found.steps, found.loss) == (2, MAX_LOSS)


def test_a_contribution_is_what_was_gained_since_the_base(site: Site) -> None:
    weights, info = base(2, max_local_steps=7)
    site.exchange.install_base(weights, info)
    site.turns(12)
    found = site.exchange.contribution()
    assert found is not None
    meta, delta = found
    assert (meta.base_digest, meta.base_round, meta.steps) == (info.digest, 2, 7)
    assert meta.examples == 60, "of five episodes of 20 frames two are held out"
    assert meta.window_id is None
    assert weights_digest(add(weights, delta)) != weights_digest(weights)
    assert site.scheduler.phase == "resting"
    assert "7 steps" in text(site)


def test_at_the_cap_it_rests_until_the_next_base_and_then_starts_from_that(site: Site) -> None:
    site.exchange.install_base(*base(0, max_local_steps=5))
    site.turns(20)
    assert site.scheduler.progress().steps_total == 5
    site.merge()
    weights, info = base(1, seed=1, max_local_steps=3)
    site.exchange.install_base(weights, info)
    site.turns(10)
    assert set(site.exchange.held_out()) == {base(0)[1].digest, info.digest}
    found = site.exchange.contribution_info()
    assert found is not None
    assert (found.base_digest, found.steps) == (info.digest, 3)
    assert site.scheduler.progress().steps_total == 8


def test_work_on_a_later_base_takes_smaller_steps(site: Site) -> None:
    def gained(round_number: int) -> float:
        weights, info = base(round_number, seed=round_number, max_local_steps=60)
        spec = SPEC.model_copy(update={"round_decay": 0.1, "learning_rate": 1e-3})
        site.exchange.install_base(weights, info.model_copy(update={"spec": spec.to_json()}))
        site.turns(70)
        found = site.exchange.contribution()
        assert found is not None
        assert (found[0].base_round, found[0].steps) == (round_number, 60)
        site.merge()
        return sum(float((delta**2).sum()) for delta in found[1].values())

    assert gained(1) < 0.2 * gained(0)


def test_a_new_base_is_noticed_between_two_steps(site: Site) -> None:
    site.exchange.install_base(*base(0, max_local_steps=3))
    site.turns(5)
    site.merge()
    _, info = base(1, seed=1)
    site.exchange.install_base(base(1, seed=1)[0], info)
    site.turns(1)
    assert site.scheduler.progress().base_digest == info.digest
    assert site.scheduler.progress().steps_since_base == 0


def test_snapshots_are_published_by_the_clock(site: Site) -> None:
    site.clock.tick_s = 0.001
    site.exchange.install_base(*base(0))
    site.turns(4)
    assert site.exchange.contribution_info() is None, "publish_every_s has not passed"
    site.clock.now_s += 0.3
    site.turns(1)
    first = site.exchange.contribution_info()
    assert first is not None
    site.clock.now_s += 0.3
    site.turns(1)
    second = site.exchange.contribution_info()
    assert second is not None
    assert (second.sequence, second.steps) == (first.sequence + 1, first.steps + 1)


def test_killed_it_goes_on_from_its_last_snapshot(site: Site) -> None:
    weights, info = base(0, max_local_steps=10)
    site.exchange.install_base(weights, info)
    site.clock.tick_s = 1.0  # each step is published
    site.turns(6)
    before = site.exchange.contribution()
    assert before is not None
    site.start()
    site.clock.tick_s = 0.0
    site.turns(2)
    progress = site.scheduler.progress()
    assert progress.steps_since_base == before[0].steps + 1
    site.turns(20)
    after = site.exchange.contribution()
    assert after is not None
    assert after[0].steps == 10
    assert after[0].sequence > before[0].sequence
    moved = sum(float(np.abs(after[1][name] - before[1][name]).max()) for name in after[1])
    assert 0 < moved < 1, "it went on from where it was, not from elsewhere"


def test_killed_after_a_new_base_it_does_not_take_up_what_belongs_to_the_old(site: Site) -> None:
    site.exchange.install_base(*base(0, max_local_steps=4))
    site.turns(8)
    site.merge()
    weights, info = base(1, seed=1)
    site.exchange.install_base(weights, info)
    site.start()
    site.turns(1)
    assert site.scheduler.progress().steps_since_base == 0


def test_a_damaged_base_is_refused_and_a_good_one_taken_later(site: Site) -> None:
    weights, info = base(0)
    site.exchange.install_base(weights, info)
    path = site.config.training_dir / "base.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    site.turns(1)
    assert site.scheduler.phase == "waiting"
    assert "base refused" in text(site)
    site.exchange.install_base(weights, info)
    site.turns(3)
    assert site.scheduler.phase == "training"


def test_a_base_for_other_features_is_said_not_trained(site: Site) -> None:
    weights, info = base(0)
    spec = SPEC.model_copy(update={"fps": 50})
    site.exchange.install_base(weights, info.model_copy(update={"spec": spec.to_json()}))
    site.turns(2)
    assert site.scheduler.phase == "waiting"
    assert "50" in text(site)


def test_in_window_mode_it_works_on_order_only_and_for_so_many_steps(
    tmp_path: Path, recorded: Path
) -> None:
    site = Site(tmp_path, recorded, federation=WINDOWS)
    weights, info = base(0)
    site.exchange.install_base(weights, info)
    site.turns(5)
    assert site.scheduler.progress().steps_total == 0
    order = WorkOrder(
        window_id="w1", base_digest=info.digest, steps=6, deadline_unix_s=site.unix.now_s + 60
    )
    site.exchange.order_work(order)
    site.turns(15)
    found = site.exchange.contribution_info()
    assert found is not None
    assert (found.window_id, found.steps) == ("w1", 6)
    site.exchange.order_work(order.model_copy(update={"window_id": "w2", "steps": 4}))
    site.turns(15)
    found = site.exchange.contribution_info()
    assert found is not None
    assert (found.window_id, found.steps) == ("w2", 4)
    site.exchange.clear_work_order()
    site.turns(3)
    assert site.scheduler.progress().steps_total == 10


def test_at_the_deadline_the_partial_result_is_published(tmp_path: Path, recorded: Path) -> None:
    site = Site(tmp_path, recorded, federation=WINDOWS)
    weights, info = base(0)
    site.exchange.install_base(weights, info)
    site.clock.tick_s = 0.0
    site.exchange.order_work(
        WorkOrder(
            window_id="w1",
            base_digest=info.digest,
            steps=1000,
            deadline_unix_s=site.unix.now_s + 60,
        )
    )
    site.turns(6)
    assert site.exchange.contribution_info() is None
    site.unix.now_s += 61
    site.turns(3)
    found = site.exchange.contribution_info()
    assert found is not None
    assert found.window_id == "w1"
    assert 0 < found.steps < 1000
    assert "time is up" in text(site)


def test_killed_inside_a_window_it_goes_on_with_that_window(tmp_path: Path, recorded: Path) -> None:
    site = Site(tmp_path, recorded, federation=WINDOWS)
    weights, info = base(0)
    site.exchange.install_base(weights, info)
    site.clock.tick_s = 1.0
    site.exchange.order_work(
        WorkOrder(
            window_id="w1", base_digest=info.digest, steps=9, deadline_unix_s=site.unix.now_s + 60
        )
    )
    site.turns(5)
    before = site.exchange.contribution_info()
    assert before is not None
    site.start()
    site.turns(2)
    assert site.scheduler.progress().steps_since_base > before.steps


def test_an_order_for_another_base_is_not_obeyed(tmp_path: Path, recorded: Path) -> None:
    site = Site(tmp_path, recorded, federation=WINDOWS)
    site.exchange.install_base(*base(0))
    site.exchange.order_work(
        WorkOrder(
            window_id="w1", base_digest="f" * 64, steps=9, deadline_unix_s=site.unix.now_s + 60
        )
    )
    site.turns(5)
    assert site.scheduler.progress().steps_total == 0


def test_an_episode_more_is_trained_on_without_a_restart(site: Site) -> None:
    site.exchange.install_base(*base(0))
    site.turns(3)
    frames = site.exchange.held_out()[base(0)[1].digest].frames
    ingest = Ingest(site.config)
    for number in range(5, 8):
        write_episode(site.config.journal_dir, number, frames=20, cameras={})
    ingest.take(ingest.waiting())
    site.clock.now_s += 2.0
    site.turns(2)
    assert site.exchange.held_out()[base(0)[1].digest].frames == frames + 20


def test_the_baseline_is_trained_first_and_once_and_becomes_the_local_policy(
    tmp_path: Path, recorded: Path
) -> None:
    site = Site(tmp_path, recorded, training="baseline_steps = 8")
    weights, info = base(0, max_local_steps=3)
    site.exchange.install_base(weights, info)
    site.turns(6)
    assert site.scheduler.phase == "baseline"
    assert site.scheduler.progress().steps_total == 0
    site.turns(10)
    folder = read_policy_folder(site.config.policies_dir / "local")
    assert folder.manifest.version == 0
    assert folder.spec == SPEC
    assert list(folder.manifest.evaluation["held_out"]) == ["arm-1"]
    assert worst_golden_error(load_graph(folder, 1), goldens_of(folder)) < 1e-4
    baseline = site.scheduler.progress().baseline
    assert baseline is not None
    assert baseline["done"]
    assert baseline["held_out_mae"] < site.exchange.held_out()[info.digest].action_mae * 1.5
    made = (folder.path / "manifest.json").stat().st_ino
    site.start()
    site.turns(8)
    assert (folder.path / "manifest.json").stat().st_ino == made, "it is not made twice"
    found = site.exchange.contribution_info()
    assert found is not None
    assert found.steps == 3


def test_a_baseline_killed_before_its_folder_was_in_place_is_exported_again(
    tmp_path: Path, recorded: Path
) -> None:
    site = Site(tmp_path, recorded, training="baseline_steps = 4")
    site.exchange.install_base(*base(0, max_local_steps=1))
    site.turns(8)
    local = site.config.policies_dir / "local"
    steps = site.scheduler.progress().baseline
    shutil.rmtree(local)
    site.start()
    site.turns(4)
    assert read_policy_folder(local).manifest.version == 0
    assert steps is not None
    after = site.scheduler.progress().baseline
    assert after is not None
    assert after["steps"] == steps["steps"] == 4


def moved(site: Site, weights: Weights) -> Weights:
    """The trained weights less these."""
    work = site.scheduler._work
    assert work is not None
    return subtract(read_weights(work.policy), weights)


def longest(delta: Weights) -> float:
    return max(float(np.abs(array).max()) for array in delta.values())


@pytest.mark.parametrize("killed", [False, True])
def test_on_a_new_base_what_was_gained_since_the_hand_over_is_carried_over(
    site: Site, killed: bool
) -> None:
    old, info = base(0, max_local_steps=3)
    site.exchange.install_base(old, info)
    site.turns(8)
    site.merge()
    handed = site.exchange.contribution()
    site.exchange.install_base(old, info.model_copy(update={"max_local_steps": 9}))
    site.turns(20)
    local = site.exchange.contribution()
    assert handed is not None
    assert local is not None
    assert (handed[0].steps, local[0].steps) == (3, 9)
    new, new_info = base(1, seed=1, max_local_steps=5)
    site.exchange.install_base(new, new_info)
    if killed:
        site.start()
    site.turns(1)
    assert site.scheduler.progress().steps_since_base == 6
    carried = subtract(local[1], handed[1])
    assert longest(carried) > 0.0
    assert longest(subtract(moved(site, new), carried)) < 1e-6
    site.turns(20)
    found = site.exchange.contribution_info()
    assert found is not None
    assert (found.base_digest, found.steps) == (new_info.digest, 11), "and works on from there"


def test_what_was_never_merged_is_carried_whole_and_less_the_older_it_is(site: Site) -> None:
    site.exchange.install_base(*base(0, max_local_steps=4))
    site.turns(8)
    gained = site.exchange.contribution()
    assert gained is not None
    site.exchange.note_handed_over(gained[1], gained[0])  # to a round that failed
    new, info = base(4, seed=1)
    site.exchange.install_base(new, info)
    site.turns(1)
    assert site.scheduler.progress().steps_since_base == 4
    half = {name: array * np.float32(0.5) for name, array in gained[1].items()}  # 1/sqrt(1 + 3)
    assert longest(subtract(moved(site, new), half)) < 1e-6


def test_a_gain_with_another_normaliser_is_not_carried_over(site: Site) -> None:
    site.exchange.install_base(*base(0, max_local_steps=4))
    site.turns(8)
    weights, info = base(1, seed=1)
    spec = SPEC.model_copy(update={"learning_rate": 1e-2})
    site.exchange.install_base(weights, info.model_copy(update={"spec": spec.to_json()}))
    site.turns(1)
    assert site.scheduler.progress().steps_since_base == 0


def test_killed_at_any_step_it_comes_to_the_very_same_weights(
    tmp_path: Path, recorded: Path
) -> None:
    spec = SPEC.model_copy(update={"dropout": 0.1})  # random numbers in every step
    weights, info = base(0, max_local_steps=30)
    info = info.model_copy(update={"spec": spec.to_json()})
    ends = []
    for name, kills in (("never", ()), ("often", (2, 5, 7, 13, 14))):
        folder = tmp_path / name
        folder.mkdir()
        site = Site(folder, recorded)
        site.clock.tick_s = 0.05
        site.exchange.install_base(weights, info)
        for turn in range(60):
            if turn in kills:
                torch.manual_seed(turn)  # a new process does not know where the old one's was
                site.start()
            site.turns(1)
        found = site.exchange.contribution()
        assert found is not None
        assert found[0].steps == 30
        ends.append(weights_digest(found[1]))
    assert ends[0] == ends[1]


def test_a_damaged_checkpoint_costs_the_optimisers_memory_and_no_work(site: Site) -> None:
    site.exchange.install_base(*base(0, max_local_steps=6))
    site.turns(10)
    path = site.config.training_dir / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    site.start()
    site.turns(2)
    assert site.scheduler.progress().steps_since_base == 6


def test_a_base_is_evaluated_on_an_episode_once_over_restarts_and_versions(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[int] = []

    def counted(policy: object, batch: dict[str, torch.Tensor], *rest: object) -> ChunkErrors:
        judged.append(len(batch["action"]))
        return chunk_errors(policy, batch, *rest)

    monkeypatch.setattr("agent.training.evaluation.chunk_errors", counted)
    site.exchange.install_base(*base(0))
    site.turns(3)
    before = site.exchange.held_out()[base(0)[1].digest]
    assert judged == [20, 20]
    site.start()
    site.turns(3)
    assert judged == [20, 20]
    ingest = Ingest(site.config)
    for number in range(5, 8):
        write_episode(site.config.journal_dir, number, frames=12, cameras={})
    ingest.take(ingest.waiting())
    site.clock.now_s += 2.0
    site.turns(2)
    assert judged == [20, 20, 12]
    after = site.exchange.held_out()[base(0)[1].digest]
    assert after.frames == 52
    assert [each.error for each in after.episodes[:2]] == [each.error for each in before.episodes]
