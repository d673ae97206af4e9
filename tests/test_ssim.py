import numpy as np
import pytest
from skimage.metrics import structural_similarity

from dfdc_lib.geometry import crop_box
from dfdc_lib.metadata import read_metadata
from dfdc_lib.preprocess import read_places
from dfdc_lib.rehearsal.sample import changed_regions, read_methods, read_recipes
from dfdc_lib.ssim import ssim_difference
from dfdc_lib.store import face_file, read_mask

RNG = np.random.default_rng(0)
PICTURE, OTHER = RNG.integers(0, 256, (2, 40, 50, 3), np.uint8)


def test_pictures_that_can_not_be_compared_are_an_error():
    with pytest.raises(ValueError, match="compared"):
        ssim_difference(PICTURE, PICTURE[1:])
    with pytest.raises(ValueError, match="7 x 7"):
        ssim_difference(PICTURE[:5], PICTURE[:5])


def test_the_mask_is_scikit_images_map_upside_down():
    _, similarity = structural_similarity(PICTURE, OTHER, channel_axis=2, full=True)
    expected = 255 * (1 - similarity.mean(axis=2).clip(0, 1))
    mask = ssim_difference(PICTURE, OTHER)
    assert mask.dtype == np.uint8
    assert np.abs(mask - expected).max() <= 0.5


def test_a_masks_energy_lies_where_the_fake_was_changed(small_sample, small_work):
    """By method: the share of the mask's sum in the true region, beside the region's of the
    area."""
    methods, recipes, shares = read_methods(small_sample), read_recipes(small_sample), {}
    for fake in read_metadata(small_sample).query("label == 1").itertuples():
        if recipes[fake.video_id]["shot"]["width"] > 1000:
            continue  # it takes long to film again
        regions = changed_regions(recipes[fake.video_id])
        for face, place in read_places(small_work, fake.original_id).items():
            truth = crop_box(regions[face[0]], place) > 0
            mask = read_mask(small_work.masks(fake.video_id) / face_file(*face))
            if truth.any():
                share = mask[truth].sum() / mask.sum(), truth.mean()
                shares.setdefault(methods[fake.video_id], []).append(share)
    means = {method: np.mean(values, axis=0) for method, values in shares.items()}
    least = {"swap": 0.7, "autoencoder": 0.7, "mouth": 0.4, "rewarp": 0.45}
    assert set(means) == {"swap", "rewarp", "autoencoder", "mouth"}
    for method, (energy, area) in means.items():
        assert energy > least[method], method
        assert energy > 1.3 * area, method
