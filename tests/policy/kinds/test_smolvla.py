"""SmolVLA for real, at tiny size: configuration and tokenizer made here, random weights."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs import RTCAttentionSchedule
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.rtc import RTCConfig
from synthetic_pick import JOINTS, frames_of, normalizer_of
from tiny_vlm import IMAGE_SIZE, write_vlm

from policy.artefacts import VARIABLE
from policy.batches import PADDING, open_batches
from policy.build import build_policy, build_processors, read_weights, write_weights
from policy.errors import BadModelFile
from policy.export import check_parity, export_policy, golden_observations, lerobot_chunks
from policy.kinds import LANGUAGE, NOISE, PREFIX_WEIGHTS, PREVIOUS, TOKEN_MASK, TOKENS
from policy.kinds.smolvla import SmolVlaSpec
from policy.rtc import prefix_weights
from policy.session import OnnxPolicy, blank_observation
from policy.spec import ACTION, STATE, TASK, CameraSpec
from policy.statistics import Normalizer
from policy.train import LocalTraining, held_out_error
from policy.weights import weights_digest
from policy.words import TaskWords

CAMERA = CameraSpec(name="overhead", height=24, width=32)
CHUNK = 6
FRAMES = frames_of(2)
RANGE = float(np.ptp(FRAMES.vectors[ACTION], axis=0).max())  # raw joint units


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


def exported(
    folder: Path, vlm: str, **fields: Any
) -> tuple[torch.nn.Module, SmolVlaSpec, Normalizer, OnnxPolicy]:
    spec, normalizer = tiny(vlm, **fields)
    policy = build_policy(spec, normalizer, 0)
    with torch.no_grad():  # LoRA's factor B begins at zero
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    before = weights_digest(read_weights(policy))
    export_policy(policy, spec, normalizer, folder / "policy.onnx")
    assert weights_digest(read_weights(policy)) == before
    session = OnnxPolicy(folder / "policy.onnx")
    session.require(spec)
    return policy, spec, normalizer, session


@pytest.mark.parametrize(
    "fields",
    [
        {"train": "lora"},
        {"cameras": [CAMERA, CameraSpec(name="wrist", height=40, width=32)]},
        {"denoising_steps": 5, "max_vector_size": 6},
    ],
)
def test_the_file_denoises_as_lerobot_does_from_the_same_noise(
    vlm: str, tmp_path: Path, fields: dict[str, Any]
) -> None:
    policy, spec, normalizer, session = exported(tmp_path, vlm, **fields)
    observations = golden_observations(spec, normalizer, 3, seed=1)
    chunks = lerobot_chunks(policy, spec, normalizer, observations)
    assert check_parity(tmp_path / "policy.onnx", observations, chunks) < 1e-4 * RANGE
    for name in (NOISE, TOKENS, PREVIOUS, PREFIX_WEIGHTS, CAMERA.key, STATE):
        other = {**observations[0], name: observations[1][name]}
        if name == TOKENS:
            other[TOKEN_MASK] = observations[1][TOKEN_MASK]
        assert not np.array_equal(session.infer(other), session.infer(observations[0])), name


def test_a_model_in_bfloat16_is_released_with_the_values_that_it_has(
    artefacts: Path, tmp_path: Path
) -> None:
    whole = write_vlm(artefacts, weights=True)
    policy, spec, normalizer, _ = exported(tmp_path, whole, vlm_weights=True)
    observations = golden_observations(spec, normalizer, 2, seed=1)
    chunks = lerobot_chunks(policy, spec, normalizer, observations)
    assert check_parity(tmp_path / "policy.onnx", observations, chunks) < 1e-4 * RANGE


def test_the_chunk_before_pulls_as_in_lerobots_real_time_chunking(vlm: str, tmp_path: Path) -> None:
    policy, spec, normalizer, session = exported(tmp_path, vlm, denoising_steps=4)
    preprocess, postprocess = build_processors(spec, normalizer)
    (observation,) = golden_observations(spec, normalizer, 1, seed=2)
    task = "stack the cubes"
    given = {name: value for name, value in observation.items() if name not in (TOKENS, TOKEN_MASK)}
    previous = observation[PREVIOUS]
    afresh = session.infer({**given, PREFIX_WEIGHTS: np.zeros(CHUNK, np.float32)}, task)
    mean, std = (torch.from_numpy(part(ACTION)) for part in (normalizer.mean, normalizer.std))
    picture = torch.from_numpy(observation[CAMERA.key]).permute(2, 0, 1).float() / 255
    state = torch.from_numpy(observation[STATE])
    seen = preprocess({STATE: state[None], CAMERA.key: picture[None], TASK: [task]})
    for delay, horizon, schedule in itertools.product((0, 2, 6), (3, 6), ("LINEAR", "EXP")):
        policy.config.rtc_config = RTCConfig(
            prefix_attention_schedule=RTCAttentionSchedule[schedule]
        )
        policy.init_rtc_processor()
        chunk = policy.predict_action_chunk(
            dict(seen),
            noise=torch.from_numpy(observation[NOISE])[None],
            prev_chunk_left_over=((torch.from_numpy(previous) - mean) / std)[None],
            inference_delay=delay,
            execution_horizon=horizon,
        )
        weights = prefix_weights(delay, horizon, CHUNK, schedule)
        ours = session.infer({**given, PREFIX_WEIGHTS: weights}, task)
        assert np.abs(ours - postprocess(chunk)[0].numpy()).max() < 1e-4 * RANGE
        if delay:
            far, near = (np.abs(each - previous)[:delay].mean() for each in (afresh, ours))
            assert near < far


def test_the_host_reads_the_task_as_lerobots_processor_does(vlm: str, tmp_path: Path) -> None:
    _, spec, normalizer, session = exported(tmp_path, vlm)
    words = TaskWords(tmp_path / "tokenizer.json", spec.max_task_tokens)
    for task in ("pick up the red cube", "stack cubes\n", "lift " * 20, "", "Ünknown words"):
        batch = batch_of(spec, normalizer, [task])
        read = words.inputs(task)
        mask = batch[f"{LANGUAGE}.attention_mask"][0].numpy()
        assert np.array_equal(read[TOKEN_MASK], mask)
        assert np.array_equal(read[TOKENS] * mask, batch[f"{LANGUAGE}.tokens"][0].numpy() * mask)
    blank = blank_observation(spec)
    for name in (TOKENS, TOKEN_MASK):
        del blank[name]
    chunks = {session.infer(blank, task).tobytes() for task in ("lift it", "place it", "lift it")}
    assert len(chunks) == 2
    without = {name: blank[name] for name in (STATE, CAMERA.key)}
    assert not np.array_equal(session.infer(without, "lift it"), session.infer(without, "lift it"))


def test_a_policy_that_reads_its_task_is_not_loaded_without_its_tokenizer(
    vlm: str, tmp_path: Path
) -> None:
    exported(tmp_path, vlm)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BadModelFile, match="not a tokenizer"):
        OnnxPolicy(tmp_path / "policy.onnx")
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no tokenizer"):
        OnnxPolicy(tmp_path / "policy.onnx")


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
