"""Ours, on albumentations 2.0.8, against what upstream's version, 1.0.0, did.

What a transform draws is held against the slides' numbers, what it does with a draw against the
pictures of golden/albumentations_1_0_0.py.
"""

import itertools
from collections import Counter
from pathlib import Path
from typing import get_args

import albumentations as A
import cv2
import numpy as np
import pytest
from scipy.stats import kstest

from dfdc_lib import augment
from dfdc_lib.blending import hull_mask
from dfdc_lib.config import BLACKOUTS, Augmentation
from dfdc_lib.rehearsal.people import LANDMARKS, portrait

GOLDEN = np.load(Path(__file__).parent / "golden" / "albumentations_1_0_0.npz")
PICTURE = GOLDEN["picture"]
AREA, LINEAR, CUBIC = cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC
COLOURS = ("RandomBrightnessContrast", "FancyPCA", "HueSaturationValue")
LAST = ("Normalize", "ToTensorV2")
SLIDES = {"ImageCompression": 0.5, "GaussNoise": 0.1, "GaussianBlur": 0.05, "HorizontalFlip": 0.5}
SLIDES |= {"IsotropicResize": 1, "PadIfNeeded": 1} | dict.fromkeys(COLOURS, 0.7 / 3)
SLIDES |= {"ToGray": 0.2, "Affine": 0.5} | dict.fromkeys(LAST, 1)  # in order: how often each runs
# A face that looks straight ahead, its mouth as wide as its eyes are apart, and its picture's size.
SHAPE = (100, 110)
STRAIGHT = np.float32([(38, 38), (62, 38), (50, 53), (38, 66), (62, 66)])


def record(transforms: list, number: int, **given) -> list[dict]:
    """What was drawn, transform by transform, in each of so many runs."""
    pipeline = A.Compose(transforms, seed=1, save_applied_params=True)
    return [dict(pipeline(**given)["applied_transforms"]) for _ in range(number)]


@pytest.fixture(scope="module")
def drawn():
    return record(augment.AUGMENTATIONS["slides"](24).transforms, 4000, image=PICTURE[:12, :16])


def values(drawn: list[dict], name: str, key: str) -> np.ndarray:
    return np.array([run[name][key] for run in drawn if name in run])


def assert_even(drawn, low: float, high: float) -> None:
    """All from low to high, near both ends, and nowhere denser."""
    share = (np.ravel(drawn) - low) / (high - low)
    assert -0.002 < share.min() < 0.02  # a pixel may be added where they are counted
    assert 0.98 < share.max() < 1.002
    assert kstest(share, "uniform").pvalue > 1e-3


def assert_share(count: int, number: int, p: float) -> None:
    assert count / number == pytest.approx(p, abs=3 * (p * (1 - p) / number) ** 0.5)


def flatten(transforms: list) -> list:
    return [t for step in transforms for t in getattr(step, "transforms", [step])]


def by_kind(name: str):
    """The slides' transform of this class, which always runs."""
    kind = next(t for t in flatten(augment.slides_transforms(96)) if type(t).__name__ == name)
    kind.p = 1
    kind.set_random_seed(0)
    return kind


# What a draw does

SAME = {  # golden picture → transform, what it drew, levels that two builds of a library may differ
    "compression_60": ("ImageCompression", {"quality": 60, "image_type": ".jpg"}, 2),
    "compression_100": ("ImageCompression", {"quality": 100, "image_type": ".jpg"}, 2),
    "gray": ("ToGray", {}, 1),
    "flip": ("HorizontalFlip", {}, 0),
    "brightness": ("RandomBrightnessContrast", {"alpha": 0.9, "beta": 0.2 * 255}, 1),
    "hue": ("HueSaturationValue", {"hue_shift": 12, "sat_shift": -25, "val_shift": 15}, 1),
    "blur": ("GaussianBlur", None, 1),  # None: it draws what it does
    "pad": ("PadIfNeeded", None, 0),
}


@pytest.mark.parametrize("golden", SAME)
def test_a_draw_does_the_same(golden):
    name, params, levels = SAME[golden]
    kind = by_kind(name)
    ours = kind(image=PICTURE)["image"] if params is None else kind.apply(PICTURE, **params)
    assert np.abs(ours.astype(int) - GOLDEN[golden]).max() <= levels


