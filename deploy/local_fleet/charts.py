"""Charts as inline SVG, coloured by the page's style sheet. Pure.

Every mark carries a `<title>`, so that a browser shows its number under the pointer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from deploy.local_fleet.timeline import Span

_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 12, 10, 30


@dataclass(frozen=True)
class Line:
    """One curve: its name, its style sheet class, and (x, y) points in order."""

    name: str
    style: str
    points: tuple[tuple[float, float], ...]


def curves(
    lines: Sequence[Line], x_label: str, y_label: str, width: int = 520, height: int = 250
) -> str:
    """Lines over one pair of axes, y from zero; points that are no number are left out."""
    drawn = [
        Line(line.name, line.style, tuple(p for p in line.points if all(map(math.isfinite, p))))
        for line in lines
    ]
    points = [point for line in drawn for point in line.points]
    if not points:
        return "<p class='none'>nothing was reported</p>"
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    x_high = x_high if x_high > x_low else x_low + 1
    ticks = nice_ticks(max(y for _, y in points))
    y_high = ticks[-1]

    def at(x: float, y: float) -> tuple[float, float]:
        right = _LEFT + (x - x_low) / (x_high - x_low) * (width - _LEFT - _RIGHT)
        down = _TOP + (1 - y / y_high) * (height - _TOP - _BOTTOM)
        return round(right, 1), round(down, 1)

    parts = [_svg(width, height, f"{y_label} over {x_label}")]
    for tick in ticks:
        _, y = at(x_low, tick)
        parts.append(f"<line class='grid' x1='{_LEFT}' x2='{width - _RIGHT}' y1='{y}' y2='{y}'/>")
        parts.append(f"<text class='tick end' x='{_LEFT - 6}' y='{y + 4}'>{tick:g}</text>")
    for tick in range(math.ceil(x_low), math.floor(x_high) + 1, _stride(x_high - x_low)):
        x, _ = at(tick, 0)
        parts.append(f"<text class='tick mid' x='{x}' y='{height - 12}'>{tick}</text>")
    parts.append(
        f"<text class='tick end' x='{width - _RIGHT}' y='{height}'>{escape(x_label)}</text>"
    )
    for line in drawn:
        path = " ".join("{},{}".format(*at(*point)) for point in line.points)
        parts.append(f"<polyline class='curve {line.style}' points='{path}'/>")
        for x, y in line.points:
            right, down = at(x, y)
            label = escape(f"{line.name}, {x_label} {x:g}: {y:.3g}")
            parts.append(
                f"<circle class='dot {line.style}' cx='{right}' cy='{down}' r='2.5'>"
                f"<title>{label}</title></circle>"
            )
    return "".join([*parts, "</svg>"])


def gantt(spans: Sequence[Span], lanes: Sequence[str], end_s: float, width: int = 1080) -> str:
    """A lane each; the coordinator's windows lie under their rounds, releases are diamonds."""
    lane_height, left = 34, 96
    height = len(lanes) * lane_height + 30
    end_s = max(end_s, 1.0)

    def at(seconds: float) -> float:
        return round(left + min(max(seconds / end_s, 0.0), 1.0) * (width - left - 16), 1)

    parts = [_svg(width, height, "what each robot and the coordinator did, over time")]
    for number, lane in enumerate(lanes):
        y = number * lane_height
        parts.append(f"<text class='lane' x='0' y='{y + 22}'>{escape(lane)}</text>")
        parts.append(
            f"<rect class='track' x='{left}' y='{y + 5}' width='{width - left - 16}' "
            f"height='{lane_height - 10}' rx='4'/>"
        )
    minutes = _stride(end_s / 60, 8)
    for minute in range(0, int(end_s // 60) + 1, minutes):
        x = at(minute * 60)
        parts.append(f"<line class='grid' x1='{x}' x2='{x}' y1='0' y2='{height - 26}'/>")
        parts.append(f"<text class='tick mid' x='{x}' y='{height - 8}'>{minute} min</text>")
    parts += [
        _span(
            span,
            at(span.start_s),
            at(span.end_s),
            lanes.index(span.lane) * lane_height,
            lane_height,
        )
        for span in spans
        if span.lane in lanes
    ]
    return "".join([*parts, "</svg>"])


def nice_ticks(highest: float) -> list[float]:
    """From zero in steps of 1, 2 or 5 times a power of ten, to at or above `highest`."""
    if not highest > 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(highest / 4))
    step = next(power * each for each in (1, 2, 5, 10) if power * each * 4 >= highest * 0.999)
    return [round(step * index, 10) for index in range(math.ceil(highest / step - 1e-9) + 1)]


def _span(span: Span, x: float, end: float, y: int, lane_height: int) -> str:
    style = f"span {span.kind.replace(' ', '-')}"
    title = f"<title>{escape(span.label)}, {span.start_s:.0f} to {span.end_s:.0f} s</title>"
    if span.kind in ("release", "refused"):
        middle = y + lane_height / 2
        path = f"{x},{middle - 9} {x + 8},{middle} {x},{middle + 9} {x - 8},{middle}"
        return f"<polygon class='{style}' points='{path}'>{title}</polygon>"
    inset = 10 if span.kind == "round" else 5
    return (
        f"<rect class='{style}' x='{x}' y='{y + inset}' width='{round(max(end - x, 1.5), 1)}' "
        f"height='{lane_height - 2 * inset}' rx='2'>{title}</rect>"
    )


def _stride(length: float, most: int = 12) -> int:
    return max(1, math.ceil(length / most))


def _svg(width: int, height: int, label: str) -> str:
    return f"<svg viewBox='0 0 {width} {height + 2}' role='img' aria-label='{escape(label)}'>"
