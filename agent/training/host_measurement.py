"""How one policy computes best on this host: `python -m agent.training.host_measurement DIR`.

Every execution provider that is installed runs the graph as released, the CPU also its int8, which
is calibrated on this robot's own training episodes and judged on its held-out ones. What was
measured and chosen is recorded beside the policy (`agent/policies/host_graph.py`).
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from agent.config import AgentConfig, load_config
from agent.errors import AgentError
from agent.policies.host_graph import (
    INT8_NAME,
    Graph,
    GraphVariant,
    HostGraph,
    choose,
    load_chosen,
    write_host_graph,
)
from host.logs import set_up_logging
from policy.batches import load_frames, split_episodes
from policy.errors import NoEpisodes, PolicyError
from policy.int8 import PRODUCTS, dynamic_int8, static_int8
from policy.kinds import PREVIOUS
from policy.observations import recorded_observations
from policy.release.folder import PolicyFolder, read_policy_folder
from policy.release.trial import goldens_of
from policy.session import CPU, OnnxPolicy, available_providers, input_shapes
from policy.weights import Array
from policy.words import task_reader

log = logging.getLogger(__name__)

CALIBRATION_FRAMES = 64
HELD_OUT_FRAMES = 128
_RUNS = 15
_INT8: tuple[Graph, ...] = ("int8", "int8-convolutions")

type Observations = Sequence[Mapping[str, Array]]


def measure_robots_policy(policy_dir: Path, config: AgentConfig) -> HostGraph:
    """Measure on the robot's own dataset, choose, record. Raises PolicyError, OSError.

    Without a held-out episode the golden observations judge, and there is no int8.
    """
    folder = read_policy_folder(policy_dir)
    spec, root = folder.spec, config.dataset_dir.resolve()
    try:
        episodes = load_frames(root, []).episodes
    except NoEpisodes:
        episodes = []
    training, held_out = split_episodes(episodes, config.training.held_out_every)
    if not training or not held_out:
        goldens = [golden.observation for golden in goldens_of(folder)]
        return measure_host_graph(folder, [], goldens, config.rollout.threads)
    words = task_reader(input_shapes(spec), policy_dir)
    return measure_host_graph(
        folder,
        recorded_observations(root, spec, training, CALIBRATION_FRAMES, words),
        recorded_observations(root, spec, held_out, HELD_OUT_FRAMES, words),
        config.rollout.threads,
    )


def measure_host_graph(
    folder: PolicyFolder, calibration: Observations, judged: Observations, threads: int
) -> HostGraph:
    """Measure, choose, record. Observations have no batch axis. Raises PolicyError, OSError.

    Of the int8 graphs the narrower one is tried only where the wider one is not taken.
    """
    released = load_chosen(folder, GraphVariant(), threads)
    wanted = np.stack([released.infer(observation) for observation in judged])

    def tried(candidate: GraphVariant) -> GraphVariant:
        try:
            policy = load_chosen(folder, candidate, threads)
            got = np.stack([policy.infer(observation) for observation in judged])
        except (PolicyError, FileNotFoundError) as error:
            return candidate.model_copy(update={"failed": _line(error)})
        difference = np.abs(got - wanted)
        return candidate.model_copy(
            update={
                "latency_ms": _median_ms(policy, released, judged[0]),
                "mean": float(difference.mean()),
                "p99": float(np.percentile(difference, 99)),
            }
        )

    others = [name for name in available_providers() if name != CPU]
    measured = [tried(GraphVariant()), *(tried(GraphVariant(provider=name)) for name in others)]
    int8 = folder.path / INT8_NAME
    chosen, reason = choose(measured)
    is_flow = PREVIOUS in input_shapes(folder.spec)
    for graph in _int8_graphs(is_flow, calibration):
        fault = _write_int8(folder.onnx_path, int8, calibration, graph, is_flow)
        candidate = GraphVariant(graph=graph, failed=fault)
        measured.append(candidate if fault else tried(candidate))
        chosen, reason = choose(measured)
        if chosen.graph == graph:
            break
    if chosen.graph == "float":
        int8.unlink(missing_ok=True)
    record = HostGraph(
        source=folder.onnx_digest,
        onnxruntime=onnxruntime.__version__,
        measured=tuple(measured),
        chosen=chosen,
        reason=reason,
        int8_sha256=hashlib.sha256(int8.read_bytes()).hexdigest() if int8.exists() else None,
        calibration=_digest_of(calibration) if calibration else None,
        frames=len(judged),
    )
    write_host_graph(folder, record)
    return record


def _int8_graphs(is_flow: bool, calibration: Observations) -> tuple[Graph, ...]:
    if not calibration:
        return ()
    return _INT8[:1] if is_flow else _INT8


def _write_int8(
    source: Path, target: Path, calibration: Observations, graph: Graph, is_flow: bool
) -> str:
    """Empty, or why there is no such graph: what the quantiser has not learnt, it refuses."""
    try:
        if is_flow:
            dynamic_int8(source, target)
        else:
            batches = [{name: value[None] for name, value in each.items()} for each in calibration]
            static_int8(source, target, batches, PRODUCTS if graph == "int8" else ("Conv",))
    except (PolicyError, ValueError, RuntimeError) as error:
        return _line(error)
    return ""


def _median_ms(
    policy: OnnxPolicy,
    beside: OnnxPolicy,
    observation: Mapping[str, Array],
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Median of a chunk. The float graph runs in turn with it, so that both meet the same load."""
    took = []
    for _ in range(_RUNS):
        beside.infer(observation)
        begun_s = clock()
        policy.infer(observation)
        took.append((clock() - begun_s) * 1000.0)
    return float(np.median(took))


def _digest_of(observations: Observations) -> str:
    whole = hashlib.sha256()
    for observation in observations:
        for name in sorted(observation):
            whole.update(name.encode())
            whole.update(observation[name].tobytes())
    return whole.hexdigest()


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300] or type(error).__name__


def main() -> int:
    """Exit code 0, or 1 with the reason in the log."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dir", type=Path, help="folder of the policy")
    parser.add_argument("--config", type=Path, required=True, help="the agent's TOML file")
    arguments = parser.parse_args()
    set_up_logging()
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    try:
        record = measure_robots_policy(arguments.dir, load_config(arguments.config))
    except (PolicyError, AgentError, OSError) as error:
        log.error("%s", error)  # noqa: TRY400 - one line
        return 1
    log.info("policy %s: %s: %s", arguments.dir.name, record.chosen.name, record.reason)
    return 0


if __name__ == "__main__":
    sys.exit(main())
