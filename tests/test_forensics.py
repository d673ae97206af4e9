import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfdc_lib.rehearsal import forensics as f
from dfdc_lib.rehearsal.sample import portrait

PICTURE = portrait("collins")[:256, :256].copy()


def test_recompressing_changes_more_the_lower_the_quality():
    stored = [f.recompress(PICTURE, quality).astype(int) for quality in (95, 70, 30)]
    changes = [np.abs(picture - PICTURE).mean() for picture in stored]
    assert 0 < changes[0] < changes[1] < changes[2] < 10


def test_what_was_compressed_before_has_less_to_lose():
    fresh, stored = f.error_level(PICTURE, 90), f.error_level(f.recompress(PICTURE, 30), 90)
    assert fresh.shape == PICTURE.shape[:2]
    assert stored.mean() < 0.8 * fresh.mean()


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


def test_the_grid_within_a_part_is_that_parts_own():
    picture = f.recompress(PICTURE, 50)
    stretched = picture[:, 131:].repeat(2, axis=1)  # to another grid
    picture[:, 128:] = stretched[:, :128]
    left = np.zeros(picture.shape[:2], bool)
    left[:, :126] = True
    assert f.block_grid(picture, left)[1].argmax() == 7
    with pytest.raises(ValueError, match="too few pixels"):
        f.block_grid(picture, np.zeros(left.shape, bool))
