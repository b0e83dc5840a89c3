"""JPEG pictures out of an HTTP ``multipart/x-mixed-replace`` stream.

What mjpg-streamer, ustreamer, ESP32 cameras and phone apps serve. The bytes of each picture are
handed on as they were received, so that a recording holds exactly what the camera made.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import select
import socket
from urllib.parse import urlsplit

from robot_io.errors import CameraGone

_MAX_PICTURE_BYTES = 32 * 1024 * 1024
_MAX_HEADER_BYTES = 16 * 1024
_CHUNK_BYTES = 64 * 1024
# A sender that is faster than we read must not keep us from handing a picture on.
_MAX_CHUNKS = 64
_JPEG_BEGIN = b"\xff\xd8"
_JPEG_END = b"\xff\xd9"


class MultipartParser:
    """Pictures out of the bytes of a multipart body, cut anywhere. Pure.

    A part is as long as its Content-Length says; without one it ends at the next boundary. What
    does not begin and end as a JPEG does is dropped and counted in ``bad_parts``.
    """

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"--" + boundary.removeprefix(b"--")
        self._buffer = bytearray()
        self._length: int | None = None
        self._in_part = False
        self._searched = 0
        self.bad_parts = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The pictures that ``data`` completes, the oldest first.

        Raises:
            CameraGone: headers or a picture larger than any camera sends.
        """
        self._buffer += data
        pictures = []
        while True:
            if not self._in_part and not self._take_headers():
                break
            body = self._take_body()
            if body is None:
                break
            picture = body.rstrip(b"\r\n") if self._length is None else body
            self._in_part, self._length, self._searched = False, None, 0
            if picture.startswith(_JPEG_BEGIN) and picture.rstrip(b"\0").endswith(_JPEG_END):
                pictures.append(bytes(picture))
            else:
                self.bad_parts += 1
        return pictures

    def _take_headers(self) -> bool:
        start = self._buffer.find(self._delimiter)
        end = -1 if start < 0 else self._buffer.find(b"\r\n\r\n", start)
        if end < 0:
            if len(self._buffer) - max(start, 0) > _MAX_HEADER_BYTES:
                raise CameraGone("the stream carries no picture headers")
            return False
        headers = bytes(self._buffer[start:end])
        match = re.search(rb"(?im)^content-length:\s*(\d+)", headers)
        self._length = int(match[1]) if match else None
        if self._length is not None and self._length > _MAX_PICTURE_BYTES:
            raise CameraGone(f"the stream announces a picture of {self._length} bytes")
        del self._buffer[: end + 4]
        self._in_part, self._searched = True, 0
        return True

    def _take_body(self) -> bytearray | None:
        if self._length is not None:
            end = self._length
            if len(self._buffer) < end:
                return None
        else:
            end = self._buffer.find(self._delimiter, self._searched)
            if end < 0:
                if len(self._buffer) > _MAX_PICTURE_BYTES:
                    raise CameraGone("the stream carries a picture without end")
                self._searched = max(0, len(self._buffer) - len(self._delimiter))
                return None
        body = self._buffer[:end]
        del self._buffer[:end]
        return body


class MjpegStream:
    """An open stream.

    Args:
        url: http or https.
        timeout_s: the longest silence that is borne, from connecting to each byte.

    Raises:
        CameraGone: no connection, no stream behind the address, or a silence.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self.url = url
        parts = urlsplit(url)
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        self._connection = kind(parts.hostname or "", parts.port, timeout=timeout_s)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            self._connection.request("GET", path)
            self._socket: socket.socket | None = self._connection.sock
            self._response = self._connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise CameraGone(f"no camera stream at {url}: {error}") from error
        kind_header = self._response.getheader("Content-Type", "")
        boundary = re.search(r'boundary="?([^";\s]+)"?', kind_header)
        if self._response.status != 200 or boundary is None:
            status = f"{self._response.status} {kind_header}".strip()
            self.close()
            raise CameraGone(f"{url} serves no MJPEG stream, it answers: {status}")
        self._parser = MultipartParser(boundary[1].encode())

    def read(self) -> list[bytes]:
        """All pictures that have come, after waiting for bytes; perhaps none yet.

        What has piled up while nobody read is taken at once, so that the last picture returned
        is the newest one and not the oldest that was left waiting.

        Raises:
            CameraGone: the stream has ended or is silent.
        """
        pictures: list[bytes] = []
        for _ in range(_MAX_CHUNKS):
            try:
                data = self._response.read1(_CHUNK_BYTES)
            except (OSError, ValueError, http.client.HTTPException) as error:
                raise CameraGone(f"the stream {self.url} broke off: {error}") from error
            if not data:
                raise CameraGone(f"the stream {self.url} has ended")
            pictures += self._parser.feed(data)
            if len(data) < _CHUNK_BYTES and not self._more_waiting():
                break
        return pictures

    def _more_waiting(self) -> bool:
        if self._socket is None:
            return False
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    def interrupt(self) -> None:
        """From another thread: a `read` in progress, and every later one, ends at once."""
        # The other side may have been faster.
        with contextlib.suppress(OSError):
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection, in the thread that reads."""
        self._response.close()
        self._connection.close()
