import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfdc_lib.rehearsal import forensics as f
from dfdc_lib.rehearsal.people import portrait

PICTURE = portrait("collins")[:256, :256].copy()


def test_recompressing_changes_more_the_lower_the_quality_and_less_a_second_time():
    stored = [f.recompress(PICTURE, quality) for quality in (95, 70, 30)]
    changes = [np.abs(picture.astype(int) - PICTURE).mean() for picture in stored]
    assert 0 < changes[0] < changes[1] < changes[2] < 10
    assert f.error_level(stored[-1]).mean() < 0.8 * f.error_level(PICTURE).mean()


def test_a_smooth_slope_has_no_high_frequencies_and_an_edge_has():
    y, x = np.mgrid[:40, :40]
    slope = np.dstack([x + 2 * y] * 3).astype(np.uint8)
    assert np.abs(f.high_pass(slope)[1:-1, 1:-1]).max() < 1e-5
    assert np.abs(f.high_pass(PICTURE)).mean() > 1


@given(st.integers(0, 7), st.integers(0, 7))
@settings(max_examples=10)
def test_the_grid_of_blocks_is_found_wherever_it_starts(down, right):
    stored = f.recompress(PICTURE, 50)[down:, right:]
    assert f.block_grid(stored).argmax(axis=1).tolist() == [(7 - down) % 8, (7 - right) % 8]


def test_a_part_without_pixels_has_no_grid():
    with pytest.raises(ValueError, match="too few pixels"):
        f.block_grid(PICTURE, np.zeros(PICTURE.shape[:2], bool))
