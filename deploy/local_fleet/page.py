"""report.html: what the demo found out, as one file that needs nothing else. Pure.

Pictures and style sheet lie in the file; no script, no address of another host. What comes from
robots is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from deploy.local_fleet.charts import Line, curves, gantt
from deploy.local_fleet.replay import ReplayClip
from deploy.local_fleet.report import (
    NAMES,
    Report,
    RobotReport,
    TrialResult,
    successes,
)
from deploy.local_fleet.timeline import COORDINATOR
from protocol.trials import wilson_interval

MAX_BYTES = 12_000_000
_ROBOT_STYLES = ("one", "two-c", "three")
_SPAN_KEYS = (
    ("calibrate", "--soft"), ("demonstrate", "--two"), ("train alone", "--local"),
    ("train for the fleet; round", "--global"), ("drive; release", "--good"),
    ("release refused", "--bad"),
)  # fmt: skip
_SEES = {
    "pictures": "sees the overhead camera's pictures",
    "state": "sees the cube's place as a colour tracker finds it",
}


def render_page(report: Report, clips: Sequence[ReplayClip]) -> str:
    """The whole document. Raises ValueError where it would be over MAX_BYTES."""
    parts = [
        _header(report),
        _videos(clips),
        _sectors(report.trials),
        _learning(report.robots),
        _timeline(report),
        _bytes(report.robots),
        _robots(report),
    ]
    style = files("deploy.local_fleet").joinpath("page.css").read_text(encoding="utf-8")
    page = (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        "<link rel='icon' href='data:,'>"
        f"<title>Armada: {len(report.robots)} arms, one policy</title><style>{style}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )
    if len(page.encode()) > MAX_BYTES:
        raise ValueError(f"the report has {len(page.encode())} bytes, over {MAX_BYTES}")
    return page


def _header(report: Report) -> str:
    found = {(each.policy, each.where): each for each in successes(report.trials)}
    tiles = []
    for policy, where in (("local", "other sectors"), ("active", "other sectors")):
        each = found.get((policy, where))
        if each is not None:
            low, high = wilson_interval(each.lifted, each.trials)
            tiles.append(
                _tile(
                    f"{100 * each.lifted / each.trials:.0f} %",
                    f"{NAMES[policy]}: cubes lifted where the robot was never shown one "
                    f"({each.lifted} of {each.trials}; "
                    f"95 %: {100 * low:.0f} to {100 * high:.0f} %)",
                    "local" if policy == "local" else "global",
                )
            )
    up = max((robot.bytes_up for robot in report.robots), default=0)
    tiles.append(_tile(_size(up), "the most that left one robot: what its weights gained"))
    minutes, seconds = divmod(round(report.seconds["total"]), 60)
    tiles.append(
        _tile(f"{minutes}:{seconds:02d}", f"minutes in all, {report.rounds} rounds, "
              f"{report.releases} releases")
    )  # fmt: skip
    return (
        f"<h1>{len(report.robots)} arms, one policy</h1>"
        "<p class='soft'>Each robot was shown one sector of the table and none of the others. "
        f"They trained one policy together, which {_SEES[report.policy]}, and no episode left its "
        f"robot. Seed {report.seed}.</p><div class='tiles'>{''.join(tiles)}</div>"
    )


def _tile(number: str, text: str, style: str = "") -> str:
    return f"<div class='tile {style}'><b>{escape(number)}</b><span>{escape(text)}</span></div>"


def _section(title: str, lead: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2><p class='soft'>{escape(lead)}</p>{body}</section>"


def _videos(clips: Sequence[ReplayClip]) -> str:
    pairs = []
    for robot_id in dict.fromkeys(clip.robot_id for clip in clips):
        chosen = [clip for clip in clips if clip.robot_id == robot_id]
        cells = "".join(_video(clip) for clip in chosen)
        place = escape(f"{robot_id}, a cube in the sector {chosen[0].placement.sector}")
        pairs.append(f"<figure class='pair'>{cells}<figcaption>{place}</figcaption></figure>")
    if not pairs:
        return ""
    return _section(
        "The same cube, two policies",
        "For each robot the first placement of its trials outside its own sector, run once more in "
        "the twin for these pictures: left what the robot learned alone, right what the fleet "
        "learned.",
        f"<div class='pairs'>{''.join(pairs)}</div>",
    )


def _video(clip: ReplayClip) -> str:
    source = base64.b64encode(clip.mp4).decode()
    style = "local" if clip.policy == "local" else "global"
    verdict = "<span class='yes'>lifted</span>" if clip.lifted else "<span class='no'>missed</span>"
    name = escape(NAMES.get(clip.policy, clip.policy))
    return (
        f"<div><video autoplay loop muted playsinline width='320' height='240' "
        f"aria-label='{name}' src='data:video/mp4;base64,{source}'></video>"
        f"<small><span class='is-{style}'>{name}</span>{verdict}</small></div>"
    )


def _sectors(trials: Sequence[TrialResult]) -> str:
    names = list(dict.fromkeys(trial.placement.sector for trial in trials))
    robots = list(dict.fromkeys(trial.robot_id for trial in trials))
    own = {trial.robot_id: trial.own_sector for trial in trials}
    rows = []
    for policy in ("local", "active"):
        for robot_id in robots:
            chosen = [t for t in trials if (t.policy, t.robot_id) == (policy, robot_id)]
            rows.append(_sector_row(policy, robot_id, chosen, names, own[robot_id]))
        if policy == "active":
            whole = [trial for trial in trials if trial.policy == policy]
            rows.append(_sector_row(policy, "all arms", whole, names, ""))
    head = "".join(f"<th class='cell'>{escape(name)}</th>" for name in names)
    return _section(
        "Success by sector",
        "Cubes lifted, of those tried, on placements that nobody demonstrated. Outlined: the "
        "sector that the robot itself was shown.",
        f"<table><thead><tr><th>policy</th><th class='name'>driving</th>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>",
    )


def _sector_row(
    policy: str, robot: str, trials: Sequence[TrialResult], sectors: Sequence[str], own: str
) -> str:
    style = "local" if policy == "local" else "global"
    cells = []
    for sector in sectors:
        there = [trial for trial in trials if trial.placement.sector == sector]
        lifted = sum(trial.lifted for trial in there)
        share = lifted / len(there) if there else 0.0
        mark = " own" if sector == own else ""
        cells.append(
            f"<td class='cell{mark}'><i class='of-{style}' style='opacity:{0.55 * share:.2f}'></i>"
            f"<span>{lifted} / {len(there)}</span></td>"
        )
    name = f"<td class='is-{style}'>{escape(NAMES.get(policy, policy))}</td>"
    return f"<tr>{name}<td class='name'>{escape(robot)}</td>{''.join(cells)}</tr>"


def _learning(robots: Sequence[RobotReport]) -> str:
    losses, errors = [], []
    for number, robot in enumerate(robots):
        style = _ROBOT_STYLES[number % len(_ROBOT_STYLES)]
        losses.append(Line(robot.robot_id, style, robot.losses))
        errors.append(Line(robot.robot_id, style, robot.held_out))
        if robot.held_out_local is not None and robot.held_out:
            ends = (robot.held_out[0][0], robot.held_out[-1][0])
            alone = tuple((end, robot.held_out_local) for end in ends)
            errors.append(Line(f"{robot.robot_id} alone", f"{style} alone", alone))
    keys = "".join(
        f"<span style='--key:var(--{each})'>{escape(robot.robot_id)} "
        f"({escape(robot.sector)})</span>"
        for robot, each in zip(robots, ("one", "two", "three"), strict=False)
    )
    return _section(
        "Learning",
        "Loss of each contribution, and the error of each global policy on episodes that the robot "
        "keeps aside; dashed, the error there of what the robot learned alone, which has seen this "
        "sector and nothing else.",
        "<div class='two'><div><h3>Training loss</h3>"
        f"{curves(losses, 'round', 'loss')}</div><div><h3>Held-out error, joint units</h3>"
        f"{curves(errors, 'round', 'mean absolute action error')}</div></div>"
        f"<div class='keys'>{keys}</div>",
    )


def _timeline(report: Report) -> str:
    lanes = [*(robot.robot_id for robot in report.robots), COORDINATOR]
    keys = "".join(
        f"<span style='--key:var({colour})'>{escape(name)}</span>" for name, colour in _SPAN_KEYS
    )
    return _section(
        "The fleet over time",
        "Robots train while nobody uses them. The coordinator opens a window (pale), collects what "
        "was gained in a Flower round (full), and releases what passes the gate (diamond).",
        f"<div class='wide'>{gantt(report.spans, lanes, report.seconds['total'])}</div>"
        f"<div class='keys'>{keys}</div>",
    )


def _bytes(robots: Sequence[RobotReport]) -> str:
    rows = []
    for robot in robots:
        share = robot.bytes_up / robot.bytes_kept if robot.bytes_kept else 0.0
        rows.append(
            f"<tr><td>{escape(robot.robot_id)}</td><td>{_size(robot.bytes_up)}</td>"
            f"<td>{_size(robot.bytes_down)}</td><td>{_size(robot.bytes_kept)}</td>"
            f"<td>{100 * share:.0f} %</td></tr>"
        )
    return _section(
        "What left each robot",
        "Updates of the weights over Flower, and the episodes that stayed: pictures, joints and "
        "words never leave. Statuses and statistics, some kilobytes, are not counted.",
        "<table><thead><tr><th>robot</th><th>updates sent</th><th>bases received</th>"
        "<th>episodes kept</th><th>sent / kept</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>",
    )


def _robots(report: Report) -> str:
    rows = "".join(
        f"<tr><td>{escape(each.robot_id)}</td><td>{escape(each.sector)}</td><td>{each.episodes}</td>"
        f"<td>{each.frames}</td><td>{each.rate_hz:.2f}</td><td>{each.missed_deadlines}</td>"
        f"<td>{each.local_steps}</td><td>{each.steps}</td></tr>"
        for each in report.robots
    )
    walks = ", ".join(f"{walk} {'yes' if done else 'NO'}" for walk, done in report.walks.items())
    return _section(
        "What each robot did",
        f"Walks completed: {walks}. {report.windows} windows, {report.rounds} rounds.",
        "<table><thead><tr><th>robot</th><th>sector</th><th>episodes</th><th>frames</th>"
        "<th>Hz held</th><th>deadlines missed</th><th>steps alone</th><th>steps for the fleet</th>"
        f"</tr></thead><tbody>{rows}</tbody></table>",
    )


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
