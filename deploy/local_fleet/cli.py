"""`armada demo`: a coordinator and three robots on this machine, through all that Armada does."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from agent.errors import AgentClientError
from agent.policies.errors import StoreError
from coordinator.errors import CoordinatorError
from deploy.closed_loop.errors import ClosedLoopError
from deploy.local_fleet.demo import WALKS, Demo, DemoSettings, Sight, write_json
from deploy.local_fleet.errors import Interrupted, LocalFleetError
from deploy.local_fleet.page import render_page
from deploy.local_fleet.report import Report, as_table
from deploy.local_fleet.status_reader import held_out_of
from host.command_line import INTERRUPTED, command_group, run_command_line
from policy.errors import PolicyError
from robot_io.twin.errors import TwinError

REFRESH_S = 0.5
_DEFAULTS = DemoSettings()

app = command_group()


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
            f"{robot.step}: {seen.waiting}" if robot.step == seen.phase else robot.step,
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


@app.command()
def demo(
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="write the report there too")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--dir", help="keep everything in this folder (must be empty)")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="keep the temporary folder")] = False,
    episodes: Annotated[int, typer.Option(help="per robot")] = _DEFAULTS.episodes,
    rounds: int = _DEFAULTS.rounds,
    steps_per_round: int = _DEFAULTS.steps_per_round,
    trials: Annotated[
        int, typer.Option(help="placements per sector, for each robot and each policy")
    ] = _DEFAULTS.trials_per_sector,
    seed: int = _DEFAULTS.seed,
    policy: Annotated[
        Sight, typer.Option(help="sees the camera's pictures, or a tracker's numbers")
    ] = _DEFAULTS.policy,
    page: Annotated[
        Path, typer.Option("--report", metavar="FILE", help="the page that it ends with")
    ] = Path("report.html"),
) -> None:
    """A coordinator and three robots on this machine, through all that Armada does."""
    settings = DemoSettings(
        episodes=episodes,
        rounds=rounds,
        steps_per_round=steps_per_round,
        trials_per_sector=trials,
        seed=seed,
        policy=policy,
    )
    raise typer.Exit(_run(settings, folder, json_path, page, keep=keep))


def _run(
    settings: DemoSettings,
    chosen: Path | None,
    json_path: Path | None,
    page: Path,
    *,
    keep: bool,
) -> int:
    """Exit status: 0 only if every walk completed, 130 after Ctrl-C."""
    console = Console()
    if chosen is not None and chosen.exists() and any(chosen.iterdir()):
        console.print(f"armada demo: {chosen} is not empty: name an empty or a new folder")
        return 2
    folder = chosen or Path(tempfile.mkdtemp(prefix="armada-demo-"))
    demo = Demo(settings, folder.resolve(), console.print)

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
        return INTERRUPTED
    except (LocalFleetError, AgentClientError, CoordinatorError) as error:
        walks = ", ".join(f"{walk} {'done' if demo.walks[walk] else 'NOT done'}" for walk in WALKS)
        console.print(f"armada demo: {error}\n({walks}; logs in {folder / 'log'})", markup=False)
        return 1
    console.print(as_table(report))
    if json_path is not None:
        write_json(report, json_path)
    try:
        page.write_text(render_page(report, demo.replay()), encoding="utf-8")
    except (StoreError, PolicyError, ClosedLoopError, TwinError) as error:
        console.print(f"armada demo: no page: {error} (all is kept in {folder})", markup=False)
        return 1
    console.print(f"report: {page.resolve()}")
    if chosen is None and not keep and report.complete:
        shutil.rmtree(folder)
    return 0 if report.complete else 1


def main(argv: Sequence[str]) -> int:
    """Run the demo; the exit status."""
    return run_command_line(app, "armada demo", argv, ())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
