"""A headless Chromium spoken to over its pipe: one page, its errors, and what its scripts say.

    python tests/support/chromium.py report.html docs/report.png

makes the picture of the README anew.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome")
_END = b"\0"


def find_chromium() -> str | None:
    """The browser of this machine, if there is one."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Chromium:
    """One browser with one page. Faults of the page gather in `errors`."""

    def __init__(self, profile: Path, width: int = 1200, height: int = 900) -> None:
        browser = find_chromium()
        assert browser is not None
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        flags = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--no-first-run", "--disable-background-networking", "--remote-debugging-pipe",
            "--autoplay-policy=no-user-gesture-required", f"--window-size={width},{height}",
            f"--user-data-dir={profile}", "about:blank",
        ]  # fmt: skip
        # Chromium reads its orders from descriptor 3 and answers on 4.
        script = f'exec "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "browser", browser, *flags],
            pass_fds=(to_read, to_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        self._pending = b""
        self._number = 0
        self.errors: list[str] = []
        self.loaded = False
        target = self.ask("Target.createTarget", url="about:blank", newWindow=True)["targetId"]
        self._session: str | None = self.ask(
            "Target.attachToTarget", targetId=target, flatten=True
        )["sessionId"]
        for domain in ("Runtime", "Log", "Page"):
            self.ask(f"{domain}.enable")

    _session = None

    def ask(self, method: str, timeout_s: float = 60.0, **parameters: Any) -> dict[str, Any]:
        """One command, and its result."""
        self._number += 1
        order = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            order["sessionId"] = self._session
        os.write(self._write, json.dumps(order).encode() + _END)
        until_s = time.monotonic() + timeout_s
        while True:
            message = self._receive(until_s)
            if message.get("id") == self._number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result

    def open(self, page: Path, timeout_s: float = 60.0) -> None:
        """Load a file; returns when it is there."""
        self.loaded = False
        self.ask("Page.navigate", url=page.resolve().as_uri())
        until_s = time.monotonic() + timeout_s
        while not self.loaded:
            self._receive(until_s)

    def evaluate(self, expression: str) -> Any:
        """What a script comes to; a promise is waited for."""
        reply = self.ask(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    def emulate(self, scheme: str, width: int, height: int) -> None:
        """`light` or `dark`, and the size of the window."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.ask("Emulation.setEmulatedMedia", features=[feature])
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip

    def screenshot(self) -> bytes:
        """PNG of the window."""
        return base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"])

    def _receive(self, until_s: float) -> dict[str, Any]:
        while _END not in self._pending:
            left_s = until_s - time.monotonic()
            assert left_s > 0, "the browser does not answer"
            if select.select([self._read], [], [], left_s)[0]:
                piece = os.read(self._read, 1 << 20)
                assert piece, "the browser is gone"
                self._pending += piece
        text, _, self._pending = self._pending.partition(_END)
        message: dict[str, Any] = json.loads(text)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, method: str | None, told: dict[str, Any]) -> None:
        match method:
            case "Page.loadEventFired":
                self.loaded = True
            case "Runtime.exceptionThrown":
                self.errors.append(json.dumps(told["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if told["type"] in ("error", "warning"):
                self.errors.append(json.dumps(told["args"]))
            case "Log.entryAdded" if told["entry"]["level"] in ("error", "warning"):
                self.errors.append(json.dumps(told["entry"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._write)
        try:
            self._process.wait(10.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)


def main(page: Path, picture: Path) -> None:
    """The upper part of a page in the light scheme, its videos at their end."""
    with tempfile.TemporaryDirectory() as profile, Chromium(Path(profile)) as browser:
        browser.emulate("light", 1200, 1180)
        browser.open(page)
        browser.evaluate(
            "document.querySelectorAll('video').forEach(video => {"
            " video.pause(); video.currentTime = Math.max(0, video.duration - 0.2); });"
            "new Promise(done => setTimeout(done, 1500))"
        )
        picture.write_bytes(browser.screenshot())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
