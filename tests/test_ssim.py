import numpy as np
import pytest

from dfdc_lib.ssim import ssim_difference


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


def test_equal_pictures_have_an_empty_mask(picture):
    mask = ssim_difference(picture, picture)
    assert mask.shape == (40, 50)
    assert mask.dtype == np.uint8
    assert not mask.any()


def test_only_the_changed_region_lights_up(picture):
    fake = picture.copy()
    fake[10:20, 10:20] = 255 - fake[10:20, 10:20]
    mask = ssim_difference(picture, fake)
    assert mask[12:18, 12:18].min() > 200
    assert not mask[30:, 30:].any()


def test_shapes_must_agree(picture):
    with pytest.raises(ValueError, match="can't be compared"):
        ssim_difference(picture, picture[1:])


def test_a_picture_smaller_than_the_window_is_an_error(picture):
    with pytest.raises(ValueError, match="7 x 7"):
        ssim_difference(picture[:5], picture[:5])
