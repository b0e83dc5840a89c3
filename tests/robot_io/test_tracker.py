"""The cube's place comes out of the picture, and nothing else is taken for the cube."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robot_io.errors import BadImage
from robot_io.tracker import BlobTracker, TrackerConfig

# A camera above the table: 2 mm a pixel, turned by a quarter, 0.1 m in front of the base.
HOMOGRAPHY = ((0.0, -0.002, 0.3), (-0.002, 0.0, 0.128), (0.0, 0.0, 1.0))
RED = TrackerConfig(340.0, 20.0, 0.5, 0.3, 6.0, HOMOGRAPHY)


def table() -> np.ndarray:
    return np.full((96, 128, 3), (120, 120, 110), np.uint8)


@given(st.integers(4, 118), st.integers(4, 86), st.integers(3, 6))
def test_cube_is_found_where_it_is_to_a_fraction_of_a_pixel(u, v, size):
    image = table()
    image[v : v + size, u : u + size] = (220, 20, 15)
    centre = (u + (size - 1) / 2, v + (size - 1) / 2)
    tracker = BlobTracker(RED)
    assert tracker.locate_pixel(image) == pytest.approx(centre, abs=1e-6)
    x_m, y_m = tracker.locate(image)
    assert x_m == pytest.approx(0.3 - 0.002 * centre[1])
    assert y_m == pytest.approx(0.128 - 0.002 * centre[0])


def test_hue_around_zero_takes_both_sides_of_red():
    for colour in ((220, 10, 40), (220, 40, 10)):
        image = table()
        image[10:16, 10:16] = colour
        assert BlobTracker(RED).locate(image) is not None


def test_grey_dark_small_and_other_colours_are_no_cube():
    for colour, size in (
        ((120, 118, 118), 8),
        ((40, 0, 0), 8),
        ((220, 20, 15), 2),
        ((0, 200, 0), 8),
    ):
        image = table()
        image[20 : 20 + size, 20 : 20 + size] = colour
        assert BlobTracker(RED).locate(image) is None


def test_the_largest_blob_wins():
    image = table()
    image[10:14, 10:14] = (220, 20, 15)
    image[50:60, 80:90] = (220, 20, 15)
    assert BlobTracker(RED).locate_pixel(image) == pytest.approx((84.5, 54.5))


def test_perspective_is_divided_out():
    homography = ((0.002, 0.0, 0.1), (0.0, 0.002, -0.1), (0.0, 0.001, 1.0))
    tracker = BlobTracker(TrackerConfig(340.0, 20.0, 0.5, 0.3, 6.0, homography))
    wanted = cv2.perspectiveTransform(np.array([[[30.0, 40.0]]]), np.array(homography))[0, 0]
    assert tracker.to_table(30.0, 40.0) == pytest.approx(tuple(wanted))


def test_another_shape_is_refused():
    for image in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)):
        with pytest.raises(BadImage, match="uint8"):
            BlobTracker(RED).locate(image)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hue_min_deg": 400.0}, "hue_min_deg"),
        ({"saturation_min": 2.0}, "saturation_min"),
        ({"min_area_px": 0.0}, "min_area_px"),
        ({"homography": ((1.0, 0.0, 0.0),)}, "3 rows"),
        ({"homography": ((1.0, 0.0, 0.0), (2.0, 0.0, 0.0), (0.0, 0.0, 1.0))}, "line"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(changes, said):
    values = {
        "hue_min_deg": 0.0,
        "hue_max_deg": 20.0,
        "saturation_min": 0.5,
        "value_min": 0.3,
        "min_area_px": 4.0,
        "homography": HOMOGRAPHY,
    } | changes
    with pytest.raises(ValueError, match=said):
        TrackerConfig(**values)
