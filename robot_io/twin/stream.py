"""Pictures to whoever watches: ``multipart/x-mixed-replace`` over HTTP on loopback."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CAMERA_MODES = ("ok", "freeze", "gone")
_BOUNDARY = "frame"
_WAIT_S = 0.5


class Pictures:
    """The newest picture of one camera, and who waits for it.

    ``disturb("freeze")`` keeps the stream open without a new picture, ``"gone"`` ends and refuses
    streams, ``"ok"`` mends both.
    """

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._jpeg = b""
        self._number = 0
        self._watchers = 0
        self._mode = "ok"

    @property
    def wanted(self) -> bool:
        """Whether somebody watches and would get the picture."""
        return self._watchers > 0 and self._mode == "ok"

    @property
    def gone(self) -> bool:
        """Whether the camera is switched off."""
        return self._mode == "gone"

    def put(self, jpeg: bytes) -> None:
        """Show a new picture to all watchers."""
        with self._news:
            if self._mode != "ok":
                return
            self._jpeg = jpeg
            self._number += 1
            self._news.notify_all()

    def disturb(self, mode: str) -> None:
        """Freeze, switch off or mend the camera."""
        with self._news:
            self._mode = mode
            self._news.notify_all()

    def close(self) -> None:
        """End all streams."""
        self.disturb("gone")

    def watch(self, step: int) -> None:
        """Count a watcher in (+1) or out (-1)."""
        with self._news:
            self._watchers += step

    def after(self, number: int) -> tuple[int, bytes] | None:
        """The newest picture past ``number``, or None when none came within half a second."""
        with self._news:
            self._news.wait_for(lambda: self._number > number or self.gone, _WAIT_S)
            if self._number <= number or self.gone:
                return None
            return self._number, self._jpeg

    @property
    def number(self) -> int:
        """Number of the newest picture."""
        return self._number


def serve(pictures: dict[str, Pictures]) -> ThreadingHTTPServer:
    """Serve ``/NAME.mjpg`` (a stream) and ``/NAME.jpg`` (one picture) on a free loopback port."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """No line a request."""

        def do_GET(self) -> None:
            name, _, kind = self.path.strip("/").rpartition(".")
            source = pictures.get(name)
            if source is None or kind not in ("mjpg", "jpg"):
                self.send_error(404, f"cameras: {', '.join(sorted(pictures))}")
                return
            if source.gone:
                self.send_error(503, "camera switched off")
                return
            number = source.number
            source.watch(1)
            try:
                if kind == "jpg":
                    self._one(source, number)
                else:
                    self._stream(source, number)
            except (ConnectionError, TimeoutError):
                self.close_connection = True
            finally:
                source.watch(-1)

        def _one(self, source: Pictures, number: int) -> None:
            shown = source.after(number)
            if shown is None:
                self.send_error(503, "no picture")
                return
            self.send_response(200)
            self.send_header("Content-Type", "image/jpeg")
            self.send_header("Content-Length", str(len(shown[1])))
            self.end_headers()
            self.wfile.write(shown[1])

        def _stream(self, source: Pictures, number: int) -> None:
            self.send_response(200)
            self.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={_BOUNDARY}")
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            while not source.gone:
                shown = source.after(number)
                if shown is None:
                    continue
                number, jpeg = shown
                self.wfile.write(
                    f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\n"
                    f"Content-Length: {len(jpeg)}\r\n\r\n".encode()
                    + jpeg
                    + b"\r\n"
                )
            self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    return server