def test_fancy_pca_is_the_same():
    """To the level. A direction's sign is the library's choice, and it turns a channel's shift."""
    _, directions = np.linalg.eigh(np.cov(PICTURE.reshape(-1, 3).T / 255))
    turned = np.abs(np.abs(directions) - np.abs(directions[::-1, ::-1].T))
    assert turned.max() > 0.3  # rows are not as columns
    signs = np.sign((directions * GOLDEN["directions"]).sum(axis=0))[::-1]  # strongest first
    for alpha in (-0.1, 0.1, 0.3):
        pictures = [GOLDEN[f"fancy_pca_{sign * alpha:.1f}"] for sign in signs]
        golden = np.dstack([picture[..., i] for i, picture in enumerate(pictures)])
        assert np.array_equal(by_kind("FancyPCA").apply(PICTURE, strength=alpha), golden)


def test_noise_is_as_strong_as_it_was_and_another_for_each_pixel_and_channel():
    noise, flat = by_kind("GaussNoise"), np.full((64, 64, 3), 128, np.uint8)
    ours = [noise(image=flat)["image"].astype(float).std() for _ in range(400)]
    spread = np.percentile([ours, GOLDEN["noise_spread"]], (5, 50, 95), axis=1)
    assert spread[:, 0] == pytest.approx(spread[:, 1], rel=0.1)
    one, other = (noise.apply(flat, spread=6, seed=n).astype(int) for n in (0, 1))
    each = np.corrcoef([*one.reshape(-1, 3).T, other[..., 0].ravel()])
    assert each == pytest.approx(np.eye(4), abs=0.06)
    assert one.std(axis=(0, 1)) == pytest.approx([6] * 3, rel=0.05)
    assert one.mean() == pytest.approx(127.5, abs=0.2)  # cut to whole levels, as it was
    for level in (0, 255):  # where it leaves the range, it stays at its end
        assert abs(noise.apply(np.full_like(flat, level), spread=6, seed=0).mean() - level) < 4


def test_shift_scale_rotate_differs_by_half_a_pixel_at_most():
    """The same map but for where a pixel's middle lies."""
    kind = by_kind("Affine")
    kind.rotate, kind.scale = (8, 8), {"x": (1.1, 1.1), "y": (1.1, 1.1)}
    kind.translate_percent = {"x": (0.05, 0.05), "y": (-0.1, -0.1)}
    assert kind.interpolation == LINEAR
    golden, ours = GOLDEN["shift_scale_rotate"].astype(float), kind(image=PICTURE)["image"]
    errors = {}
    for dx, dy in itertools.product((-0.5, 0, 0.5), repeat=2):
        move = np.float32([[1, 0, dx], [0, 1, dy]])
        moved = cv2.warpAffine(ours.astype(float), move, ours.shape[1::-1])
        errors[dx, dy] = np.abs(moved - golden)[8:-8, 8:-8].mean()
    assert errors[0, 0] < 2
    assert min(errors.values()) > errors[0, 0] / 4  # it is not a larger shift
    outside = cv2.erode((golden.max(axis=2) == 0).astype(np.uint8), np.ones((5, 5))) > 0
    assert outside.sum() > 50
    assert not ours[outside].any()  # black where nothing was


@pytest.mark.parametrize("name", ["slides", *BLACKOUTS])
def test_the_three_resizes_are_each_as_likely_and_upstreams_accident_is_a_switch(name):
    """Upstream's takes the first of three, always. The larger picture shrinks, the other grows."""
    transforms = augment.AUGMENTATIONS[name](96).transforms
    resize = next(step for step in transforms if isinstance(step, A.OneOf))
    assert resize.transforms_ps == pytest.approx([1 / 3] * 3)
    first, larger = (AREA, CUBIC), np.kron(PICTURE, np.ones((3, 3, 1), np.uint8))
    others = [first] * 2 if name == "upstream" else [(AREA, LINEAR), (LINEAR, LINEAR)]
    larger[::2] //= 2
    for kind, hows in zip(resize.transforms, [first, *others], strict=True):
        for picture, how in zip((larger, PICTURE), hows, strict=True):
            expected = cv2.resize(picture, (96, 72), interpolation=how)
            assert np.array_equal(kind(image=picture)["image"], expected)


