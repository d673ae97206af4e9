"""Ours, on albumentations 2.0.8, against what upstream's version, 1.0.0, did: see golden/albumentations_1_0_0.py."""

import itertools
import warnings
from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import pytest

from dfdc_lib import augment
from dfdc_lib.config import AUGMENTATION_NAMES
from dfdc_lib.geometry import isotropic_resize
from dfdc_lib.sample import LANDMARKS, portrait

GOLDEN = np.load(Path(__file__).parent / "golden" / "albumentations_1_0_0.npz")
LANDMARKS_HERE = np.array(LANDMARKS["hopper"], np.float32) - (180, 120)


@pytest.fixture
def crop():
    return np.ascontiguousarray(portrait("hopper")[120:330, 180:350])


def by_kind(name: str):
    """The transform of this class in the slides' pipeline, inside a OneOf or not."""
    flat = [t for step in augment.slides_transforms(96) for t in getattr(step, "transforms", [step])]
    return next(t for t in flat if type(t).__name__ == name)


def apply(name: str, **params) -> np.ndarray:
    transform = by_kind(name)
    return transform.apply(GOLDEN["picture"], **params)


def largest_difference(ours: np.ndarray, golden: str) -> int:
    return int(np.abs(ours.astype(int) - GOLDEN[golden]).max())


def test_compression_is_the_same():
    for quality in (60, 100):
        ours = apply("ImageCompression", quality=quality, image_type=".jpg")
        assert largest_difference(ours, f"compression_{quality}") <= 2  # two builds of libjpeg
    assert by_kind("ImageCompression").quality_range == (60, 100)


def test_blur_gray_flip_and_padding_are_the_same():
    blur = by_kind("GaussianBlur")
    blur.p = 1
    assert largest_difference(blur(image=GOLDEN["picture"])["image"], "blur") <= 1
    assert largest_difference(apply("ToGray"), "gray") <= 1
    assert largest_difference(apply("HorizontalFlip"), "flip") == 0
    padded = by_kind("PadIfNeeded")(image=GOLDEN["picture"])["image"]
    assert largest_difference(padded, "pad") == 0


def test_colours_are_the_same():
    ours = apply("RandomBrightnessContrast", alpha=0.9, beta=0.2 * 255)
    assert largest_difference(ours, "brightness") <= 1
    ours = apply("HueSaturationValue", hue_shift=12, sat_shift=-25, val_shift=15)
    assert largest_difference(ours, "hue") <= 1


def test_fancy_pca_adds_one_colour_as_it_did():
    """A direction's sign is the linear algebra library's choice: one of the eight must be the golden one."""
    picture = GOLDEN["picture"]
    variances, directions = np.linalg.eigh(np.cov(picture.reshape(-1, 3).T / 255))
    for alpha in (-0.2, 0.1, 0.3):
        differences = []
        for signs in itertools.product((-1, 1), repeat=3):
            shift = 255 * alpha * (directions * signs) @ variances
            differences.append(
                largest_difference(np.clip(picture + shift, 0, 255).astype(np.uint8), f"fancy_pca_{alpha}")
            )
        assert min(differences) <= 1
        ours = augment.shift_colour(picture, alpha)
        inner = (ours > 0) & (ours < 255)
        shift = (ours.astype(int) - picture)[inner.all(axis=2)]
        assert np.ptp(shift, axis=0).max() <= 1  # one colour for all pixels


def test_noise_is_as_strong_as_it_was():
    noise = by_kind("GaussNoise")
    noise.p = 1
    noise.set_random_seed(0)
    flat = np.full((64, 64, 3), 128, np.uint8)
    spread = np.array([noise(image=flat)["image"].astype(float).std() for _ in range(400)])
    for share in (5, 50, 95):
        assert np.percentile(spread, share) == pytest.approx(np.percentile(GOLDEN["noise_spread"], share), rel=0.1)


def test_shift_scale_rotate_differs_by_half_a_pixel_at_most():
    """The same map but for where a pixel's middle lies: compare after moving by up to half a pixel."""
    kind = by_kind("Affine")
    fixed = A.Affine(
        translate_percent=(0.05, 0.05), scale=(1.1, 1.1), rotate=(8, 8), p=1, interpolation=cv2.INTER_LINEAR,
        border_mode=cv2.BORDER_CONSTANT, fill=0,
    )  # fmt: skip
    ours, golden = fixed(image=GOLDEN["picture"])["image"].astype(float), GOLDEN["shift_scale_rotate"].astype(float)
    errors = {}
    for dx, dy in itertools.product((-0.5, 0, 0.5), repeat=2):
        moved = cv2.warpAffine(ours, np.float32([[1, 0, dx], [0, 1, dy]]), ours.shape[1::-1])
        errors[dx, dy] = np.abs(moved - golden)[8:-8, 8:-8].mean()
    assert errors[0, 0] < 2
    assert min(errors.values()) > errors[0, 0] / 4  # it is not a larger shift
    assert (kind.scale["x"], kind.rotate) == ((0.8, 1.2), (-10, 10))


def test_every_transform_of_the_slides_runs():
    """A transform that never runs is silent: each one must be seen within some hundred draws."""
    pipeline = augment.train_transforms(96, seed=0, record=True)
    seen = set()
    for _ in range(300):
        seen |= {name for name, _ in pipeline(image=GOLDEN["picture"])["applied_transforms"]}
    assert seen >= {
        "ImageCompression", "GaussNoise", "GaussianBlur", "HorizontalFlip", "IsotropicResize", "PadIfNeeded",
        "RandomBrightnessContrast", "FancyPCA", "HueSaturationValue", "ToGray", "Affine",
    }  # fmt: skip


