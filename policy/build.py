"""A LeRobot policy from a spec, and its trainable weights as plain arrays.

The policy, its configuration and its processors are LeRobot's own, adapted by its kind
(``policy.kinds``). Nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature
from lerobot.policies import get_policy_class, make_policy_config, make_pre_post_processors

from policy.errors import BadWeights, MissingPackage
from policy.kinds import kind_of
from policy.spec import ACTION, ENVIRONMENT, STATE, TASK, PolicySpec
from policy.statistics import Normalizer
from policy.weights import Array, Weights

# Images are scaled by these for everybody, so that no robot's pictures shape another's input.
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)

type Tensors = dict[str, torch.Tensor]


def build_policy(spec: PolicySpec, normalizer: Normalizer, seed: int) -> torch.nn.Module:
    """An untrained policy on the CPU: LeRobot's own, the same weights for equal seeds.

    Raises BadStatistics when the normaliser is not of the spec's features, MissingPackage. The
    caller's random state is left as it was.
    """
    normalizer.require(spec.vectors)
    kind = kind_of(spec.kind)
    absent = [name for name in kind.packages if importlib.util.find_spec(name) is None]
    if absent:
        raise MissingPackage(
            f"a policy of kind {spec.kind} needs {', '.join(absent)}: install armada[{spec.kind}]"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(kind.seed(spec, seed))
        policy: torch.nn.Module = get_policy_class(spec.kind)(build_config(spec))
        kind.prepare(policy, spec)
    return policy


def build_config(spec: PolicySpec) -> Any:
    """LeRobot's configuration for a spec."""
    kind = kind_of(spec.kind)
    inputs = {STATE: PolicyFeature(FeatureType.STATE, (len(spec.state_names),))}
    if size := kind.environment_size(spec):
        inputs[ENVIRONMENT] = PolicyFeature(FeatureType.ENV, (size,))
    for camera in spec.cameras:
        inputs[camera.key] = PolicyFeature(FeatureType.VISUAL, (3, camera.height, camera.width))
    return make_policy_config(
        spec.kind,
        input_features=inputs,
        output_features={ACTION: PolicyFeature(FeatureType.ACTION, (len(spec.action_names),))},
        # LeRobot's default leaves the environment state in raw metres.
        normalization_mapping={
            **dict.fromkeys(("STATE", "ENV", "ACTION"), NormalizationMode.MEAN_STD),
            "VISUAL": NormalizationMode(kind.pictures),
        },
        device="cpu",
        push_to_hub=False,
        optimizer_lr=spec.learning_rate,
        **({} if spec.weight_decay is None else {"optimizer_weight_decay": spec.weight_decay}),
        **kind.config(spec),
    )


def build_processors(
    spec: PolicySpec, normalizer: Normalizer
) -> tuple[Callable[[dict[str, Any]], Tensors], Callable[[torch.Tensor], torch.Tensor]]:
    """From raw features to what the policy takes, and back, by LeRobot's own processors.

    The first takes raw features (images float in 0..1, [B,3,H,W]; ``task``, a list of B texts,
    where the kind reads words) and gives normalised ones; the second brings normalised actions
    [..., A] back to raw units.
    """
    normalizer.require(spec.vectors)
    stats = {
        name: {"mean": normalizer.mean(name), "std": normalizer.std(name)} for name in spec.vectors
    }
    for camera in spec.cameras:
        stats[camera.key] = {
            "mean": np.array(IMAGE_MEAN, np.float32).reshape(3, 1, 1),
            "std": np.array(IMAGE_STD, np.float32).reshape(3, 1, 1),
        }
    before, after = make_pre_post_processors(build_config(spec), dataset_stats=stats)
    kind = kind_of(spec.kind)

    def preprocess(raw: dict[str, Any]) -> Tensors:
        batch: Tensors = before(raw)
        if kind.reads_words(spec):
            made = kind.read_tasks(spec, raw[TASK])
            batch |= {name: torch.from_numpy(value) for name, value in made.items()}
        return batch

    return preprocess, after


def trainable_parameters(policy: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Name -> parameter, for those that are trained, in the module's own order.

    Buffers (batch norm statistics, position tables) and frozen parameters are not among them.
    """
    return {
        name: parameter
        for name, parameter in policy.named_parameters()
        if parameter.requires_grad and parameter.is_floating_point()
    }


def read_weights(policy: torch.nn.Module) -> Weights:
    """Copies of the trainable tensors, float32, in the stated order."""
    return {
        name: parameter.detach().to("cpu", torch.float32).numpy().copy()
        for name, parameter in trainable_parameters(policy).items()
    }


def write_weights(policy: torch.nn.Module, weights: Mapping[str, Array]) -> None:
    """Put arrays into the policy's trainable tensors. Raises BadWeights; then nothing changed."""
    parameters = trainable_parameters(policy)
    if list(parameters) != list(weights):
        odd = sorted(set(parameters) ^ set(weights))[:3]
        raise BadWeights(f"weights are of another policy ({', '.join(odd) or 'order differs'})")
    for name, parameter in parameters.items():
        if tuple(weights[name].shape) != tuple(parameter.shape):
            raise BadWeights(
                f"tensor {name}: shape {list(weights[name].shape)}, "
                f"the policy has {list(parameter.shape)}"
            )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(np.array(weights[name])))
