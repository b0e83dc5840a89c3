"""ACT that is told its task: from the dataset's words to another chunk for another task."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from synthetic_pick import JOINTS, PLACE, frames_of, normalizer_of, tiny_spec

from policy.batches import Frames, VectorBatches, batches_of, open_batches
from policy.build import build_policy, build_processors, read_weights
from policy.export import check_parity, export_policy, golden_observations, lerobot_chunks
from policy.frame_cache import FrameCache
from policy.kinds import TASK_VECTOR, kind_of
from policy.kinds.act import ActSpec
from policy.observations import recorded_observations
from policy.release.goldens import read_goldens
from policy.session import OnnxPolicy, blank_observation
from policy.spec import ACTION, ENVIRONMENT, STATE, TASK, CameraSpec, PolicySpec
from policy.statistics import Normalizer
from policy.train import LocalTraining, evaluating
from policy.words import task_reader, task_vector

LEFT, RIGHT = "put the cube on the left mark", "put the cube on the right mark"
CAMERA = CameraSpec(name="overhead", height=32, width=48)
SIZE = 16


def told(**fields: object) -> tuple[PolicySpec, Normalizer]:
    spec = tiny_spec(words=SIZE, **fields)
    return spec, normalizer_of(frames_of(3), spec)


def two_tasks(frames: Frames) -> Frames:
    """The same observations twice, and after the second task the opposite actions."""
    mean = frames.vectors[ACTION].mean(axis=0)
    mirrored = {**frames.vectors, ACTION: 2 * mean - frames.vectors[ACTION]}
    both = {
        name: np.concatenate([values, mirrored[name]]) for name, values in frames.vectors.items()
    }
    last = int(frames.episode.max()) + 1
    episode = np.concatenate([frames.episode, frames.episode + last])
    return Frames(both, episode, frames.fps, task=(LEFT,) * last + (RIGHT,) * last)


@pytest.mark.parametrize(
    "fields", [{}, {"cameras": [CAMERA]}, {"cameras": [CAMERA], "environment_names": []}]
)
def test_the_host_is_told_its_task_as_lerobots_own_pipeline_is(
    fields: dict[str, object], tmp_path: Path
) -> None:
    spec, normalizer = told(**fields)
    policy = build_policy(spec, normalizer, seed=3)
    path = tmp_path / "policy.onnx"
    names = export_policy(policy, spec, normalizer, path).described["golden"]
    observations = golden_observations(spec, normalizer, 3, seed=1)
    assert check_parity(path, observations, lerobot_chunks(policy, spec, normalizer, observations))
    goldens = read_goldens(tmp_path / names["observations"], tmp_path / names["actions"], spec)
    assert all(golden.observation[TASK_VECTOR].any() for golden in goldens)
    session = OnnxPolicy(path)
    session.require(spec)
    preprocess, postprocess = build_processors(spec, normalizer)
    seen = {name: value for name, value in observations[0].items() if name != TASK_VECTOR}
    raw = {name: torch.from_numpy(value)[None] for name, value in seen.items()}
    for camera in spec.cameras:
        raw[camera.key] = raw[camera.key].movedim(-1, -3).float() / 255
    chunks = []
    for task in (LEFT, RIGHT):
        with evaluating(policy):
            batch = kind_of("act").arrange(preprocess(raw | {TASK: [task]}))
            wanted = postprocess(policy.predict_action_chunk(batch))[0].numpy()
        chunks.append(session.infer(seen, task))
        assert np.abs(chunks[-1] - wanted).max() < 1e-3
    assert np.abs(chunks[0] - chunks[1]).max() > 1e-2
    given = seen | {TASK_VECTOR: task_vector(RIGHT, SIZE)}
    assert np.array_equal(session.infer(given, LEFT), chunks[1]), "what is given goes first"


def test_a_policy_without_words_is_as_before(tmp_path: Path) -> None:
    spec = tiny_spec()
    normalizer = normalizer_of(frames_of(3), spec)
    policy = build_policy(spec, normalizer, seed=3)
    assert policy.config.input_features[ENVIRONMENT].shape == (len(PLACE),)
    assert isinstance(batches_of(frames_of(2), spec, normalizer, FrameCache(None)), VectorBatches)
    export_policy(policy, spec, normalizer, tmp_path / "policy.onnx")
    session = OnnxPolicy(tmp_path / "policy.onnx")
    assert list(session.inputs) == [STATE, ENVIRONMENT]
    blank = blank_observation(spec)
    assert np.array_equal(session.infer(blank, LEFT), session.infer(blank, RIGHT))


def test_no_robots_statistics_are_of_its_words() -> None:
    spec, _ = told()
    plain = tiny_spec()
    assert spec.vectors == plain.vectors
    wider = {name: value.shape for name, value in weights(spec).items()}
    changed = {name for name, shape in wider.items() if weights(plain)[name].shape != shape}
    assert changed == {"model.encoder_env_state_input_proj.weight"}


def weights(spec: PolicySpec) -> dict[str, np.ndarray]:
    return read_weights(build_policy(spec, normalizer_of(frames_of(1), spec), 0))


def test_where_only_the_words_decide_training_learns_by_them_and_by_nothing_else() -> None:
    frames = two_tasks(frames_of(4))
    errors = {}
    for size in (0, SIZE):
        spec = tiny_spec(words=size, learning_rate=3e-3)
        normalizer = normalizer_of(frames, spec)
        policy = build_policy(spec, normalizer, 0)
        batches = batches_of(frames, spec, normalizer, FrameCache(None), seed=0)
        training = LocalTraining(policy, spec)
        losses = [training.step(batches.draw()) for _ in range(300)]
        errors[size] = float(np.mean(losses[-10:]))
    assert errors[SIZE] < 0.5 * errors[0]


def write_dataset(root: Path, spec: PolicySpec, tasks: list[str]) -> None:
    """One episode of eight frames a task."""
    frames = frames_of(1)
    vectors = {
        name: {"dtype": "float32", "shape": (len(names),), "names": list(names)}
        for name, names in spec.vectors.items()
    }
    dataset = LeRobotDataset.create(
        "local/tiny", fps=spec.fps, features=vectors, root=root, use_videos=False
    )
    for task in tasks:
        for row in range(8):
            dataset.add_frame({n: frames.vectors[n][row] for n in vectors} | {TASK: task})
        dataset.save_episode()
    dataset.finalize()


def test_each_episodes_own_task_comes_out_of_the_dataset_as_its_vector(tmp_path: Path) -> None:
    spec, normalizer = told()
    root = tmp_path / "dataset"
    write_dataset(root, spec, [LEFT, RIGHT])
    batches = open_batches(root, spec, normalizer, [0, 1])
    (whole,) = batches.ordered(100)
    assert TASK_VECTOR not in whole
    words = whole[ENVIRONMENT][:, len(PLACE) :].numpy()
    assert np.array_equal(words[:8], np.tile(task_vector(LEFT, SIZE), (8, 1)))
    assert np.array_equal(words[8:], np.tile(task_vector(RIGHT, SIZE), (8, 1)))
    policy = build_policy(spec, normalizer, 0)
    assert LocalTraining(policy, spec).step(batches.draw()) > 0.0
    export_policy(policy, spec, normalizer, tmp_path / "policy.onnx")
    session = OnnxPolicy(tmp_path / "policy.onnx")
    reader = task_reader({n: s[1:] for n, (_, s) in session.inputs.items()}, tmp_path)
    recorded = recorded_observations(root, spec, [0, 1], 16, reader)
    assert np.array_equal(recorded[-1][TASK_VECTOR], task_vector(RIGHT, SIZE))
    assert np.isfinite(session.infer(recorded[-1])).all()


def test_words_of_no_number_are_refused() -> None:
    with pytest.raises(ValueError, match="words"):
        ActSpec(state_names=JOINTS, action_names=JOINTS, environment_names=PLACE, fps=30, words=-1)