def test_probabilities_are_the_slides():
    pipeline = augment.train_transforms(96, seed=1, record=True)
    counts: dict[str, int] = {}
    for _ in range(2000):
        for name, _ in pipeline(image=GOLDEN["picture"][:24, :32])["applied_transforms"]:
            counts[name] = counts.get(name, 0) + 1
    expected = {"ImageCompression": 0.5, "GaussNoise": 0.1, "GaussianBlur": 0.05, "ToGray": 0.2, "Affine": 0.5}
    expected |= {name: 0.7 / 3 for name in ("RandomBrightnessContrast", "FancyPCA", "HueSaturationValue")}
    for name, p in expected.items():
        assert counts[name] / 2000 == pytest.approx(p, abs=4 * (p * (1 - p) / 2000) ** 0.5), name


def test_an_argument_that_the_library_does_not_know_is_an_error():
    with pytest.warns(UserWarning, match="var_limit"):
        A.GaussNoise(var_limit=(10, 50))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ours does not depend on what the caller lets pass
        augment.slides_transforms(64)


def test_the_three_resizes_differ_and_upstreams_accident_is_a_switch():
    picture = GOLDEN["picture"]
    assert tuple(augment.AUGMENTATIONS) == AUGMENTATION_NAMES
    for as_upstream, expected in ((False, set(augment.RESIZES)), (True, {augment.RESIZES[0]})):
        steps = augment.slides_transforms(96, as_upstream)
        choice = next(step for step in steps if isinstance(step, A.OneOf))
        assert {(t.shrink, t.enlarge) for t in choice.transforms} == expected
    made = [isotropic_resize(picture, 37, *kind) for kind in augment.RESIZES]
    assert not np.array_equal(made[0], made[2])


def test_a_mask_goes_the_way_of_its_picture(crop):
    """A white square in picture and mask: wherever the pipeline puts it, it is the same place."""
    mask = np.zeros(crop.shape[:2], np.uint8)
    mask[60:120, 50:100] = 255
    pipeline = augment.train_transforms(112, seed=3)
    plain = np.zeros_like(crop)
    plain[mask > 0] = 255
    for _ in range(20):
        result = pipeline(image=plain, mask=mask)
        bright = result["image"].mean(0).numpy() > 0.5
        assert (bright == (np.asarray(result["mask"]) > 127)).mean() > 0.97


@pytest.mark.parametrize("seed", range(8))
def test_covering_a_landmark_covers_that_landmark(crop, seed):
    keep = augment.cover_landmark(crop.shape[:2], LANDMARKS_HERE, np.random.default_rng(seed))
    hidden = [keep[int(y), int(x)] == 0 for x, y in LANDMARKS_HERE]
    assert hidden in ([1, 1, 0, 0, 0], [0, 0, 0, 1, 1], [0, 0, 1, 0, 0], [0] * 5)
    assert (keep == 0).mean() < 0.5


def test_a_grid_mask_is_a_regular_grid(crop):
    """Every hole has the same place in its period, and the share of holes is cover squared; the mask goes along."""
    white = np.full((400, 300, 3), 255, np.uint8)
    for seed in range(5):
        grid = A.Compose([augment.GridMask(period=(0.2, 0.2), cover=0.5, p=1)], seed=seed)
        result = grid(image=white, mask=white[..., 0])
        keep = result["image"][..., 0]
        assert np.array_equal(keep, result["mask"])
        assert np.array_equal(keep[60:], keep[:-60])
        assert np.array_equal(keep[:, 60:], keep[:, :-60])
        assert (keep == 0).mean() == pytest.approx(0.25, abs=0.03)


def test_half_a_hull_is_about_half_of_the_face(crop):
    shares = {
        float(
            (augment.cover_half_hull(crop.shape[:2], LANDMARKS_HERE, np.random.default_rng(seed)) == 0).mean().round(3)
        )
        for seed in range(20)
    }
    assert len(shares) == 4
    assert max(shares) < 0.35
    assert min(shares) > 0.05


def test_some_of_what_is_fake_stays_visible():
    mask = np.zeros((100, 100), np.uint8)
    mask[70:95, 5:30] = 200
    for seed in range(40):
        keep = augment.cover_part((100, 100), mask, np.random.default_rng(seed))
        assert 0.45 < keep.mean() < 0.55
        assert np.count_nonzero((mask > 100) & (keep > 0)) > 20
    reals = {augment.cover_part((100, 100), None, np.random.default_rng(seed)).tobytes() for seed in range(60)}
    assert len(reals) == 6
    tiny = np.zeros((100, 100), np.uint8)
    tiny[3, 3] = 255
    assert augment.cover_part((100, 100), tiny, np.random.default_rng(0)).all()


def test_the_hard_set_runs_and_needs_landmarks(crop):
    pipeline = augment.train_transforms(112, seed=0, hard=True, record=True)
    given = {"mask": np.zeros(crop.shape[:2], np.uint8), "landmarks": LANDMARKS_HERE, "label": 0.0}
    names = [name for _ in range(60) for name, _ in pipeline(image=crop, **given)["applied_transforms"]]
    assert names.count("BlackOut") == 60
    assert names.count("GridMask") > 0
    with pytest.raises(ValueError, match="landmarks"):
        pipeline(image=crop)


def test_the_same_seed_gives_the_same_pictures(crop):
    given = {"mask": np.zeros(crop.shape[:2], np.uint8), "landmarks": LANDMARKS_HERE, "label": 0.0}
    first, second = (augment.train_transforms(64, seed=5, hard=True) for _ in range(2))
    for _ in range(10):
        assert (first(image=crop, **given)["image"] == second(image=crop, **given)["image"]).all()
