"""Does a fleet learn what a robot alone cannot? Success in closed loop, by cell and seed.

    python benchmarks/fleet_learning.py --out FOLDER [--cells local,central,fedavg] [--seeds 0,1,2]
                                        [--trials 60]

Robots demonstrate in sectors of their own on the lockstep twin and train by the product's own
parts: trainer, codec, gate, strategies. What comes out drives the twin by the agent's scheduler,
on placements in every sector. Each cell and seed is one JSON file under --out; what is there is
not measured again. Afterwards --out has results.json, results.md and results.svg of all that is
there.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.learning.cells import SIZE, STEPS, Cell, cells
from benchmarks.learning.fleet import alone, federated
from benchmarks.learning.report import markdown, plot, rows
from benchmarks.learning.scene import make_task, normalizer, succeed
from host.files import write_durable
from policy.kinds.act import KEYPOINTS_SHA256

EPISODES = 16


def measure(name: str, cell: Cell, seed: int, trials: int, folder: Path) -> dict[str, Any]:
    """Train and try one cell with one seed."""
    began_s = time.monotonic()
    task = make_task(folder / "demonstrations", cell.robots, EPISODES, trials, seed, SIZE)
    spec = cell.spec()
    scale = normalizer(task.robots, spec)
    losses: list[float] = []
    sent = 0
    if cell.plan is not None:
        policy, losses, sent = federated(task.robots, spec, scale, cell.plan, seed)
        policies = [policy]
    else:
        data = [task.robots] if cell.pooled else [[each] for each in task.robots]
        rounds = cell.one_trainer_rounds
        policies = [alone(each, spec, scale, rounds, STEPS, seed) for each in data]
    trained_s = time.monotonic()
    attempts = []
    for policy in policies:
        results = succeed(policy, spec, scale, task, seed)
        by_sector: dict[str, list[int]] = {}
        for sector, lifted in results:
            counts = by_sector.setdefault(sector, [0, 0])
            counts[0] += lifted
            counts[1] += 1
        lifted_in_all = sum(lifted for _, lifted in results)
        attempts.append({"lifted": lifted_in_all, "trials": len(results), "by_sector": by_sector})
    return {
        "cell": name, "about": cell.about, "seed": seed, "attempts": attempts, "losses": losses,
        "bytes_up": sent, "train_s": round(trained_s - began_s, 1),
        "trial_s": round(time.monotonic() - trained_s, 1),
    }  # fmt: skip


def main() -> None:
    """Measure what is missing, then write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cells", default="")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--trials", type=int, default=60)
    asked = parser.parse_args()
    logging.disable(logging.INFO)  # Flower tells each aggregation
    torch.set_num_threads(1)
    table = cells(KEYPOINTS_SHA256)
    chosen = asked.cells.split(",") if asked.cells else list(table)
    if unknown := [name for name in chosen if name not in table]:
        parser.error(f"no cell {unknown[0]!r}; there are {', '.join(table)}")
    for seed in map(int, asked.seeds.split(",")):
        for name in chosen:
            path = asked.out / "cells" / f"{name}-{seed}.json"
            if path.exists():
                continue
            result = measure(name, table[name], seed, asked.trials, asked.out)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durable(path, (json.dumps(result) + "\n").encode())
            best = max(attempt["lifted"] for attempt in result["attempts"])
            print(f"{name} seed {seed}: {best} of {result['attempts'][0]['trials']}", flush=True)
    results = [
        json.loads(path.read_text())
        for name in table
        for path in sorted((asked.out / "cells").glob(f"{name}-[0-9]*.json"))
        if path.stem.rpartition("-")[0] == name
    ]
    summary = rows(results)
    write_durable(asked.out / "results.json", (json.dumps(results, indent=1) + "\n").encode())
    write_durable(asked.out / "results.md", markdown(summary).encode())
    write_durable(asked.out / "results.svg", plot(summary).encode())
    print(markdown(summary))


if __name__ == "__main__":
    main()
