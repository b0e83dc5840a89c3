"""Seconds and bytes of a Flower round over real processes: one SuperLink, N SuperNodes, TLS.

    python benchmarks/flower_round.py [--nodes 3] [--rounds 3] [--megabytes 1 20]

Prints one JSON object. A round is: ask all for their work, aggregate, install the new base. The
"trainers" have their work ready, so that what is left is the federation's own time. SuperNodes
look for messages every 3 s, and a round has two messages, so the time depends on when they looked.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from agent.federation.supernode import SuperNode
from agent.training.exchange import BaseInfo, TrainingExchange
from coordinator.config import CoordinatorConfig, Ports
from coordinator.federation.driver import Member, RoundDriver, RoundOrder
from coordinator.federation.errors import FederationError
from coordinator.federation.superlink import superlink_access, superlink_command
from coordinator.identity.enrolment import Authority, create_identities, enrol
from coordinator.identity.layout import Layout
from policy.statistics import Normalizer
from policy.weights import Weights, load_weights, save_weights, weights_digest
from protocol.bundle import load_bundle
from protocol.contribution import Contribution
from protocol.eligibility import Terms

CONNECT_LIMIT_S = 60.0


def free_port() -> int:
    """A loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def policy_of(megabytes: float) -> Weights:
    """Random float32 tensors of that size together; random numbers do not compress."""
    rng = np.random.default_rng(0)
    rows = max(1, round(megabytes * 1e6 / 4 / 256 / 8))
    return {f"layer_{i}": rng.standard_normal((rows, 256), dtype=np.float32) for i in range(8)}


def measure(folder: Path, nodes: int, rounds: int, sizes_mb: list[float]) -> dict[str, object]:
    """Start the fleet in `folder`, run the rounds for each size, stop it."""
    config = CoordinatorConfig(
        ports=Ports(mqtt=free_port(), superlink=free_port(), https=free_port())
    )
    layout = Layout(folder)
    authority = Authority.create("bench", lambda: datetime.datetime.now(datetime.UTC))
    create_identities(layout, config, authority)
    enrolled = [
        enrol(layout, config, f"arm-{i}", folder / f"bundle-{i}", authority, time.time())
        for i in range(nodes)
    ]
    members = [Member(agent_id=a.agent_id, public_key=a.public_key) for a in enrolled]
    command, environment = superlink_command(folder, config)
    with (folder / "superlink.log").open("wb") as log:
        superlink = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    driver = RoundDriver(superlink_access(folder, config), folder / "rounds")
    exchanges = [TrainingExchange(folder / f"exchange-{i}") for i in range(nodes)]
    supernodes = [
        SuperNode(load_bundle(folder / f"bundle-{i}"), folder / f"node-{i}", exchanges[i].folder)
        for i in range(nodes)
    ]
    try:
        started = time.monotonic()
        register_patiently(driver, members)
        for node in supernodes:
            node.start()
        while any(node.poll().state != "connected" for node in supernodes):
            if time.monotonic() - started > CONNECT_LIMIT_S:
                raise TimeoutError([str(node.poll().error) for node in supernodes])
            time.sleep(0.2)
        report = {
            "nodes": nodes,
            "seconds_to_connect": round(time.monotonic() - started, 2),
            "policies": [rounds_of(driver, members, exchanges, rounds, mb) for mb in sizes_mb],
        }
    finally:
        driver.close()
        for node in supernodes:
            node.stop()
        superlink.terminate()
        try:
            superlink.wait(5)
        except subprocess.TimeoutExpired:
            superlink.kill()
            superlink.wait()
    return report


def register_patiently(driver: RoundDriver, members: list[Member]) -> None:
    """Register as soon as the SuperLink answers."""
    deadline = time.monotonic() + CONNECT_LIMIT_S
    while True:
        try:
            driver.register(members)
        except FederationError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return


def rounds_of(
    driver: RoundDriver,
    members: list[Member],
    exchanges: list[TrainingExchange],
    rounds: int,
    megabytes: float,
) -> dict[str, object]:
    """Install a base, then so many training rounds; medians."""
    base = policy_of(megabytes)
    path = exchanges[0].folder.parent / "base.safetensors"
    save_weights(path, base)
    normalizer = Normalizer(features={})
    info = BaseInfo(
        digest=weights_digest(base),
        round=0,
        spec={},
        normalizer=normalizer.to_json(),
        normalizer_digest=normalizer.digest(),
    ).model_dump()
    order = RoundOrder(
        round=0, kind="install", members=members, base_weights=path, base_info=info,
        min_replies=len(members),
    )  # fmt: skip
    results = [driver.run_round(order)]
    for number in range(1, rounds + 1):
        rng = np.random.default_rng(number)
        for sequence, exchange in enumerate(exchanges):
            delta = {
                name: (1e-3 * rng.standard_normal(value.shape)).astype(np.float32)
                for name, value in base.items()
            }
            meta = Contribution(
                base_digest=info["digest"], base_round=info["round"], steps=10, examples=100,
                loss=0.1, sequence=number * 100 + sequence,
            )  # fmt: skip
            exchange.publish_contribution(delta, meta)
        order = order.model_copy(
            update={
                "round": number,
                "kind": "train",
                "base_weights": path,
                "base_info": info,
                "terms": Terms(bases=(info["digest"],)),
            }
        )
        result = driver.run_round(order)
        if result.failure or len(result.installed) != len(members):
            raise SystemExit(f"round {number}: {result.failure} {result.not_installed}")
        assert result.aggregate is not None and result.base_info is not None
        path, info = result.aggregate, result.base_info
        base = load_weights(path)
        results.append(result)
    trained = results[1:]
    return {
        "policy_bytes": sum(value.nbytes for value in base.values()),
        "install_seconds": round(results[0].seconds, 2),
        "round_seconds": [round(result.seconds, 2) for result in trained],
        "round_seconds_median": round(statistics.median(r.seconds for r in trained), 2),
        "collect_seconds_median": round(
            statistics.median(max(reply.seconds or 0 for reply in r.replies) for r in trained), 2
        ),
        "bytes_up_per_node": trained[-1].replies[0].bytes_up,
        "bytes_down_per_node": trained[-1].bytes_down // len(members),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=float, nargs="+", default=[1.0, 20.0])
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="armada-bench-"))
    try:
        report = measure(folder, options.nodes, options.rounds, options.megabytes)
    finally:
        shutil.rmtree(folder)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
