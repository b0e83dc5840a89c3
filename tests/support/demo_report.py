"""A demo's report as it might be, for tests of the page."""

from __future__ import annotations

from typing import Any

import numpy as np

from deploy.local_fleet.plan import Placement
from deploy.local_fleet.replay import ReplayClip
from deploy.local_fleet.report import Report, RobotReport, TrialResult
from deploy.local_fleet.timeline import Span
from deploy.local_fleet.video import encode_mp4

SECTORS = ("right", "centre", "left")
# Who lifted alone, where it had never been shown how.
LUCKY = {
    ("right", "centre", 0),
    ("centre", "right", 1),
    ("centre", "left", 0),
    ("left", "centre", 1),
}


def trials(name: str) -> tuple[TrialResult, ...]:
    """Two placements a sector: alone each lifts at home and LUCKY, together all."""
    found = []
    for number, own in enumerate(SECTORS):
        for policy in ("local", "active"):
            for sector in SECTORS:
                for attempt in range(2):
                    lucky = (own, sector, attempt) in LUCKY
                    lifted = policy == "active" or sector == own or lucky
                    found.append(
                        TrialResult(
                            f"{name}-{number + 1}", own, policy, 1,
                            Placement(sector, 0.18, 0.0, 0.0), lifted, 0.1, 3.0, 0,
                        )
                    )  # fmt: skip
    return tuple(found)


def report(name: str = "arm", **changes: Any) -> Report:
    """Three robots; `losses`, `held_out` and `trials` may be given."""
    losses = changes.get("losses", tuple((r, 0.15 * 0.87**r) for r in range(1, 13)))
    held_out = changes.get("held_out", tuple((r, 18.0 * 0.75**r + 0.8) for r in range(13)))
    robots = tuple(
        RobotReport(
            robot_id=f"{name}-{number + 1}", sector=sector, episodes=16, frames=1698,
            rate_hz=30.0, missed_deadlines=0, steps=1200, local_steps=1200, bytes_up=2_520_000,
            bytes_down=4_250_000, held_out_before=18.0, held_out_local=0.6, held_out_after=0.9,
            bytes_kept=5_400_000, held_out=held_out, losses=losses,
        )
        for number, sector in enumerate(SECTORS)
    )  # fmt: skip
    spans = []
    for number, _ in enumerate(SECTORS):
        lane = f"{name}-{number + 1}"
        spans += [
            Span(lane, "calibrate", 10, 30, "calibrate"),
            Span(lane, "demonstrate", 30, 110, "demonstrate"),
            Span(lane, "train alone", 120, 180, "train alone"),
            *(Span(lane, "train", 182 + 9 * k, 189 + 9 * k, "train") for k in range(12)),
            Span(lane, "drive", 300, 380, "drive"),
        ]
    for k in range(12):
        spans.append(Span("coordinator", "window", 188 + 9 * k, 192 + 9 * k, f"window {k + 1}"))
        spans.append(Span("coordinator", "round", 189 + 9 * k, 191 + 9 * k, f"round {k + 1}"))
    spans.append(Span("coordinator", "release", 245, 245, "release 1"))
    return Report(
        walks={"demonstration": True, "contribution": True, "release": True},
        seconds={"total": 392.0},
        windows=12, rounds=12, releases=2, robots=robots,
        trials=changes.get("trials", trials(name)), policy="pictures", seed=7, spans=tuple(spans),
    )  # fmt: skip


def clips(width: int = 64, height: int = 48) -> list[ReplayClip]:
    """A pair a robot: something red rises in one and stays in the other."""
    found = []
    for number in range(3):
        for policy in ("local", "active"):
            frames = np.full((20, height, width, 3), 90, np.uint8)
            for tick, frame in enumerate(frames):
                top = height - 14 - (tick if policy == "active" else 0)
                frame[top : top + 10, width // 2 - 5 : width // 2 + 5] = (220, 30, 30)
            place = Placement(SECTORS[(number + 1) % 3], 0.18, 0.0, 0.0)
            found.append(
                ReplayClip(
                    f"arm-{number + 1}", policy, place, policy == "active", encode_mp4(frames, 15)
                )
            )
    return found
