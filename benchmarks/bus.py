"""Full telemetry of six servos over the twin's bus: our driver beside LeRobot's, in one run.

    python benchmarks/bus.py [--reads 300] [--blocks 3] [--usb-latency-ms 0 1] [--json FILE]

Both read position, velocity, load, voltage, temperature, status, moving and current of all six
servos, at a modelled 1 Mbaud, in alternating blocks on the same port: ours as one sync read of
the 15 bytes 56..70, LeRobot's as one sync read a register, which is all its driver can do. Prints
one JSON object: p50, p99 and processor time a telemetry in microseconds, and the ratio to what
the wire alone takes (1.40 ms for ours). The bar is a p50 ratio of at most 1.3 without USB latency.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lerobot.motors import Motor, MotorNormMode
from lerobot.motors.feetech import FeetechMotorsBus

from robot_io.bus import ServoBus
from robot_io.calibration import JOINTS, SERVO_IDS
from robot_io.packet import FRAME_OVERHEAD_BYTES
from robot_io.servos import configure_servos
from robot_io.sts3215 import REGISTERS, TELEMETRY_SIZE

BAUDRATE = 1_000_000
BITS_PER_BYTE = 10
BAR = 1.3
START_LIMIT_S = 60.0
WARM_UP = 20
REGISTER_NAMES = (
    "Present_Position",
    "Present_Velocity",
    "Present_Load",
    "Present_Voltage",
    "Present_Temperature",
    "Status",
    "Moving",
    "Present_Current",
)


def wire_us(size: int) -> float:
    """Time that one sync read of ``size`` bytes of six servos takes on the wire."""
    request = FRAME_OVERHEAD_BYTES + 2 + len(SERVO_IDS)
    replies = len(SERVO_IDS) * (FRAME_OVERHEAD_BYTES + size)
    return (request + replies) * BITS_PER_BYTE * 1e6 / BAUDRATE


@contextlib.contextmanager
def twin(usb_latency_ms: float) -> Iterator[str]:
    """A twin with modelled wire time; yields its follower's port."""
    with tempfile.TemporaryDirectory(prefix="armada-bus-") as folder:
        ready = Path(folder) / "twin.json"
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "robot_io.twin.cli", "run", "--dir", folder),
                *("--bus-timing", "--usb-latency-ms", str(usb_latency_ms)),
                *("--camera", "overhead:32x24@1"),
            ],
            cwd=Path(__file__).resolve().parents[1],
            stdout=sys.stderr,
        )
        try:
            end_s = time.monotonic() + START_LIMIT_S
            while not ready.exists():
                if process.poll() is not None or time.monotonic() > end_s:
                    raise SystemExit("the twin did not start: run `armada twin run` to see why")
                time.sleep(0.05)
            yield json.loads(ready.read_text())["follower_port"]
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def time_reads(read: Callable[[], object], count: int) -> tuple[list[float], float]:
    """Microseconds of each read, and processor seconds of all."""
    for _ in range(WARM_UP):
        read()
    cpu_before_s = time.process_time()
    times_us = []
    for _ in range(count):
        began_ns = time.perf_counter_ns()
        read()
        times_us.append((time.perf_counter_ns() - began_ns) / 1000)
    return times_us, time.process_time() - cpu_before_s


def block_of_ours(port: str, count: int) -> tuple[list[float], float, dict[str, int]]:
    """One block with our driver, and its counters."""
    with ServoBus(port) as bus:
        times_us, cpu_s = time_reads(lambda: bus.read_telemetry(SERVO_IDS), count)
        return times_us, cpu_s, bus.stats.as_dict()


def block_of_lerobot(port: str, count: int) -> tuple[list[float], float]:
    """One block with LeRobot's driver."""
    motors = {
        joint: Motor(servo_id, "sts3215", MotorNormMode.DEGREES)
        for servo_id, joint in zip(SERVO_IDS, JOINTS, strict=True)
    }
    bus = FeetechMotorsBus(port, motors)
    bus.connect()
    try:
        return time_reads(
            lambda: [bus.sync_read(name, normalize=False) for name in REGISTER_NAMES], count
        )
    finally:
        bus.disconnect(disable_torque=False)


def summary(times_us: list[float], cpu_s: float, wire: float) -> dict[str, float]:
    """p50, p99 and processor time of a telemetry, and the ratio to the wire's own time."""
    centiles = statistics.quantiles(times_us, n=100, method="inclusive")
    return {
        "p50_us": round(centiles[49], 1),
        "p99_us": round(centiles[98], 1),
        "min_us": round(min(times_us), 1),
        "cpu_us": round(cpu_s * 1e6 / len(times_us), 1),
        "wire_us": wire,
        "p50_over_wire": round(centiles[49] / wire, 3),
        "telemetries": len(times_us),
    }


def measure(usb_latency_ms: float, blocks: int, reads: int) -> dict[str, object]:
    """Both drivers on one twin, in alternating blocks."""
    ours: list[float] = []
    theirs: list[float] = []
    our_cpu_s = their_cpu_s = 0.0
    counts: dict[str, int] = {}
    with twin(usb_latency_ms) as port:
        # As both drivers do when they connect: the factory's servos wait 500 us before answering.
        with ServoBus(port) as bus:
            configure_servos(bus, follower=True)
        for _ in range(blocks):
            times_us, cpu_s, stats = block_of_ours(port, reads)
            ours += times_us
            our_cpu_s += cpu_s
            counts = {name: counts.get(name, 0) + value for name, value in stats.items()}
            times_us, cpu_s = block_of_lerobot(port, max(1, reads // 4))
            theirs += times_us
            their_cpu_s += cpu_s
    lerobot_wire = sum(wire_us(REGISTERS[name].size) for name in REGISTER_NAMES)
    own = summary(ours, our_cpu_s, wire_us(TELEMETRY_SIZE))
    return {
        "usb_latency_ms": usb_latency_ms,
        "armada": own | {"stats": counts},
        "lerobot": summary(theirs, their_cpu_s, lerobot_wire),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reads", type=int, default=300, help="telemetries a block (ours)")
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--usb-latency-ms", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--json", type=Path, help="write the result there as well")
    arguments = parser.parse_args()

    load_before = os.getloadavg()[0]
    runs = [
        measure(latency_ms, arguments.blocks, arguments.reads)
        for latency_ms in arguments.usb_latency_ms
    ]
    bare = next((run for run in runs if run["usb_latency_ms"] == 0), None)
    ratio = None if bare is None else bare["armada"]["p50_over_wire"]  # type: ignore[index]
    result = {
        "benchmark": "bus",
        "baudrate": BAUDRATE,
        "machine": {
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "load_before": round(load_before, 2),
        },
        "bar_p50_over_wire": BAR,
        "meets_bar": None if ratio is None else ratio <= BAR,
        "runs": runs,
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")
    return 0 if result["meets_bar"] in (True, None) else 1


if __name__ == "__main__":
    sys.exit(main())
