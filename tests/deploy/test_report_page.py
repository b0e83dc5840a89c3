"""report.html: one file that needs nothing else, whatever the robots are called."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from io import BytesIO
from typing import Any

import av
import numpy as np
import pytest
from demo_report import clips, report

from deploy.local_fleet import page
from deploy.local_fleet.charts import Line, curves, gantt, nice_ticks
from deploy.local_fleet.page import render_page
from deploy.local_fleet.timeline import Span, audit_entries, coordinator_spans, robot_spans
from deploy.local_fleet.video import encode_mp4

VOID = {"meta", "link", "br", "img"}


class Strict(HTMLParser):
    """Every tag is closed in order; notes tags, and where anything is taken from."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(text: str) -> Strict:
    found = Strict()
    found.feed(text)
    found.close()
    assert found.open == []
    return found


def test_the_page_is_whole_and_takes_nothing_from_elsewhere() -> None:
    text = render_page(report(), clips())
    found = parsed(text)
    assert found.tags.count("video") == 6
    assert "script" not in found.tags
    assert all(source.startswith("data:") for source in found.sources)
    assert not re.search(r"(?i)https?://|@import|url\(", text)
    assert len(text.encode()) < page.MAX_BYTES


def test_what_robots_are_called_is_text_and_never_markup() -> None:
    found = parsed(render_page(report(name="<script>alert(1)</script>"), []))
    assert "script" not in found.tags
    assert "<script>alert(1)</script>" in found.text


def test_it_tells_how_often_each_policy_lifted_the_cube_and_how_sure_that_is() -> None:
    text = parsed(render_page(report(), [])).text
    assert "33 %" in text and "4 of 12" in text and "95 %: 14 to 61 %" in text
    assert "100 %" in text and "12 of 12" in text
    assert "sees the overhead camera's pictures" in text


def test_a_fleet_that_learned_nothing_still_gets_its_page() -> None:
    parsed(render_page(report(losses=(), held_out=(), trials=()), []))


def test_a_page_over_the_limit_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MAX_BYTES", 10_000)
    with pytest.raises(ValueError, match="over 10000"):
        render_page(report(), clips())


def test_a_video_has_the_frames_that_it_was_given() -> None:
    frames = np.zeros((12, 48, 64, 3), np.uint8)
    frames[6:, :, :, 0] = 255
    mp4 = encode_mp4(frames, 15)
    with av.open(BytesIO(mp4)) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(decoded) == 12
    assert decoded[0].mean() < 20 and decoded[-1][..., 0].mean() > 200
    with pytest.raises(ValueError, match="even sides"):
        encode_mp4(np.zeros((2, 47, 64, 3), np.uint8), 15)


def test_curves_leave_out_what_is_no_number_and_draw_from_zero() -> None:
    svg = curves([Line("a", "one", ((0, 2.0), (1, float("nan")), (2, 1.0)))], "round", "loss")
    assert svg.count("<circle") == 2
    assert "a, round 2: 1" in svg
    assert "nothing was reported" in curves([], "round", "loss")


@pytest.mark.parametrize("highest", [0.0, 1e-4, 0.037, 1.0, 17.5, 999.0])
def test_ticks_begin_at_zero_and_reach_the_highest(highest: float) -> None:
    ticks = nice_ticks(highest)
    assert ticks[0] == 0.0 and ticks[-1] >= highest * 0.999
    assert 2 <= len(ticks) <= 6


def test_what_a_robot_did_is_told_in_spans_and_waiting_is_left_blank() -> None:
    notes = [
        (100.0, "calibrating the leader"), (110.0, "calibrating the follower"),
        (120.0, "demonstrating 1/2"), (130.0, "recorded"), (140.0, "training"), (150.0, "resting"),
        (160.0, "trial 1/6 (local)"),
    ]  # fmt: skip
    spans = robot_spans("arm-1", notes, 100.0, 170.0)
    assert [(span.kind, span.start_s, span.end_s) for span in spans] == [
        ("calibrate", 0.0, 20.0), ("demonstrate", 20.0, 30.0), ("train", 40.0, 50.0),
        ("drive", 60.0, 70.0),
    ]  # fmt: skip


def entry(kind: str, unix_s: float, /, **fields: Any) -> dict[str, Any]:
    return {"kind": kind, "unix_s": unix_s, "fields": fields}


def test_windows_rounds_and_releases_come_from_the_audit_log() -> None:
    spans = coordinator_spans(
        [
            entry("window_opened", 110.0, window_id="w", round=1),
            entry("round", 114.0, kind="train", round=1, members=["a", "b"], seconds=3.0),
            entry("window_closed", 115.0, window_id="w", round=1, outcome="aggregated"),
            entry("released", 120.0, version=1, round=1),
            entry("release_refused", 130.0, round=2, reason="worse"),
            entry("agent_event", 131.0),
        ],
        100.0,
    )
    assert [(span.kind, span.start_s, span.end_s) for span in spans] == [
        ("round", 11.0, 14.0), ("window", 10.0, 15.0), ("release", 20.0, 20.0),
        ("refused", 30.0, 30.0),
    ]  # fmt: skip
    assert gantt(spans, ["coordinator"], 60.0).count("<title>") == 4


def test_a_line_of_the_audit_log_that_is_being_written_is_left_out() -> None:
    assert audit_entries(b'{"kind": "a"}\n{"ki') == [{"kind": "a"}]
    assert audit_entries(b"") == []


def test_a_span_that_began_before_the_picture_stays_inside_it() -> None:
    svg = gantt([Span("arm-1", "train", -50.0, 500.0, "train")], ["arm-1"], 100.0)
    drawn = re.findall(r"(?:x|width)='([\d.]+)'", svg.split("span train")[1])
    left, width = float(drawn[0]), float(drawn[1])
    assert left >= 96 and left + width <= 1080
