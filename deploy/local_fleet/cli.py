"""`armada demo`: a coordinator and three robots on this machine, through all that Armada does."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from agent.client import AgentClientError
from coordinator.errors import CoordinatorError
from deploy.local_fleet.demo import WALKS, Demo, DemoSettings, write_json
from deploy.local_fleet.errors import Interrupted, LocalFleetError
from deploy.local_fleet.report import Report, as_table
from deploy.local_fleet.status_reader import held_out_of

REFRESH_S = 0.5


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    defaults = DemoSettings()
    made = argparse.ArgumentParser(prog="armada demo", description=__doc__)
    made.add_argument("--json", type=Path, metavar="FILE", help="write the report there too")
    made.add_argument("--dir", type=Path, help="keep everything in this folder (must be empty)")
    made.add_argument("--keep", action="store_true", help="keep the temporary folder")
    made.add_argument("--episodes", type=int, default=defaults.episodes, help="per robot")
    made.add_argument("--rounds", type=int, default=defaults.rounds)
    made.add_argument("--steps-per-round", type=int, default=defaults.steps_per_round)
    made.add_argument(
        "--trials", type=int, default=defaults.trials_per_sector,
        help="placements per sector, for each robot and each policy",
    )  # fmt: skip
    made.add_argument("--seed", type=int, default=defaults.seed)
    return made


def settings_of(options: argparse.Namespace) -> DemoSettings:
    """The demo's size as asked for on the command line."""
    return DemoSettings(
        episodes=options.episodes,
        rounds=options.rounds,
        steps_per_round=options.steps_per_round,
        trials_per_sector=options.trials,
        seed=options.seed,
    )


def view(demo: Demo) -> Table:
    """What the fleet is doing now."""
    table = Table(title=f"armada demo: {demo.phase}", title_justify="left")
    for heading in ("robot", "sector", "doing", "episodes", "steps", "held-out", "policy"):
        table.add_column(heading)
    for robot in demo.robots:
        seen = robot.seen
        errors = held_out_of(demo.fleet_status, robot.robot_id)
        table.add_row(
            robot.robot_id,
            robot.plan.sector.name,
            robot.step,
            str(robot.recorded),
            str(seen.steps),
            f"{errors[-1][1]:.2f}" if errors else "-",
            "-" if seen.policy is None else str(seen.policy),
        )
    campaign = demo.fleet_status.get("campaign", {})
    if campaign:
        table.caption = (
            f"campaign {campaign['phase']}, round {campaign['round']}, "
            f"{len(demo.fleet_status['windows'])} windows, "
            f"{len(demo.fleet_status['releases'])} releases"
        )
    return table


def _watched(demo: Demo, console: Console) -> Report:
    """Run the demo here, in the main thread (see ProcessGroup.start), and paint beside it."""
    done = threading.Event()

    def refresh(live: Live) -> None:
        while not done.wait(REFRESH_S):
            live.update(view(demo))

    if not console.is_terminal:
        return demo.run()
    with Live(view(demo), console=console, auto_refresh=True, transient=True) as live:
        painter = threading.Thread(target=refresh, args=(live,), daemon=True)
        painter.start()
        try:
            return demo.run()
        finally:
            done.set()
            painter.join()


def main(argv: list[str]) -> int:
    """Run the demo. Exit status: 0 only if every walk completed, 130 after Ctrl-C."""
    options = parser().parse_args(argv)
    console = Console()
    if options.dir is not None and options.dir.exists() and any(options.dir.iterdir()):
        console.print(f"armada demo: {options.dir} is not empty: name an empty or a new folder")
        return 2
    folder = options.dir or Path(tempfile.mkdtemp(prefix="armada-demo-"))
    demo = Demo(settings_of(options), folder.resolve(), console.print)

    def stop(_signal: int, _frame: object) -> None:
        demo.stopping.set()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        report = _watched(demo, console)
    except Interrupted:
        console.print(
            "stopped: the agents were asked to park their arms, and every process has ended"
        )
        return 130
    except (LocalFleetError, AgentClientError, CoordinatorError) as error:
        walks = ", ".join(f"{walk} {'done' if demo.walks[walk] else 'NOT done'}" for walk in WALKS)
        console.print(f"armada demo: {error}\n({walks}; logs in {folder / 'log'})", markup=False)
        return 1
    console.print(as_table(report))
    if options.json is not None:
        write_json(report, options.json)
    if options.dir is None and not options.keep and report.complete:
        shutil.rmtree(folder)
    return 0 if report.complete else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
