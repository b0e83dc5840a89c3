"""While the robot is idle: measure how a policy computes best on this host, with int8 among it.

    python -m agent.training.tuner --config FILE

It looks for an active policy that was not measured here; a child measures it
(`agent/training/host_measurement.py`) at the trainer's priority, and is frozen with this process.
"""

from __future__ import annotations

import logging
import subprocess
import time
from pathlib import Path

from agent.child.entry import run_as_child
from agent.child.link import ChildLink
from agent.config import AgentConfig
from agent.policies.host_graph import read_host_graph
from agent.policies.store import ACTIVE, PolicyStore
from host.children import exit_words, module_command
from policy.errors import PolicyError
from policy.release.folder import read_policy_folder

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 20.0
_SPEAK_EVERY_S = 0.5
MEASUREMENT = "agent.training.host_measurement"


def serve(config: AgentConfig, path: Path, link: ChildLink) -> None:
    """Look for a policy that was not measured here, until the supervisor is gone (LinkClosed)."""
    store = PolicyStore(config.policies_dir)
    tried: set[tuple[str, str]] = set()
    child: subprocess.Popen[bytes] | None = None
    next_look_s = 0.0
    while True:
        while link.receive(_SPEAK_EVERY_S) is not None:
            pass  # the supervisor freezes us when somebody wants the robot
        link.heartbeat()
        if child is not None:
            if child.poll() is None:
                continue
            if child.returncode:
                log.warning("measuring the policy ended: %s", exit_words(child.returncode))
            child = None
        if time.monotonic() < next_look_s:
            continue
        next_look_s = time.monotonic() + _LOOK_EVERY_S
        due = _due(store, config.dataset_dir)
        if due is not None and due not in tried:
            tried.add(due)
            command = module_command(MEASUREMENT, due[0], "--config", str(path))
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL)


def _due(store: PolicyStore, dataset: Path) -> tuple[str, str] | None:
    """The active policy's folder and the dataset's version, unless it was measured already.

    One that was measured without frames is measured again when there are some.
    """
    if store.active() is None:
        return None
    folder = store.resolve(ACTIVE)
    try:
        measured = read_host_graph(read_policy_folder(folder))
    except PolicyError as error:
        log.warning("%s", error)
        return None
    if measured is not None and (measured.calibration or not dataset.exists()):
        return None
    return str(folder), str(dataset.resolve())


if __name__ == "__main__":
    run_as_child(serve)
