"""`armada trials`: a policy folder, tried in the lockstep twin.

Exit status: 0 the trials were done, whatever came out; 1 the policy cannot be run; 2 the command,
the policy folder, the task or the matrix is wrong. The last two with one line on stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel
from rich.console import Console, RenderableType

from deploy.closed_loop.errors import CannotTry, ClosedLoopError
from deploy.closed_loop.matrix import MatrixCell
from deploy.closed_loop.matrix_file import LATENCY_MS, MAX_SEED, read_matrix_file
from host.command_line import command_group, run_command_line
from host.files import write_durable
from policy.errors import BadModelFile, BadPolicyFolder, PolicyError
from protocol.trials import MAX_TRIALS
from robot_io.twin.errors import TwinError
from robot_io.twin.variation import scene_of

_STDOUT = Path("-")

app = command_group()


@app.command()
def trials(
    policy_dir: Annotated[
        Path | None, typer.Argument(metavar="POLICY_DIR", help="a release's folder")
    ] = None,
    task: Annotated[str, typer.Option(help="of the twin; an unknown name lists them")] = "lift",
    sector: Annotated[
        list[str] | None,
        typer.Option(
            help="right, centre, left, whole or own; may be repeated (default: the three)"
        ),
    ] = None,
    sector_count: Annotated[
        int, typer.Option(help="slices of the table; other than 3 they are s1, s2, ...")
    ] = 3,
    count: Annotated[
        int, typer.Option("--trials", min=1, max=MAX_TRIALS, help="in all, dealt to the sectors")
    ] = 20,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="of the placements")] = 1,
    robot_seed: Annotated[
        int | None, typer.Option(min=0, max=MAX_SEED, help="of the robot's scene (default: plain)")
    ] = None,
    latency_ms: Annotated[
        float, typer.Option(min=0, max=5000, help="from an observation to its actions")
    ] = LATENCY_MS,
    threads: Annotated[int, typer.Option(min=1, max=64, help="of ONNX Runtime")] = 1,
    matrix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="policies x robots x tasks, in TOML")
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="the report as JSON; - prints it")
    ] = None,
) -> None:
    """Try a policy in the twin, as the agent would drive it, without a clock or a wire."""
    if (policy_dir is None) == (matrix is None):
        raise typer.BadParameter("name a POLICY_DIR, or a file with --matrix")
    try:
        # Imported here, so that a missing extra is one clear line.
        from deploy.closed_loop.matrix_run import run_matrix
        from deploy.closed_loop.tables import matrix_tables, trials_table
        from deploy.closed_loop.trials import TrialSetup, load_folder, named_sectors, try_policy
        from robot_io.twin.tasks import task_named
    except ModuleNotFoundError as error:
        raise CannotTry(f"{error.name} is not installed; install armada[twin]") from error
    if matrix is not None:
        result = run_matrix(read_matrix_file(matrix), matrix.resolve().parent, threads, _note)
        _give(result, matrix_tables(result), json_path)
        return
    assert policy_dir is not None
    setup = TrialSetup(
        task_named(task),
        named_sectors(sector or [], sector_count, scene_of(robot_seed)),
        count,
        seed,
        latency_ms,
        robot_seed,
    )
    report = try_policy(load_folder(policy_dir, threads), setup)
    _give(report, trials_table(report), json_path)


def _note(cell: MatrixCell) -> None:
    successes, tried = cell.success.successes, cell.success.trials
    line = f"{cell.policy}, {cell.robot}, {cell.task}: {successes} of {tried}"
    print(line, file=sys.stderr, flush=True)


def _give(report: BaseModel, table: RenderableType, json_path: Path | None) -> None:
    text = report.model_dump_json(indent=1)
    if json_path == _STDOUT:
        print(text)
        return
    Console().print(table)
    if json_path is not None:
        write_durable(json_path, (text + "\n").encode())


def main(argv: Sequence[str]) -> int:
    """Run the command; the exit status."""
    return run_command_line(
        app,
        "armada trials",
        argv,
        (PolicyError, OSError),
        (BadPolicyFolder, BadModelFile, ClosedLoopError, TwinError),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
