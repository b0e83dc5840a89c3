"""Intervals, table and plot of the cells that were measured. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from protocol.trials import wilson_interval


@dataclass(frozen=True)
class Row:
    """One cell over its seeds; rates are shares of 1."""

    cell: str
    about: str
    rate: float
    low: float
    high: float
    trials: int
    by_seed: tuple[float, ...]
    worst_sector: float
    megabytes_up: float


def rows(results: Sequence[Mapping[str, Any]]) -> list[Row]:
    """One a cell, in the order of the results. Of robots alone, the best of each seed counts."""
    names = list(dict.fromkeys(str(each["cell"]) for each in results))
    table = []
    for name in names:
        of_cell = [each for each in results if each["cell"] == name]
        best = [max(each["attempts"], key=lambda attempt: attempt["lifted"]) for each in of_cell]
        lifted, trials = sum(b["lifted"] for b in best), sum(b["trials"] for b in best)
        sectors: dict[str, list[int]] = {}
        for attempt in best:
            for sector, (ups, all_) in attempt["by_sector"].items():
                total = sectors.setdefault(sector, [0, 0])
                total[0] += ups
                total[1] += all_
        table.append(
            Row(
                name, of_cell[0]["about"], lifted / trials, *wilson_interval(lifted, trials),
                trials,
                tuple(b["lifted"] / b["trials"] for b in best),
                min(ups / all_ for ups, all_ in sectors.values()),
                sum(each["bytes_up"] for each in of_cell) / len(of_cell) / 1e6,
            )
        )  # fmt: skip
    return table


def markdown(table: Sequence[Row]) -> str:
    """The table for documents."""
    lines = [
        "| cell | what | lifted | 95 % | by seed | worst sector | MB up |",
        "|---|---|---:|---:|---|---:|---:|",
    ]
    for row in table:
        seeds = " ".join(f"{100 * rate:.0f}" for rate in row.by_seed)
        lines.append(
            f"| {row.cell} | {row.about} | {100 * row.rate:.0f} % of {row.trials} "
            f"| {100 * row.low:.0f}–{100 * row.high:.0f} | {seeds} "
            f"| {100 * row.worst_sector:.0f} % | {row.megabytes_up:.1f} |"
        )
    return "\n".join(lines) + "\n"


def plot(table: Sequence[Row]) -> str:
    """Rates with their intervals as SVG: one bar a cell."""
    left, width, step = 170, 460, 22
    height = step * len(table) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 60} {height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for percent in range(0, 101, 20):
        x = left + width * percent / 100
        parts.append(f'<path d="M{x} 10V{height - 25}" stroke="#ddd"/>')
        parts.append(f'<text x="{x}" y="{height - 8}" text-anchor="middle">{percent} %</text>')
    for index, row in enumerate(table):
        y = 14 + step * index
        middle = y + 8
        low, high = (left + width * share for share in (row.low, row.high))
        parts += [
            f'<text x="{left - 8}" y="{y + 12}" text-anchor="end">{escape(row.cell)}</text>',
            f'<rect x="{left}" y="{y}" width="{width * row.rate:.1f}" height="16" fill="#4a7fb5"/>',
            f'<path d="M{low:.1f} {middle}H{high:.1f}" stroke="#222" stroke-width="2"/>',
            f'<text x="{left + width + 8}" y="{y + 12}">{100 * row.rate:.0f} %</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"
