"""A camera over real HTTP: fresh or nothing, gone is said, and it comes back by itself."""

from __future__ import annotations

import http.server
import threading
import time

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robot_io.cameras import Camera, CameraConfig
from robot_io.errors import CameraGone
from robot_io.mjpeg import MjpegStream, MultipartParser

WIDTH, HEIGHT = 32, 24


def jpeg(value: int, width: int = WIDTH, height: int = HEIGHT) -> bytes:
    image = np.full((height, width, 3), (10, 20, value), np.uint8)  # BGR, so red carries it
    return bytes(cv2.imencode(".jpg", image)[1])


class StreamServer(http.server.ThreadingHTTPServer):
    """Serves the picture of the moment at 50 a second; ``stalled`` keeps the line open, silent."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        self.picture = jpeg(100)
        self.stalled = threading.Event()
        self.ending = threading.Event()
        self.with_length = True
        self.backlog: list[bytes] = []
        super().__init__(("127.0.0.1", port), _Handler)
        self.thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/overhead.mjpg?x=1"

    def stop(self) -> None:
        self.ending.set()
        self.shutdown()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: StreamServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if not self.path.startswith("/overhead.mjpg?x=1"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", 'multipart/x-mixed-replace; boundary="frame"')
        self.end_headers()
        while not self.server.ending.is_set():
            pictures, self.server.backlog = self.server.backlog, []
            if not self.server.stalled.is_set():
                pictures.append(self.server.picture)
            try:
                for picture in pictures:
                    self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\n")
                    if self.server.with_length:
                        self.wfile.write(f"Content-Length: {len(picture)}\r\n".encode())
                    self.wfile.write(b"\r\n" + picture + b"\r\n")
            except OSError:
                return
            time.sleep(0.02)


@pytest.fixture
def server():
    made = StreamServer()
    yield made
    made.stop()


def config(server: StreamServer, **changes) -> CameraConfig:
    values = {
        "name": "overhead",
        "source": server.url,
        "width": WIDTH,
        "height": HEIGHT,
        "fps": 30,
        "stall_s": 0.3,
        "retry_s": 0.05,
    }
    return CameraConfig(**(values | changes))


def wait_for(done, timeout_s: float = 10.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < end_s, "it did not happen in time"
        time.sleep(0.01)


def fresh(camera: Camera) -> bool:
    try:
        camera.latest(0.2)
    except CameraGone:
        return False
    return True


# -- the camera --------------------------------------------------------------------------------


@pytest.mark.parametrize("with_length", [True, False])
def test_frames_are_rgb_numbered_stamped_and_keep_the_jpeg_as_sent(server, with_length):
    server.with_length = with_length
    with Camera(config(server)) as camera:
        before_s = time.monotonic()
        wait_for(lambda: camera.latest(1.0).t_captured_s > before_s)
        frame = camera.latest(1.0)
        assert frame.image.shape == (HEIGHT, WIDTH, 3)
        assert frame.image.dtype == np.uint8
        assert frame.image[5, 5].tolist() == pytest.approx([100, 20, 10], abs=4)
        assert frame.jpeg == server.picture
        assert not frame.image.flags.writeable
        wait_for(lambda: camera.latest(1.0).sequence > frame.sequence + 2)
        assert camera.latest(1.0).t_captured_s > frame.t_captured_s


def test_stalled_camera_is_gone_and_its_old_frame_is_never_shown_as_fresh(server):
    with Camera(config(server)) as camera:
        server.stalled.set()
        wait_for(lambda: not fresh(camera))
        end_s = time.monotonic() + 0.8  # over several reconnects to the silent server
        while time.monotonic() < end_s:
            with pytest.raises(CameraGone, match="camera overhead"):
                camera.latest(0.2)
            time.sleep(0.02)
        assert camera.reconnects >= 1
        server.picture = jpeg(200)
        server.stalled.clear()
        wait_for(lambda: fresh(camera))
        assert camera.latest(0.2).jpeg == server.picture


def test_camera_comes_back_after_the_server_was_gone_and_goes_on_counting(server):
    with Camera(config(server)) as camera:
        port = server.server_address[1]
        server.stop()
        wait_for(lambda: not fresh(camera))
        with pytest.raises(CameraGone) as caught:
            camera.latest(0.1)
        assert isinstance(caught.value, TimeoutError)
        with pytest.raises(CameraGone):
            camera.latest(0.1)
        before = camera.latest(3600.0).sequence
        again = StreamServer(port)
        try:
            wait_for(lambda: fresh(camera))
            assert camera.latest(1.0).sequence > before
        finally:
            again.stop()


def test_after_a_pile_of_frames_the_newest_is_shown(server):
    with Camera(config(server)) as camera:
        server.stalled.set()
        server.picture = jpeg(250)
        server.backlog = [jpeg(value) for value in (50, 60, 70)] + [jpeg(250)]
        wait_for(lambda: camera.latest(10.0).jpeg == jpeg(250))


def test_no_server_is_said_within_the_time(server):
    server.stop()
    began_s = time.monotonic()
    with pytest.raises(CameraGone, match=r"camera overhead \(http://127.*no camera stream"):
        Camera(config(server)).open(timeout_s=0.5)
    assert time.monotonic() - began_s < 5


def test_an_address_without_a_stream_is_said(server):
    with pytest.raises(CameraGone, match="404"):
        MjpegStream(server.url.replace("overhead", "other"), 1.0)


def test_frames_of_another_size_are_refused_with_both_sizes(server):
    server.picture = jpeg(1, width=64)
    with pytest.raises(CameraGone, match=r"64x24.*32x24"):
        Camera(config(server)).open(timeout_s=0.7)


def test_what_is_no_jpeg_is_no_frame(server):
    server.picture = b"\xff\xd8 not a picture \xff\xd9"
    with pytest.raises(CameraGone, match="no JPEG"):
        Camera(config(server)).open(timeout_s=0.7)


def test_closing_ends_the_thread_also_on_a_silent_stream(server):
    camera = Camera(config(server, stall_s=30.0))
    camera.open()
    server.stalled.set()
    began_s = time.monotonic()
    camera.close()
    camera.close()
    assert time.monotonic() - began_s < 5
    assert not [t for t in threading.enumerate() if t.name == "camera-overhead"]
    with pytest.raises(CameraGone, match="closed"):
        camera.latest(10.0)


def test_missing_device_is_gone():
    with pytest.raises(CameraGone, match="no such device"):
        Camera(CameraConfig("wrist", "/dev/video97", 32, 24, 30, retry_s=0.05)).open(1.0)


def test_age_is_measured_by_the_clock_given(server):
    now_s = [100.0]
    with Camera(config(server), clock=lambda: now_s[0]) as camera:
        assert camera.latest(0.0).t_captured_s == 100.0
        server.stalled.set()
        time.sleep(0.1)
        now_s[0] = 100.6
        with pytest.raises(CameraGone, match="600 ms old"):
            camera.latest(0.5)
        assert camera.latest(0.7).t_captured_s == 100.0


# -- the stream --------------------------------------------------------------------------------

pictures = st.binary(max_size=200).map(lambda body: b"\xff\xd8" + body + b"\xff\xd9")


@given(st.lists(pictures, max_size=5), st.data())
def test_pictures_survive_any_cut_of_the_stream(sent, data):
    stream = b"preamble\r\n" + b"".join(
        b"--cut\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(picture), picture) for picture in sent
    )
    parser = MultipartParser(b"cut")
    got = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        got += parser.feed(stream[:size])
        stream = stream[size:]
    assert got == sent


@given(st.lists(pictures.filter(lambda p: b"--cut" not in p), max_size=5), st.data())
def test_pictures_without_a_length_end_at_the_boundary(sent, data):
    stream = b"".join(b"--cut\r\n\r\n" + picture + b"\r\n" for picture in sent) + b"--cut"
    parser = MultipartParser(b"--cut")
    got = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        got += parser.feed(stream[:size])
        stream = stream[size:]
    assert got == sent


@given(st.binary(max_size=500))
def test_garbage_yields_nothing_but_whole_pictures(garbage):
    for picture in MultipartParser(b"cut").feed(garbage):
        assert picture.startswith(b"\xff\xd8")


def test_a_picture_without_end_is_refused_before_it_eats_the_memory():
    parser = MultipartParser(b"cut")
    with pytest.raises(CameraGone, match="announces"):
        parser.feed(b"--cut\r\nContent-Length: 99999999999\r\n\r\n")
    with pytest.raises(CameraGone, match="no picture headers"):
        MultipartParser(b"cut").feed(bytes(20_000))