@pytest.mark.parametrize(("size", "by", "mask_by"), [(48, AREA, AREA), (160, CUBIC, LINEAR)])
def test_outside_training_a_picture_is_resized_centred_on_black_and_normalised(size, by, mask_by):
    mask, height = PICTURE[..., 0], size * 60 // 80
    made = augment.valid_transforms(size)(image=PICTURE, mask=mask)
    assert set(made) == {"image", "mask"}  # what was done is told only where it is asked for
    edge = [((size - height) // 2, size - height - (size - height) // 2), (0, 0), (0, 0)]
    padded = np.pad(cv2.resize(PICTURE, (size, height), interpolation=by), edge) / 255
    normal = (padded - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    assert made["image"].permute(1, 2, 0).numpy() == pytest.approx(normal, abs=1e-5)
    resized = cv2.resize(mask, (size, height), interpolation=mask_by)
    assert np.array_equal(made["mask"], np.pad(resized, edge[:2]))


# What is drawn, and how often


def test_the_pipelines_are_the_slides_alone_or_behind_covers_that_need_landmarks():
    """Ours has a grid of holes in the hard set, upstream's code none."""
    covers = {"slides": [], "hard": ["BlackOut", "GridMask"], "upstream": ["BlackOut"]}
    assert tuple(augment.AUGMENTATIONS) == get_args(Augmentation)
    for name, first in covers.items():
        kinds = [type(t).__name__ for t in flatten(augment.AUGMENTATIONS[name](96).transforms)]
        assert list(dict.fromkeys(kinds)) == first + list(SLIDES)
    made = augment.train_transforms(96, record=True)(image=PICTURE)
    assert "Normalize" in dict(made["applied_transforms"])
    with pytest.raises(ValueError, match="landmarks"):
        augment.train_transforms(112, hard=True)(image=PICTURE)


def test_each_transform_runs_as_often_as_the_slides_say(drawn):
    for name, p in SLIDES.items():
        assert_share(sum(name in run for run in drawn), len(drawn), p)
    assert all(len(set(COLOURS) & set(run)) <= 1 for run in drawn)
    assert all(list(run) == [name for name in SLIDES if name in run] for run in drawn)


RANGES = {
    ("ImageCompression", "quality"): (59.5, 100.5),  # whole numbers, 60 to 100
    ("RandomBrightnessContrast", "alpha"): (0.8, 1.2),
    ("RandomBrightnessContrast", "beta"): (-0.2 * 255, 0.2 * 255),
    ("HueSaturationValue", "hue_shift"): (-20, 20),
    ("HueSaturationValue", "sat_shift"): (-30, 30),
    ("HueSaturationValue", "val_shift"): (-20, 20),
}


def test_each_transform_draws_from_the_slides_range(drawn):
    for name, reach in RANGES.items():
        assert_even(values(drawn, *name), *reach)
    assert set(values(drawn, "ImageCompression", "image_type")) == {".jpg"}
    assert_even(values(drawn, "GaussNoise", "spread") ** 2, 10, 50)
    seeds = values(drawn, "GaussNoise", "seed")
    assert len(set(seeds)) == len(seeds)
    for kernel in values(drawn, "GaussianBlur", "kernel"):
        assert kernel == pytest.approx(np.array([0.25, 0.5, 0.25]), abs=1e-3)
    strength = values(drawn, "FancyPCA", "strength") / 0.1
    assert kstest(strength, "norm").pvalue > 1e-3
    assert strength.std() == pytest.approx(1, abs=0.08)


def test_shift_scale_and_rotation_are_drawn_evenly():
    """On a picture so large that whole pixels, to which 2.x cuts, do not matter."""
    affine, shape = by_kind("Affine"), {"shape": (10_000, 20_000)}
    drawn = [affine.get_params_dependent_on_data(shape, {})["matrix"] for _ in range(2000)]
    matrices, centre = np.array(drawn), np.array([19_999 / 2, 9_999 / 2, 1])
    a, b = matrices[:, 0, :2].T
    assert matrices[:, 1, :2] == pytest.approx(np.stack([-b, a], axis=1))  # circles stay circles
    assert_even(np.hypot(a, b), 0.8, 1.2)
    assert_even(np.degrees(np.arctan2(b, a)), -10, 10)
    x, y = ((matrices @ centre - centre)[:, :2] / (20_000, 10_000)).T
    assert abs(np.corrcoef(x, y)[0, 1]) < 0.1
    assert_even(x, -0.1, 0.1)
    assert_even(y, -0.1, 0.1)


def test_the_demos_transforms_always_run_but_for_the_flip():
    drawn = record(augment.AUGMENTATIONS["demo"](24).transforms, 1000, image=PICTURE[:12, :16])
    assert_share(sum("HorizontalFlip" in run for run in drawn), 1000, 0.5)
    always = ["IsotropicResize", "PadIfNeeded", "Affine", "RandomGamma", "RGBShift", COLOURS[0]]
    assert all([n for n in run if n != "HorizontalFlip"] == [*always, *LAST] for run in drawn)


def test_a_mask_and_a_fake_go_the_way_of_their_picture():
    """A white square in picture and mask: wherever the pipeline puts it, it is the same place."""
    mask, pipeline = np.zeros((210, 170), np.uint8), augment.train_transforms(112, seed=3)
    mask[60:120, 50:100] = 255
    for _ in range(20):
        result = pipeline(image=np.dstack([mask] * 3), fake=np.dstack([mask] * 3), mask=mask)
        bright = result["image"].mean(0).numpy() > 0.5
        assert (bright == (np.asarray(result["mask"]) > 127)).mean() > 0.97
        assert (result["image"] == result["fake"]).all()


@pytest.mark.parametrize("name", augment.AUGMENTATIONS)
def test_the_same_seed_gives_the_same_pictures(name):
    given = {"image": PICTURE, "mask": PICTURE[..., 0], "landmarks": STRAIGHT / 2, "label": 0.0}
    makers = [augment.AUGMENTATIONS[name](64, seed=seed) for seed in (5, 5, 6)]
    one, same, other = ([make(**given)["image"] for _ in range(10)] for make in makers)
    assert all((a == b).all() for a, b in zip(one, same, strict=True))
    differ = any((a != b).any() for a, b in zip(one, other, strict=True))
    assert differ == (name != "none")


# The hard set. What is kept: all, or half of the picture, or two opposite quarters.
ROWS, COLUMNS = np.indices(SHAPE)
UPPER, LEFT, ALL = SHAPE[0] // 2 > ROWS, SHAPE[1] // 2 > COLUMNS, np.ones(SHAPE, np.uint8)
PARTS = {(ALL * k).tobytes() for half in (UPPER, LEFT, UPPER == LEFT) for k in (half, ~half)}


def draw_kept(cover, number: int, *given) -> Counter:
    """How often each part of the picture was kept, by the bytes of its mask."""
    rng = np.random.default_rng(0)
    return Counter(cover(*given, rng).tobytes() for _ in range(number))


def name_part(keep: np.ndarray) -> str:
    """Which of the five landmarks a bar covers, in words."""
    parts = {(1, 1, 0, 0, 0): "eyes", (0, 0, 1, 0, 0): "nose", (0, 0, 0, 1, 1): "mouth"}
    hidden = tuple(int(keep[y, x] == 0) for x, y in STRAIGHT.astype(int))
    return (parts | {(0,) * 5: "nothing"})[hidden]


def test_parts_are_covered_as_often_as_upstream_does():
    known = dict.fromkeys(draw_kept(augment.cover_half_hull, 60, SHAPE, STRAIGHT), "half face")
    known |= dict.fromkeys(PARTS, "half picture")
    assert len(known) == 10
    transforms, found = augment.AUGMENTATIONS["hard"](64).transforms[:2], Counter()
    covers = A.Compose(transforms, seed=1, save_applied_params=True)
    given = {"image": np.full((*SHAPE, 3), 200, np.uint8), "mask": np.full(SHAPE, 200, np.uint8)}
    for _ in range(8000):
        made = covers(**given, landmarks=STRAIGHT, label=1.0)
        run = dict(made["applied_transforms"])
        keep = run["BlackOut"]["keep"]
        found[known.get(keep.tobytes()) or name_part(keep)] += 1
        keep = keep * run["GridMask"]["keep"] if "GridMask" in run else keep
        found["grid"] += "GridMask" in run
        assert np.array_equal(made["mask"], 200 * keep)
        assert np.array_equal(made["image"], np.dstack([200 * keep] * 3))
    expected = {"eyes": 0.7 / 2, "mouth": 0.7 / 4, "nose": 0.7 / 8, "half face": 0.3 * 0.2}
    expected |= {"half picture": 0.3 * 0.8 * 0.1, "grid": 0.1, "nothing": 0.7 / 8 + 0.3 * 0.8 * 0.9}
    assert set(found) == set(expected)
    for name, p in expected.items():
        assert_share(found[name], 8000, p)


def test_a_bar_runs_from_landmark_to_landmark_as_thick_as_drawn():
    """Its ends are round: by as much as it is thick, it is longer than its landmarks are apart."""
    rng, face, thickness = np.random.default_rng(0), 8 * STRAIGHT, []
    ends = {"eyes": face[:2], "mouth": face[3:], "nose": (face[:2].mean(axis=0), face[2])}
    for _ in range(300):
        keep = augment.cover_landmark((800, 800), face, rng)
        if keep.all():
            continue
        start, end = ends[name_part(keep[::8, ::8])]
        middle, sides, _ = cv2.minAreaRect(np.argwhere(keep.T == 0).astype(np.float32))
        assert middle == pytest.approx((start + end) / 2, abs=1)
        assert max(sides) - min(sides) == pytest.approx(np.hypot(*(end - start)), abs=2)
        thickness.append(min(sides) / np.hypot(*(face[1] - face[0])))
    assert_even(thickness, 0.35, 0.7)
    together = np.full((5, 2), 10, np.float32)  # in a face too small: no error
    assert augment.cover_landmark((20, 20), together, np.random.default_rng(0)).sum() == 399


@pytest.mark.parametrize("name", LANDMARKS)
def test_half_a_face_is_its_left_right_upper_or_lower_half(name):
    landmarks, shape = np.array(LANDMARKS[name], np.float32), portrait(name).shape[:2]
    drawn = draw_kept(augment.cover_half_hull, 400, shape, landmarks)
    face = 1 - np.minimum.reduce([np.frombuffer(k, np.uint8).reshape(shape) for k in drawn])
    outline = hull_mask(landmarks, *shape, feather=0) > 0.5  # from brows to chin, as dlib's
    assert face.sum() / outline.sum() == pytest.approx(1, abs=0.1)
    assert (face & outline).sum() / (face | outline).sum() > 0.75
    (x, y), (rows, columns) = landmarks.mean(axis=0).round(), np.indices(shape)
    for half in (columns < x, columns >= x, rows < y, rows >= y):
        assert_share(drawn[(1 - face * half).tobytes()], 400, 1 / 4)


def test_half_of_the_picture_or_two_opposite_quarters_but_some_of_what_is_fake_stays_visible():
    """More than 20 pixels that are brighter than half of the brightest; else nothing is covered."""
    twenty = np.zeros(SHAPE, np.uint8)
    twenty[70, 5:25] = 200  # in the lower left quarter
    more = twenty.copy()
    more[70, 25] = 200
    dim, bright = (more + level * ~LEFT for level in np.uint8([100, 101]))
    everything = {ALL.tobytes()}
    showing = {(ALL * k).tobytes() for k in (~UPPER, LEFT, UPPER != LEFT)}
    masks = (None, twenty, more, dim, bright)
    kept = [set(draw_kept(augment.cover_part, 80, SHAPE, mask)) for mask in masks]
    assert kept == [PARTS, everything, showing, showing, PARTS]
    given = {"image": np.zeros((*SHAPE, 3), np.uint8), "mask": more, "landmarks": STRAIGHT}
    for label, kept in ((1.0, showing), (0.0, PARTS)):  # a real picture has nothing to show
        runs = record([augment.BlackOut(p=1)], 3000, **given, label=label)
        assert {run["BlackOut"]["keep"].tobytes() for run in runs} & PARTS == kept


def test_a_grid_mask_is_a_regular_grid_of_squares():
    """Every hole has the same place in its period, which is a share of the shorter side."""
    white, periods, offsets = np.full((1200, 400, 3), 255, np.uint8), [], []
    for run in record([augment.GridMask(p=1)], 300, image=white):
        holes = run["GridMask"]["keep"] == 0
        assert np.array_equal(holes, np.outer(holes.any(axis=1), holes.any(axis=0)))
        for axis in (1, 0):
            steps = np.diff(holes.any(axis=axis).astype(int))
            starts, ends = np.flatnonzero(steps > 0), np.flatnonzero(steps < 0)
            if axis == 1:
                periods.append((starts[-1] - starts[0]) / (len(starts) - 1))
            assert np.diff(starts) == pytest.approx(periods[-1], abs=1.5)
            length = ends[ends > starts[0]][0] - starts[0]
            assert length == pytest.approx(0.4 * periods[-1], abs=1.5)
            offsets.append(starts[0] / periods[-1] % 1)
    assert_even(np.divide(periods, 400), 0.15, 0.5)
    assert_even(offsets, 0, 1)
