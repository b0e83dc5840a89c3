"""A made-up pick: six joints follow minimum-jerk paths to a place that the environment names.

Small enough to learn in seconds, and like the real thing in what matters here: the path depends on
the target in a nonlinear way, and the gripper closes while the arm stands still.
"""

from __future__ import annotations

import numpy as np

from policy.batches import Frames
from policy.kinds.act import ActSpec
from policy.spec import ACTION, ENVIRONMENT, STATE, PolicySpec
from policy.statistics import Component, FeatureSketch, Normalizer, Sketch

JOINTS = tuple(
    f"{joint}.pos"
    for joint in (
        "shoulder_pan",
        "shoulder_lift",
        "elbow_flex",
        "wrist_flex",
        "wrist_roll",
        "gripper",
    )
)
PLACE = ("cube.x_m", "cube.y_m")
REST = np.array([0.0, -100.0, 95.0, 60.0, 0.0, 10.0], np.float32)


def tiny_spec(**fields: object) -> PolicySpec:
    """A policy that builds in milliseconds."""
    values: dict[str, object] = {
        "state_names": JOINTS,
        "environment_names": PLACE,
        "action_names": JOINTS,
        "fps": 30,
        "chunk_size": 6,
        "dim_model": 16,
        "n_heads": 2,
        "dim_feedforward": 32,
        "n_encoder_layers": 1,
        "latent_dim": 4,
        "learning_rate": 1e-3,
        "batch_size": 16,
    }
    return ActSpec.model_validate(values | fields)


def reach(x_m: float, y_m: float, height: float) -> np.ndarray:
    """Joints for a place; not the arm's real kinematics, only as bent."""
    radius = float(np.hypot(x_m, y_m))
    lift = 200.0 * radius - 30.0 * height
    return np.array(
        [np.degrees(np.arctan2(y_m, x_m)), lift, 60.0 - lift, 90.0 - 2.0 * lift, 0.0, 70.0],
        np.float32,
    )


def demonstration(
    x_m: float, y_m: float, frames: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """State [N,6], environment [N,2] and action [N,6] of one pick."""
    above, down = reach(x_m, y_m, 1.0), reach(x_m, y_m, 0.0)
    closed, up = down.copy(), above.copy()
    closed[5] = up[5] = 15.0
    stages = [(REST, above), (above, down), (down, closed), (closed, up)]
    lengths = [len(part) for part in np.array_split(np.arange(frames), len(stages))]
    action = np.concatenate(
        [
            start + (goal - start) * _minimum_jerk(length)[:, None]
            for (start, goal), length in zip(stages, lengths, strict=True)
        ]
    )
    action += random.normal(0.0, 0.1, action.shape)
    state = np.empty_like(action)
    here = REST.astype(np.float64)
    for row, goal in enumerate(action):
        state[row] = here
        here = here + 0.45 * (goal - here)
    place = np.tile([x_m, y_m], (frames, 1))
    return state.astype(np.float32), place.astype(np.float32), action.astype(np.float32)


def frames_of(episodes: int, length: int = 24, seed: int = 0) -> Frames:
    """A dataset's frames in memory."""
    random = np.random.default_rng(seed)
    parts = []
    for _ in range(episodes):
        x_m, y_m = random.uniform(0.16, 0.21), random.uniform(-0.06, 0.06)
        parts.append(demonstration(x_m, y_m, length, random))
    return Frames(
        vectors={
            STATE: np.concatenate([part[0] for part in parts]),
            ENVIRONMENT: np.concatenate([part[1] for part in parts]),
            ACTION: np.concatenate([part[2] for part in parts]),
        },
        episode=np.repeat(np.arange(episodes), length),
        fps=30,
    )


def components(names: tuple[str, ...]) -> list[Component]:
    return [
        Component(name, *((-180.0, 180.0) if name.endswith(".pos") else (-1.0, 1.0)))
        for name in names
    ]


def sketch_of(frames: Frames, spec: PolicySpec) -> Sketch:
    return Sketch(
        {
            name: FeatureSketch.measure(components(names), frames.vectors[name])
            for name, names in spec.vectors.items()
        }
    )


def normalizer_of(frames: Frames, spec: PolicySpec) -> Normalizer:
    return Normalizer.from_sketches([sketch_of(frames, spec)])


def _minimum_jerk(length: int) -> np.ndarray:
    share = np.arange(1, length + 1) / length
    return 10 * share**3 - 15 * share**4 + 6 * share**5
