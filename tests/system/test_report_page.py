"""report.html in a real browser: videos play, nothing is complained of, nothing is fetched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Chromium, find_chromium
from demo_report import clips, report

from deploy.local_fleet.page import render_page

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium: make browser installs it"),
]

PLAYED = """
Promise.all([...document.querySelectorAll("video")].map(video => new Promise(done => {
  const say = () => done({
    width: video.videoWidth, seconds: video.duration, now: video.currentTime,
    fault: video.error && video.error.message,
  });
  if (video.currentTime > 0.2) say();
  video.addEventListener("timeupdate", () => video.currentTime > 0.2 && say());
  video.addEventListener("error", say);
  setTimeout(say, 20000);
})))
"""


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chromium]:
    with Chromium(tmp_path / "profile") as started:
        yield started


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_plays_its_videos_and_nothing_is_wrong(
    browser: Chromium, tmp_path: Path, scheme: str
) -> None:
    path = tmp_path / "report.html"
    path.write_text(render_page(report(), clips()), encoding="utf-8")
    browser.emulate(scheme, 1200, 900)
    browser.open(path)
    videos = browser.evaluate(PLAYED)
    assert len(videos) == 6
    for video in videos:
        assert video["fault"] is None
        assert (video["width"], round(video["seconds"], 1)) == (64, 1.3)
        assert video["now"] > 0.2
    assert browser.errors == []
    taken = browser.evaluate("performance.getEntriesByType('resource').map(e => e.name)")
    assert [each for each in taken if not each.startswith("data:")] == []


@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_hangs_over_the_edge_of_a_window(
    browser: Chromium, tmp_path: Path, width: int
) -> None:
    path = tmp_path / "report.html"
    path.write_text(render_page(report(), clips()), encoding="utf-8")
    browser.emulate("light", width, 800)
    browser.open(path)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
