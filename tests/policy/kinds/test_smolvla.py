"""SmolVLA for real, at tiny size: configuration and tokenizer made here, random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from synthetic_pick import JOINTS, frames_of, normalizer_of
from tiny_vlm import IMAGE_SIZE, write_vlm

from policy.artefacts import VARIABLE
from policy.batches import PADDING, TASK, open_batches
from policy.build import build_policy, build_processors, read_weights, write_weights
from policy.kinds.smolvla import LANGUAGE, SmolVlaSpec
from policy.spec import ACTION, STATE, CameraSpec
from policy.statistics import Normalizer
from policy.train import LocalTraining, held_out_error
from policy.weights import weights_digest

CAMERA = CameraSpec(name="overhead", height=24, width=32)
CHUNK = 6
FRAMES = frames_of(2)


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artefacts")


@pytest.fixture(scope="module")
def vlm(artefacts: Path) -> str:
    return write_vlm(artefacts)


@pytest.fixture(autouse=True)
def _here(artefacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(artefacts))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def tiny(vlm: str, **fields: Any) -> tuple[SmolVlaSpec, Normalizer]:
    values: dict[str, Any] = {
        "state_names": JOINTS,
        "action_names": JOINTS,
        "cameras": [CAMERA],
        "fps": 30,
        "chunk_size": CHUNK,
        "vlm_sha256": vlm,
        "vlm_weights": False,
        "vlm_layers": 2,
        "image_size": IMAGE_SIZE,
        "max_task_tokens": 6,
        "max_vector_size": 8,
        "denoising_steps": 2,
        "lora_rank": 2,
        "learning_rate": 1e-2,
    }
    spec = SmolVlaSpec.model_validate(values | fields)
    return spec, normalizer_of(FRAMES, spec)


def batch_of(spec: SmolVlaSpec, normalizer: Normalizer, tasks: list[str]) -> dict[str, Any]:
    preprocess, _ = build_processors(spec, normalizer)
    rows = range(len(tasks))
    actions = np.stack([FRAMES.vectors[ACTION][row : row + CHUNK] for row in rows])
    raw = {
        STATE: torch.from_numpy(FRAMES.vectors[STATE][: len(tasks)].copy()),
        ACTION: torch.from_numpy(actions),
        CAMERA.key: torch.rand(len(tasks), 3, 24, 32, generator=torch.Generator().manual_seed(0)),
        TASK: tasks,
    }
    return {**preprocess(raw), PADDING: torch.zeros(len(tasks), CHUNK, dtype=torch.bool)}


def test_the_tasks_words_become_tokens_of_one_length_with_a_mask(vlm: str) -> None:
    batch = batch_of(*tiny(vlm), ["pick up the red cube", "stack cubes", "lift " * 20])
    tokens, mask = batch[f"{LANGUAGE}.tokens"], batch[f"{LANGUAGE}.attention_mask"]
    assert mask.sum(dim=1).tolist() == [5, 2, 6]
    assert tokens.shape == (3, 6)
    assert len(set(tokens[0, :5].tolist())) == 5


@pytest.mark.parametrize("train", ["expert", "lora"])
def test_a_step_moves_what_is_trained_and_nothing_else(vlm: str, train: str) -> None:
    spec, normalizer = tiny(vlm, train=train)
    policy = build_policy(spec, normalizer, 0)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    weights = read_weights(policy)
    batch = batch_of(spec, normalizer, ["pick up the red cube", "stack the cubes"])
    training = LocalTraining(policy, spec)
    for _ in range(3):
        assert training.step(batch) > 0.0
    moved = {name for name, value in policy.state_dict().items() if not value.equal(before[name])}
    assert moved == set(weights)
    if train == "lora":
        assert all("lora_B" in name for name in weights)
    else:
        assert not any(".vlm." in name for name in weights)


def test_the_policy_reads_the_task(vlm: str) -> None:
    spec, normalizer = tiny(vlm)
    policy = build_policy(spec, normalizer, 0)
    errors = {
        held_out_error(policy, [batch_of(spec, normalizer, [task])], normalizer).loss
        for task in ("pick up the red cube", "pick up the green cube", "pick up the red cube")
    }
    assert len(errors) == 2


def test_what_is_frozen_is_equal_at_every_robot_and_the_rest_travels(vlm: str) -> None:
    spec, normalizer = tiny(vlm, train="lora")
    here, there = build_policy(spec, normalizer, 1), build_policy(spec, normalizer, 2)
    batch = batch_of(spec, normalizer, ["lift it"])
    LocalTraining(here, spec).step(batch)
    weights = read_weights(here)
    write_weights(there, weights)
    assert weights_digest(read_weights(there)) == weights_digest(weights)
    assert all(
        torch.equal(a, b) for a, b in zip(here.parameters(), there.parameters(), strict=True)
    )


def test_beside_a_model_in_bfloat16_what_is_trained_is_float32(artefacts: Path) -> None:
    spec, normalizer = tiny(write_vlm(artefacts, weights=True), vlm_weights=True)
    policy = build_policy(spec, normalizer, 0)
    kinds = {(part.dtype, part.requires_grad) for part in policy.parameters()}
    assert kinds == {(torch.bfloat16, False), (torch.float32, True)}
    batch = batch_of(spec, normalizer, ["place it"])
    assert np.isfinite(LocalTraining(policy, spec).step(batch))


def test_each_episodes_own_task_comes_out_of_the_dataset_as_its_tokens(
    vlm: str, tmp_path: Path
) -> None:
    spec, normalizer = tiny(vlm)
    root = tmp_path / "dataset"
    write_dataset(root, ["pick up the red cube", "stack cubes"])
    batches = open_batches(root, spec, normalizer, [0, 1])
    (whole,) = batches.ordered(100)
    assert whole[f"{LANGUAGE}.attention_mask"].sum(dim=1).tolist() == [5] * 8 + [2] * 8
    assert whole[CAMERA.key].min() >= 0.0
    assert 0.0 < whole[CAMERA.key].max() <= 1.0
    policy = build_policy(spec, normalizer, 0)
    assert held_out_error(policy, [whole], normalizer).frames == 16
    assert LocalTraining(policy, spec).step(batches.draw()) > 0.0


def write_dataset(root: Path, tasks: list[str]) -> None:
    """One episode of eight frames a task."""
    vector = {"dtype": "float32", "shape": (len(JOINTS),), "names": list(JOINTS)}
    picture = {"dtype": "image", "shape": (24, 32, 3), "names": ["height", "width", "channels"]}
    dataset = LeRobotDataset.create(
        "local/tiny",
        fps=30,
        features={STATE: vector, ACTION: vector, CAMERA.key: picture},
        root=root,
        use_videos=False,
    )
    for episode, task in enumerate(tasks):
        for row in range(8):
            dataset.add_frame(
                {
                    STATE: FRAMES.vectors[STATE][row],
                    ACTION: FRAMES.vectors[ACTION][row],
                    CAMERA.key: np.full((24, 32, 3), 100 + 20 * episode, np.uint8),
                    TASK: task,
                }
            )
        dataset.save_episode()
    dataset.finalize()
