"""How long an arm moves on after a person asks for the emergency stop.

    python benchmarks/estop.py [--runs 20] [--json FILE]

A real agent on the wire twin, in teleoperation at 30 Hz. Each run starts `armada estop --release`
as a process and stops two clocks: when the servos themselves say that their torque is off (asked
every few milliseconds), and when the command has ended. The plain command and the whole command
line (`--json` takes that way, as all commands did before) alternate, so that both meet the same
load. The bar is 100 ms from the start of the process to the end of the command, in the median.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "system"))

from agent_site import Person, Site, calibrated_site, prepare, torque, wait_for, wait_ready

from agent.client import AgentClient

BAR_MS = 100.0
WAYS = {"quick": [], "whole_command_line": ["--json"]}
IN_MOTION_S = 0.3


def one_stop(
    site: Site, person: Person, client: AgentClient, more: list[str]
) -> tuple[float, float]:
    """Milliseconds from the process's start to torque off at the servos, and to its end."""
    client.teleop_start()
    time.sleep(IN_MOTION_S)
    command = [sys.executable, "-m", "deploy.command", "estop", "--release", *more]
    began_s = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--config", str(site.config_path)], stdout=subprocess.DEVNULL
    )
    off_s = ended_s = 0.0
    while not (off_s and ended_s):
        if not off_s and not any(torque(person)):
            off_s = time.perf_counter()
        if not ended_s and process.poll() is not None:
            ended_s = time.perf_counter()
        time.sleep(0.001)
    if process.returncode != 0:
        raise SystemExit(f"armada estop failed: {process.returncode}")
    client.reset()
    wait_for("idle", lambda: client.status()["state"] == "idle")
    return (off_s - began_s) * 1e3, (ended_s - began_s) * 1e3


def summary(times_ms: list[float]) -> dict[str, float]:
    """Median, ninth decile and worst."""
    ordered = sorted(times_ms)
    return {
        "median_ms": round(statistics.median(ordered), 1),
        "p90_ms": round(ordered[int(0.9 * (len(ordered) - 1))], 1),
        "worst_ms": round(ordered[-1], 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20, help="stops by each way")
    parser.add_argument("--json", type=Path, help="write the result there as well")
    arguments = parser.parse_args()
    load_before = os.getloadavg()[0]
    measured: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        site, person = calibrated_site(Path(folder))
        try:
            prepare(site, person)
            with site.start_agent() as client:
                wait_ready(client)
                for _ in range(arguments.runs):
                    for way, more in WAYS.items():
                        measured[way].append(one_stop(site, person, client, more))
        finally:
            person.close()
            site.close()
    results = {
        way: {
            "torque_off": summary([off_ms for off_ms, _ in pairs]),
            "command_ended": summary([ended_ms for _, ended_ms in pairs]),
        }
        for way, pairs in measured.items()
    }
    result = {
        "benchmark": "estop",
        "machine": {"cpus": os.cpu_count(), "load_before": round(load_before, 2)},
        "runs": arguments.runs,
        "bar_ms": BAR_MS,
        "meets_bar": results["quick"]["command_ended"]["median_ms"] <= BAR_MS,
        "results": results,
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")
    return 0 if result["meets_bar"] else 1


if __name__ == "__main__":
    sys.exit(main())
