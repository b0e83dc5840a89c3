"""A checked folder's graph, loaded, and asked for the actions of its golden observations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from policy.errors import BadPolicyFolder
from policy.release.folder import PolicyFolder
from policy.release.goldens import Golden, read_goldens
from policy.session import CPU, OnnxPolicy


def load_graph(folder: PolicyFolder, threads: int, provider: str = CPU) -> OnnxPolicy:
    """Load the graph as it was released and check its inputs and output against the folder's spec.

    Raises BadModelFile, BadPolicyFolder with one line.
    """
    try:
        policy = OnnxPolicy(folder.onnx_path, threads, provider)
    except FileNotFoundError as error:
        raise BadPolicyFolder(str(error)) from error
    policy.require(folder.spec)
    return policy


def goldens_of(folder: PolicyFolder) -> list[Golden]:
    """The folder's golden observations, at least one. Raises BadPolicyFolder."""
    return read_goldens(*folder.golden_paths, folder.spec)


def worst_golden_error(policy: OnnxPolicy, goldens: Sequence[Golden]) -> float:
    """The largest difference from the golden actions, raw joint units.

    Raises BadPolicyFolder when an action is not finite, BadObservation, InferenceFailed.
    """
    worst = 0.0
    for index, golden in enumerate(goldens):
        got = policy.infer(golden.observation)
        if not (np.isfinite(got).all() and np.isfinite(golden.action).all()):
            raise BadPolicyFolder(f"golden {index}: an action is not finite")
        worst = max(worst, float(np.abs(got - golden.action).max()))
    return worst


def golden_complaint(folder: PolicyFolder, worst: float) -> str | None:
    """What the manifest's tolerance has against that error, in one line."""
    tolerance = folder.manifest.tolerance
    if worst <= tolerance:
        return None
    return f"golden actions differ by {worst:.3g} joint units, allowed are {tolerance:g}"
