import numpy as np
import pytest
from skimage.metrics import structural_similarity

from dfdc_lib.geometry import add_margin, crop_box
from dfdc_lib.metadata import read_metadata
from dfdc_lib.paths import read_mask
from dfdc_lib.sample import changed_regions, read_methods, read_recipes
from dfdc_lib.ssim import ssim_difference
from dfdc_lib.video import iterate_frames, write_video


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


def test_the_mask_is_scikit_images_map_upside_down(picture):
    fake = np.random.default_rng(1).integers(0, 256, picture.shape, np.uint8)
    _, similarity = structural_similarity(picture, fake, channel_axis=2, full=True)
    expected = 255 * (1 - similarity.mean(axis=2).clip(0, 1))
    assert np.abs(ssim_difference(picture, fake) - expected).max() <= 0.5


def test_a_masks_energy_lies_where_the_fake_was_changed(small_sample, small_work):
    """For each method: the share of the mask's sum inside the true region, far above the region's share of the area."""
    methods, recipes, shares = read_methods(small_sample), read_recipes(small_sample), {}
    for fake in read_metadata(small_sample).query("label == 1").itertuples():
        regions = changed_regions(recipes[fake.video_id])
        for name, (frame_idx, box) in small_work.read_faces(fake.original_id).items():
            height, width = regions[frame_idx].shape
            truth = crop_box(regions[frame_idx], add_margin(box, 0.2, width, height)) > 0
            mask = read_mask(small_work.masks(fake.video_id) / name)
            if truth.any():
                shares.setdefault(methods[fake.video_id], []).append((mask[truth].sum() / mask.sum(), truth.mean()))
    means = {method: np.mean(values, axis=0) for method, values in shares.items()}
    assert set(means) >= {"swap", "rewarp"}
    for method, (energy, area) in means.items():
        assert energy > {"swap": 0.7, "mouth": 0.4, "rewarp": 0.45}[method], method
        assert energy > 1.3 * area, method


def test_a_pair_that_was_only_compressed_again_stays_dark(small_sample, small_work, tmp_path):
    """At CRF 25, the sample's worst, the mean of the mask stays below 20 of 255 (notebook 04 says so)."""
    for original in read_metadata(small_sample).query("label == 0").itertuples():
        frames = [frame for _, frame in iterate_frames(small_sample / original.file, range(40))]
        write_video(tmp_path / "again.mp4", frames, crf=25)
        again = dict(iterate_frames(tmp_path / "again.mp4", range(40)))
        for frame_idx, box in small_work.read_faces(original.video_id).values():
            height, width = frames[0].shape[:2]
            grown = add_margin(box, 0.2, width, height)
            assert ssim_difference(crop_box(frames[frame_idx], grown), crop_box(again[frame_idx], grown)).mean() < 20
