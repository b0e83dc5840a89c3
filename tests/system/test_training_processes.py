"""Ingest and trainer as real processes: killed, frozen, continued."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from bases import NORMALIZER, SPEC, base
from written_episodes import CAMERA, configured, write_config, write_episode

from agent.dataset.ingest import Ingest
from agent.dataset.versions import DatasetVersions
from agent.recording.journal import EpisodeReader
from agent.training.exchange import TrainingExchange
from policy.batches import load_frames
from policy.build import build_policy, read_weights
from policy.spec import ACTION, CameraSpec
from policy.weights import weights_digest

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

HERE = Path(__file__).parent
START_S = 240.0  # torch and LeRobot load for ten seconds, longer beside others


def wait_for(what: Callable[[], bool], timeout_s: float) -> float:
    """Seconds until it is true."""
    start_s = time.monotonic()
    while not what():
        assert time.monotonic() - start_s < timeout_s, "it never came"
        time.sleep(0.005)
    return time.monotonic() - start_s


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def test_ingest_killed_at_random_instants_loses_no_episode_and_takes_none_twice(
    tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    config = configured(tmp_path)
    chance = random.Random(20)
    victim = subprocess.Popen(
        [sys.executable, str(HERE / "ingest_victim.py"), str(tmp_path / "agent.toml")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    started.append(victim)
    assert victim.stdin is not None
    assert victim.stdout is not None
    written = kills = 0

    def one_pass(kill_after_s: float | None) -> bool:
        assert victim.stdin is not None
        assert victim.stdout is not None
        victim.stdin.write("go\n")
        victim.stdin.flush()
        pid = int(victim.stdout.readline())
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        finished = False
        while (line := victim.stdout.readline().strip()) != "ended":
            finished = finished or line == "done"
        return finished

    for _ in range(25):
        while written < 60 and len(list(config.journal_dir.glob("*.mcap"))) < 6:
            write_episode(config.journal_dir, written, frames=12)
            written += 1
        kills += not one_pass(chance.uniform(0.0, 0.5))
        if config.dataset_dir.exists():  # readable after every single kill
            assert load_frames(config.dataset_dir.resolve()).episodes
    assert kills >= 10, "most passes must have been cut off, or nothing was tested"
    assert one_pass(None)

    ledger = [entry.episode_id for entry in DatasetVersions(config.dataset_dir).ledger()]
    assert sorted(ledger) == [f"episode-{number:04d}" for number in range(written)]
    frames = load_frames(config.dataset_dir.resolve())
    assert frames.episodes == list(range(written))
    kept = config.journal_dir / "ingested"
    assert len(list(kept.iterdir())) == written
    for index, episode_id in enumerate(ledger):
        recorded = [s.action for s, _ in EpisodeReader(kept / f"{episode_id}.mcap").samples()]
        assert np.array_equal(frames.select([index]).vectors[ACTION], np.stack(recorded))


def start(module: str, config: Path, processes: list[subprocess.Popen[str]]) -> psutil.Process:
    process = subprocess.Popen([sys.executable, "-m", module, "--config", str(config)], text=True)
    processes.append(process)
    return psutil.Process(process.pid)


def test_ingest_and_trainer_work_side_by_side_and_survive_freezing_and_killing(
    tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    config = configured(tmp_path, training="min_episodes = 2")
    path = write_config(tmp_path, training="min_episodes = 2")
    exchange = TrainingExchange(config.training_dir)
    for number in range(3):
        write_episode(config.journal_dir, number, frames=20)
    exchange.install_base(*base(0))
    start("agent.dataset.ingest", path, started)
    trainer = start("agent.training.trainer", path, started)
    wait_for(lambda: exchange.sketch() is not None, START_S)
    wait_for(lambda: exchange.contribution_info() is not None, START_S)
    assert base(0)[1].digest in exchange.held_out()

    def steps() -> int:
        found = exchange.contribution_info()
        return 0 if found is None else found.steps

    # Frozen, it uses no processor; continued, it goes on from where it was.
    trainer.suspend()
    time.sleep(0.05)
    used, at = trainer.cpu_times(), steps()
    time.sleep(1.0)
    assert trainer.cpu_times()[:2] == used[:2]
    trainer.resume()
    wait_for(lambda: steps() > at, 20.0)

    # A new base is seen between two steps, and evaluated first.
    weights, info = base(1, seed=1)
    exchange.install_base(weights, info)
    assert wait_for(lambda: info.digest in exchange.held_out(), 10.0) < 2.0

    # Killed, the next one goes on from the last snapshot.
    wait_for(lambda: steps() > 50, 60.0)
    trainer.kill()
    trainer.wait()
    before = exchange.contribution_info()
    assert before is not None
    start("agent.training.trainer", path, started)
    wait_for(lambda: steps() > before.steps, START_S)
    after = exchange.contribution_info()
    assert after is not None
    assert after.base_digest == before.base_digest == info.digest
    assert after.sequence > before.sequence


def test_a_trainer_killed_again_and_again_comes_to_the_very_same_weights(
    tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    """Of a policy that sees by camera and drops out; three kills with no warning, mid-step."""
    steps = 1000  # enough for three kills on the way, however quick the machine
    spec = SPEC.model_copy(
        update={
            "cameras": (CameraSpec(name=CAMERA, height=24, width=32),),
            "environment_names": (),
            "dropout": 0.1,
            "batch_size": 4,
        }
    )
    weights = read_weights(build_policy(spec, NORMALIZER, seed=0))
    info = base(0)[1].model_copy(
        update={
            "digest": weights_digest(weights),
            "spec": spec.to_json(),
            "max_local_steps": steps,
        }
    )
    folders = [tmp_path / "never", tmp_path / "often"]
    digests = []
    for folder, kills in zip(folders, (0, 3), strict=True):
        folder.mkdir()
        config = configured(folder)
        if folder is folders[0]:
            for number in range(3):
                write_episode(config.journal_dir, number, frames=12)
            ingest = Ingest(config)
            ingest.take(ingest.waiting())
        else:
            shutil.copytree(folders[0] / "state" / "datasets", config.state_dir / "datasets")
            config.dataset_dir.symlink_to("datasets/000001")
        exchange = TrainingExchange(config.training_dir)
        exchange.install_base(weights, info)

        def done(exchange: TrainingExchange = exchange) -> int:
            found = exchange.contribution_info()
            return 0 if found is None else found.steps

        chance = random.Random(3)
        for _ in range(kills):
            before = done()
            victim = start("agent.training.trainer", folder / "agent.toml", started)
            wait_for(lambda before=before: done() > before, START_S)  # type: ignore[misc]
            time.sleep(chance.uniform(0.0, 0.3))
            victim.kill()
            victim.wait()
        if kills:
            assert done() < steps, "it was killed on the way"
        last = start("agent.training.trainer", folder / "agent.toml", started)
        wait_for(lambda: done() == steps, START_S)
        last.kill()
        last.wait()
        found = exchange.contribution()
        assert found is not None
        digests.append(weights_digest(found[1]))
        assert list((config.training_dir / "pictures").iterdir())
        assert info.digest in exchange.held_out()
    assert digests[0] == digests[1]
