import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfdc_lib import geometry as g
from dfdc_lib.config import MARGINS, Margin


def test_detector_scale_follows_the_slides_at_every_border():
    sizes = [(299, 100), (300, 300), (640, 1000), (1001, 5), (1080, 1900), (1920, 1080)]
    assert [g.detector_scale(*size) for size in sizes] == [2, 1, 1, 0.5, 0.5, 0.33]


@pytest.mark.parametrize(
    ("box", "margin", "frame", "expected"),
    [
        ((100, 100, 200, 150), MARGINS["slides"], (1000, 1000), (80, 90, 220, 160)),
        ((100.9, 100.2, 150.9, 201.7), MARGINS["upstream"], (1000, 1000), (84, 67, 166, 234)),
        ((-5, 2, 98, 99), Margin(0.2), (100, 100), (0, 0, 100, 100)),
    ],
    ids=["slides", "upstream", "clipped at each border"],
)
def test_margin_by_hand(box, margin, frame, expected):
    assert g.add_margin(box, margin, *frame) == expected


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_upstreams_margin_is_a_third_in_whole_pixels(width, height):
    """By upstream's expressions: p_w = w // 3, then from xmin - p_w to xmax + p_w."""
    corner, frame = 10**6, (10**7, 10**7)
    box = (corner, corner, corner + width, corner + height)
    grown = g.add_margin(box, MARGINS["upstream"], *frame)
    assert grown[0] == corner - width // 3
    assert grown[3] == corner + height + height // 3


LINE = np.array([[0.0, 0], [1, 1], [2, 2]])


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (g.add_margin, ((200, 200, 300, 300), Margin(0.1), 100, 100), "leaves nothing"),
        (g.pad_to_square, (np.zeros((10, 20, 3), np.uint8), 15), "does not fit"),
        (g.affine_between, (LINE, LINE), "one line"),
    ],
)
def test_what_has_no_answer_is_an_error(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments)


@given(st.integers(1, 400), st.integers(1, 400), st.integers(8, 300))
def test_resize_and_pad_give_a_square_that_holds_the_whole_picture(height, width, size):
    resized = g.isotropic_resize(np.full((height, width, 3), 255, np.uint8), size)
    padded = g.pad_to_square(resized, size)
    assert max(resized.shape[:2]) == size
    assert padded.shape == (size, size, 3)
    assert padded.sum() == resized.sum()


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
