"""Reports of trials as text for people. Pure."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table

from deploy.closed_loop.matrix import EvaluationMatrix
from protocol.trials import SuccessRate, TrialsReport


def trials_table(report: TrialsReport) -> Table:
    """Success over all and by sector."""
    table = Table(title=f"{report.task}, {report.latency_ms:g} ms late", title_justify="left")
    for heading in ("sector", "success", "95 %", "seconds"):
        table.add_column(heading)
    for name, rate in (*report.sectors.items(), ("all", report.overall)):
        table.add_row(name, *_rate(rate))
    return table


def matrix_tables(matrix: EvaluationMatrix) -> Group:
    """Cells by robot and task, then a line a policy."""
    cells = Table(title=f"{matrix.trials_a_cell} trials a cell", title_justify="left")
    for heading in ("policy", "robot", "task", "seen", "success", "95 %", "seconds", "error °"):
        cells.add_column(heading)
    for cell in matrix.cells:
        cells.add_row(
            cell.policy,
            cell.robot,
            cell.task,
            "seen" if cell.seen else "unseen",
            *_rate(cell.success),
            _mean_error(cell.action_error_deg),
        )
    policies = Table(title="policies", title_justify="left")
    for heading in ("policy", "round", "seen", "unseen", "generalisation", "cross-task", "error °"):
        policies.add_column(heading)
    for row in matrix.policies:
        policies.add_row(
            row.policy,
            "-" if row.round is None else str(row.round),
            _share(row.seen),
            _share(row.unseen),
            "-" if row.generalisation is None else f"{row.generalisation:.2f}",
            _share(row.cross_task),
            _mean_error(row.action_error_deg),
        )
    return Group(cells, policies)


def _rate(rate: SuccessRate) -> tuple[str, str, str]:
    return (
        f"{rate.successes}/{rate.trials}",
        f"{rate.low:.0%}–{rate.high:.0%}",
        "-" if rate.success_s is None else f"{rate.success_s:.1f}",
    )


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _mean_error(errors: dict[str, float] | None) -> str:
    return "-" if errors is None else f"{sum(errors.values()) / len(errors):.1f}"
