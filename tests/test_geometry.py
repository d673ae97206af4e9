import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfdc_lib import geometry as g


@pytest.mark.parametrize(
    ("size", "scale"),
    [((299, 100), 2), ((300, 300), 1), ((640, 1000), 1), ((1001, 5), 0.5), ((1080, 1900), 0.5), ((1920, 1080), 0.33)],
)
def test_detector_scale_follows_the_slides_at_every_border(size, scale):
    assert g.detector_scale(*size) == scale


def test_detector_scale_refuses_an_empty_frame():
    with pytest.raises(ValueError, match="positive size"):
        g.detector_scale(0, 0)


def test_margin_by_hand():
    assert g.add_margin((100, 100, 200, 150), 0.2, 1000, 1000) == (80, 90, 220, 160)


def test_upstreams_margin_is_a_third_in_whole_pixels():
    """By upstream's expressions: p_w = w // 3, then from xmin - p_w to xmax + p_w."""
    assert g.add_margin((100.9, 100.2, 150.9, 201.7), "upstream", 1000, 1000) == (84, 67, 166, 234)


def test_margin_is_clipped_at_each_border():
    assert g.add_margin((-5, 2, 98, 99), 0.2, 100, 100) == (0, 0, 100, 100)


def test_a_box_outside_the_frame_is_an_error():
    with pytest.raises(ValueError, match="leaves nothing"):
        g.add_margin((200, 200, 300, 300), 0.1, 100, 100)


@given(st.integers(1, 400), st.integers(1, 400), st.integers(8, 300))
def test_resize_and_pad_give_a_square_that_holds_the_whole_picture(height, width, size):
    resized = g.isotropic_resize(np.full((height, width, 3), 255, np.uint8), size)
    padded = g.pad_to_square(resized, size)
    assert max(resized.shape[:2]) == size
    assert padded.shape == (size, size, 3)
    assert padded.sum() == resized.sum()


def test_pad_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="does not fit"):
        g.pad_to_square(np.zeros((10, 20, 3), np.uint8), 15)


@given(st.integers(1, 500), st.integers(1, 64))
def test_spread_indices_are_distinct_even_and_inside(total, wanted):
    indices = g.spread_indices(total, wanted)
    assert len(indices) == min(total, wanted)
    assert indices[0] == 0
    assert indices[-1] <= total - 1
    steps = np.diff(indices)
    assert len(steps) == 0 or (steps.min() >= 1 and steps.max() - steps.min() <= 1)


def test_affine_between_recovers_a_known_map():
    known = np.array([[1.2, -0.3, 5], [0.4, 0.9, -7]])
    points = np.array([[0.0, 0], [10, 0], [0, 10], [7, 3]])
    assert np.allclose(g.affine_between(points, g.move_points(points, known)), known)


def test_affine_between_refuses_points_on_a_line():
    line = np.array([[0.0, 0], [1, 1], [2, 2]])
    with pytest.raises(ValueError, match="one line"):
        g.affine_between(line, line)
