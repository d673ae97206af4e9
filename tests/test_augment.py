"""Ours, on albumentations 2.0.8, against what upstream's version, 1.0.0, did: see golden/albumentations_1_0_0.py.

What a transform draws is held against the slides' numbers, what it does with a draw against the golden pictures.
"""

import itertools
import warnings
from collections import Counter
from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import pytest
from scipy.stats import kstest

from dfdc_lib import augment
from dfdc_lib.config import AUGMENTATION_NAMES, BLACKOUTS
from dfdc_lib.manipulate import hull_mask
from dfdc_lib.sample import LANDMARKS, portrait

GOLDEN = np.load(Path(__file__).parent / "golden" / "albumentations_1_0_0.npz")
PICTURE = GOLDEN["picture"]
LANDMARKS_HERE = np.array(LANDMARKS["hopper"], np.float32) - (180, 120)
AREA, LINEAR, CUBIC = cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC

SLIDES = {  # in their order: how often each runs
    "ImageCompression": 0.5, "GaussNoise": 0.1, "GaussianBlur": 0.05, "HorizontalFlip": 0.5, "IsotropicResize": 1,
    "PadIfNeeded": 1, "RandomBrightnessContrast": 0.7 / 3, "FancyPCA": 0.7 / 3, "HueSaturationValue": 0.7 / 3,
    "ToGray": 0.2, "Affine": 0.5, "Normalize": 1, "ToTensorV2": 1,
}  # fmt: skip
COLOURS = {"RandomBrightnessContrast", "FancyPCA", "HueSaturationValue"}
# A face that looks straight ahead, its mouth as wide as its eyes are apart, in a picture of this size.
SHAPE = (100, 100)
STRAIGHT = np.float32([(38, 38), (62, 38), (50, 53), (38, 66), (62, 66)])


@pytest.fixture
def crop():
    return np.ascontiguousarray(portrait("hopper")[120:330, 180:350])


def record(transforms: list, number: int, seed: int = 1, **given) -> list[dict]:
    """What was drawn, transform by transform, in each of so many runs."""
    pipeline = A.Compose(transforms, seed=seed, save_applied_params=True)
    return [dict(pipeline(**given)["applied_transforms"]) for _ in range(number)]


@pytest.fixture(scope="module")
def drawn():
    return record(augment.AUGMENTATIONS["slides"](24).transforms, 4000, image=PICTURE[:12, :16])


def values(drawn: list[dict], name: str, key: str) -> np.ndarray:
    return np.array([run[name][key] for run in drawn if name in run])


def assert_even(drawn, low: float, high: float) -> None:
    """All from low to high, near both ends (a pixel may be added where they are counted), and nowhere denser."""
    share = (np.ravel(drawn) - low) / (high - low)
    assert -0.002 < share.min() < 0.02
    assert 0.98 < share.max() < 1.002
    assert kstest(share, "uniform").pvalue > 1e-3


def assert_share(count: int, number: int, p: float) -> None:
    assert count / number == pytest.approx(p, abs=3 * (p * (1 - p) / number) ** 0.5)


def assert_affine(kind: A.Affine, shift: float, scale: float, degrees: float) -> None:
    """Its draws, on a picture so large that whole pixels (2.x cuts shifts to them) do not matter."""
    kind.set_random_seed(0)
    drawn = [kind.get_params_dependent_on_data({"shape": (10_000, 20_000)}, {}) for _ in range(2000)]
    centre = np.array([19_999 / 2, 9_999 / 2, 1])
    shifts = np.array([(d["matrix"] @ centre - centre)[:2] / (20_000, 10_000) for d in drawn])
    for axis, name in enumerate("xy"):
        assert_even(shifts[:, axis], -shift, shift)
        assert_even([d["scale"][name] for d in drawn], 1 - scale, 1 + scale)
    assert abs(np.corrcoef(shifts.T)[0, 1]) < 0.1
    assert_even([d["rotate"] for d in drawn], -degrees, degrees)
    sizes = [np.linalg.svd(d["matrix"][:2, :2], compute_uv=False) for d in drawn]  # the same in both directions
    assert np.array(sizes) == pytest.approx(np.array([[d["scale"]["x"]] * 2 for d in drawn]))
    turns = [np.degrees(np.arctan2(d["matrix"][0, 1], d["matrix"][0, 0])) for d in drawn]
    assert turns == pytest.approx([d["rotate"] for d in drawn])


def flatten(transforms: list) -> list:
    return [t for step in transforms for t in getattr(step, "transforms", [step])]


def by_kind(name: str):
    """The transform of this class in the slides' pipeline, inside a OneOf or not."""
    return next(t for t in flatten(augment.slides_transforms(96)) if type(t).__name__ == name)


def apply(name: str, **params) -> np.ndarray:
    return by_kind(name).apply(PICTURE, **params)


def largest_difference(ours: np.ndarray, golden: str) -> int:
    return int(np.abs(ours.astype(int) - GOLDEN[golden]).max())


# What a draw does


def test_compression_is_the_same():
    for quality in (60, 100):
        ours = apply("ImageCompression", quality=quality, image_type=".jpg")
        assert largest_difference(ours, f"compression_{quality}") <= 2  # two builds of libjpeg


def test_blur_gray_flip_and_padding_are_the_same():
    blur = by_kind("GaussianBlur")
    blur.p = 1
    assert largest_difference(blur(image=PICTURE)["image"], "blur") <= 1
    assert largest_difference(apply("ToGray"), "gray") <= 1
    assert largest_difference(apply("HorizontalFlip"), "flip") == 0
    padded = by_kind("PadIfNeeded")(image=PICTURE)["image"]
    assert largest_difference(padded, "pad") == 0


def test_colours_are_the_same():
    ours = apply("RandomBrightnessContrast", alpha=0.9, beta=0.2 * 255)
    assert largest_difference(ours, "brightness") <= 1
    ours = apply("HueSaturationValue", hue_shift=12, sat_shift=-25, val_shift=15)
    assert largest_difference(ours, "hue") <= 1


def test_fancy_pca_is_the_same():
    """To the level. A direction's sign is the linear algebra library's choice, and here it turns a channel's shift."""
    _, directions = np.linalg.eigh(np.cov(PICTURE.reshape(-1, 3).T / 255))
    assert np.abs(np.abs(directions) - np.abs(directions[::-1, ::-1].T)).max() > 0.3  # rows are not as columns
    signs = np.sign((directions * GOLDEN["directions"]).sum(axis=0))[::-1]  # strongest first
    for alpha in (-0.1, 0.1, 0.3):
        golden = [GOLDEN[f"fancy_pca_{sign * alpha:.1f}"][..., channel] for channel, sign in enumerate(signs)]
        assert np.array_equal(apply("FancyPCA", strength=alpha), np.dstack(golden))


def test_noise_is_as_strong_as_it_was_and_another_for_each_pixel_and_channel():
    noise = by_kind("GaussNoise")
    noise.p = 1
    noise.set_random_seed(0)
    flat = np.full((64, 64, 3), 128, np.uint8)
    spread = np.array([noise(image=flat)["image"].astype(float).std() for _ in range(400)])
    for share in (5, 50, 95):
        assert np.percentile(spread, share) == pytest.approx(np.percentile(GOLDEN["noise_spread"], share), rel=0.1)
    made = [noise.apply(flat, spread=6, seed=seed).astype(int) - 128 for seed in (0, 0, 1)]
    assert np.array_equal(made[0], made[1])
    assert np.corrcoef([*made[0].reshape(-1, 3).T, made[2][..., 0].ravel()]) == pytest.approx(np.eye(4), abs=0.06)
    assert made[0].std(axis=(0, 1)) == pytest.approx([6] * 3, rel=0.05)
    assert made[0].mean() == pytest.approx(-0.5, abs=0.2)  # cut to whole levels, as it was
    for level in (0, 255):  # where it leaves the range, it stays at its end
        ends = noise.apply(np.full_like(flat, level), spread=6, seed=0)
        assert level in (ends.min(), ends.max())
        assert abs(ends.mean() - level) < 4


def test_shift_scale_rotate_differs_by_half_a_pixel_at_most():
    """The same map but for where a pixel's middle lies: compare after moving by up to half a pixel."""
    kind = by_kind("Affine")
    kind.p, kind.rotate, kind.scale = 1, (8, 8), {"x": (1.1, 1.1), "y": (1.1, 1.1)}
    kind.translate_percent = {"x": (0.05, 0.05), "y": (-0.1, -0.1)}
    assert kind.interpolation == LINEAR
    ours, golden = kind(image=PICTURE)["image"].astype(float), GOLDEN["shift_scale_rotate"].astype(float)
    errors = {}
    for dx, dy in itertools.product((-0.5, 0, 0.5), repeat=2):
        moved = cv2.warpAffine(ours, np.float32([[1, 0, dx], [0, 1, dy]]), ours.shape[1::-1])
        errors[dx, dy] = np.abs(moved - golden)[8:-8, 8:-8].mean()
    assert errors[0, 0] < 2
    assert min(errors.values()) > errors[0, 0] / 4  # it is not a larger shift
    outside = cv2.erode((golden.max(axis=2) == 0).astype(np.uint8), np.ones((5, 5))) > 0
    assert outside.sum() > 50
    assert not ours[outside].any()  # black where nothing was


def test_the_three_resizes_are_each_as_likely_and_upstreams_accident_is_a_switch():
    """The pictures say which it was: one must grow, the other shrink. Upstream's code takes the first, always."""
    small, large = PICTURE, np.kron(PICTURE, np.ones((3, 3, 1), np.uint8))
    large[::2] //= 2
    shrunk = {how: cv2.resize(large, (96, 72), interpolation=how) for how in (AREA, LINEAR)}
    grown = {how: cv2.resize(small, (96, 72), interpolation=how) for how in (CUBIC, LINEAR)}
    kinds = [(AREA, CUBIC), (AREA, LINEAR), (LINEAR, LINEAR)]
    pipelines = {name: augment.AUGMENTATIONS[name](96).transforms for name in ("slides", *BLACKOUTS)}
    for name, transforms in (pipelines | {"alone": augment.slides_transforms(96)}).items():
        expected = [1, 0, 0] if name == "upstream" else [1 / 3] * 3
        steps = [t for t in transforms if isinstance(t, A.OneOf)]
        resize = A.Compose(steps[:1], additional_targets={"fake": "image"}, seed=1, is_check_shapes=False)
        found = Counter()
        for _ in range(500):
            made = resize(image=large, fake=small)
            found[
                next(how for how, picture in shrunk.items() if np.array_equal(made["image"], picture)),
                next(how for how, picture in grown.items() if np.array_equal(made["fake"], picture)),
            ] += 1
        assert set(found) <= set(kinds)
        for kind, p in zip(kinds, expected, strict=True):
            assert_share(found[kind], 500, p)


def test_outside_training_a_picture_is_resized_centred_on_black_and_normalised():
    mask = PICTURE[..., 0]
    for size, picture_by, mask_by in ((48, AREA, AREA), (160, CUBIC, LINEAR)):
        made = augment.valid_transforms(size)(image=PICTURE, mask=mask)
        assert set(made) == {"image", "mask"}  # what was done is told only where it is asked for
        height = size * 60 // 80
        top = (size - height) // 2
        expected, expected_mask = np.zeros((size, size, 3), np.uint8), np.zeros((size, size), np.uint8)
        expected[top : top + height] = cv2.resize(PICTURE, (size, height), interpolation=picture_by)
        expected_mask[top : top + height] = cv2.resize(mask, (size, height), interpolation=mask_by)
        normal = (expected / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        assert made["image"].permute(1, 2, 0).numpy() == pytest.approx(normal, abs=1e-5)
        assert np.array_equal(made["mask"], expected_mask)


# What is drawn, and how often


def test_the_pipelines_are_the_slides_alone_or_behind_covers():
    """Ours has a grid of holes in the hard set, upstream's code none."""
    covers = {"slides": [], "hard": ["BlackOut", "GridMask"], "upstream": ["BlackOut"]}
    assert tuple(augment.AUGMENTATIONS) == AUGMENTATION_NAMES
    for name, first in covers.items():
        kinds = [type(t).__name__ for t in flatten(augment.AUGMENTATIONS[name](96).transforms)]
        assert list(dict.fromkeys(kinds)) == first + list(SLIDES)
        made = augment.AUGMENTATIONS[name](96, seed=0, record=True)
        given = {"mask": PICTURE[..., 0], "landmarks": LANDMARKS_HERE, "label": 0.0} if first else {}
        runs = [[kind for kind, _ in made(image=PICTURE, **given)["applied_transforms"]] for _ in range(60)]
        assert {kind for run in runs for kind in run} >= set(first)


def test_each_transform_runs_as_often_as_the_slides_say(drawn):
    for name, p in SLIDES.items():
        assert_share(sum(name in run for run in drawn), len(drawn), p)
    assert all(len(COLOURS & set(run)) <= 1 for run in drawn)
    order = list(SLIDES)
    assert all([order.index(name) for name in run] == sorted(order.index(name) for name in run) for run in drawn)


def test_each_transform_draws_from_the_slides_range(drawn):
    assert_even(values(drawn, "ImageCompression", "quality"), 59.5, 100.5)  # whole numbers, 60 to 100
    assert {run["ImageCompression"]["image_type"] for run in drawn if "ImageCompression" in run} == {".jpg"}
    assert_even(values(drawn, "GaussNoise", "spread") ** 2, 10, 50)
    seeds = values(drawn, "GaussNoise", "seed")
    assert len(set(seeds)) == len(seeds)
    for kernel in values(drawn, "GaussianBlur", "kernel"):
        assert kernel == pytest.approx(np.array([0.25, 0.5, 0.25]), abs=1e-3)
    assert_even(values(drawn, "RandomBrightnessContrast", "alpha"), 0.8, 1.2)
    assert_even(values(drawn, "RandomBrightnessContrast", "beta"), -0.2 * 255, 0.2 * 255)
    assert_even(values(drawn, "HueSaturationValue", "hue_shift"), -20, 20)
    assert_even(values(drawn, "HueSaturationValue", "sat_shift"), -30, 30)
    assert_even(values(drawn, "HueSaturationValue", "val_shift"), -20, 20)
    strength = values(drawn, "FancyPCA", "strength") / 0.1
    assert kstest(strength, "norm").pvalue > 1e-3
    assert strength.std() == pytest.approx(1, abs=0.08)
    assert_affine(by_kind("Affine"), shift=0.1, scale=0.2, degrees=10)


def test_the_demos_transforms_always_run_but_for_the_flip():
    transforms = augment.AUGMENTATIONS["demo"](24).transforms
    drawn = record(transforms, 1000, image=PICTURE[:12, :16])
    always = ["IsotropicResize", "PadIfNeeded", "Affine", "RandomGamma", "RGBShift", "RandomBrightnessContrast"]
    assert all([name for name in run if name != "HorizontalFlip"] == always + list(SLIDES)[-2:] for run in drawn)
    assert_share(sum("HorizontalFlip" in run for run in drawn), 1000, 0.5)
    assert_even(values(drawn, "RandomGamma", "gamma"), 0.6, 1.6)
    assert_even(values(drawn, "RGBShift", "noise_map"), -25, 25)
    assert_even(values(drawn, "RandomBrightnessContrast", "alpha"), 0.7, 1.3)
    assert_even(values(drawn, "RandomBrightnessContrast", "beta"), -0.2 * 255, 0.2 * 255)
    kinds = {type(t).__name__: t for t in transforms}
    assert (kinds["IsotropicResize"].shrink, kinds["IsotropicResize"].enlarge) == (AREA, CUBIC)
    assert_affine(kinds["Affine"], shift=0.06, scale=0.15, degrees=10)


def test_an_argument_that_the_library_does_not_know_is_an_error():
    with pytest.warns(UserWarning, match="var_limit"):
        A.GaussNoise(var_limit=(10, 50))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ours does not depend on what the caller lets pass
        augment.slides_transforms(64)


def test_a_mask_and_a_fake_go_the_way_of_their_picture(crop):
    """A white square in picture and mask: wherever the pipeline puts it, it is the same place."""
    mask = np.zeros(crop.shape[:2], np.uint8)
    mask[60:120, 50:100] = 255
    pipeline = augment.train_transforms(112, seed=3)
    plain = np.zeros_like(crop)
    plain[mask > 0] = 255
    for _ in range(20):
        result = pipeline(image=plain, fake=plain, mask=mask)
        assert set(result) == {"image", "fake", "mask"}
        bright = result["image"].mean(0).numpy() > 0.5
        assert (bright == (np.asarray(result["mask"]) > 127)).mean() > 0.97
        assert (result["image"] == result["fake"]).all()


def test_the_same_seed_gives_the_same_pictures(crop):
    given = {"mask": np.zeros(crop.shape[:2], np.uint8), "landmarks": LANDMARKS_HERE, "label": 0.0}
    for name in augment.AUGMENTATIONS:
        first, second, other = (augment.AUGMENTATIONS[name](64, seed=seed) for seed in (5, 5, 6))
        more = given if name in BLACKOUTS else {}
        made = [[one(image=crop, **more)["image"] for _ in range(10)] for one in (first, second, other)]
        assert all((a == b).all() for a, b in zip(*made[:2], strict=True))
        assert any((a != b).any() for a, b in zip(*made[1:], strict=True))


# The hard set


def halves_and_quarters(height: int, width: int) -> list[np.ndarray]:
    y, x = np.mgrid[:height, :width]
    upper, left = y < height // 2, x < width // 2
    return [keep.astype(np.uint8) for half in (upper, left, upper == left) for keep in (half, ~half)]


def draw_halves(shape: tuple[int, int], landmarks: np.ndarray, number: int) -> Counter:
    """How often each half of the face was covered, by the bytes of what is covered."""
    rng = np.random.default_rng(0)
    return Counter((1 - augment.cover_half_hull(shape, landmarks, rng)).tobytes() for _ in range(number))


def name_part(keep: np.ndarray) -> str:
    """Which of the five landmarks a bar covers, in words."""
    hidden = tuple(int(keep[y, x] == 0) for x, y in STRAIGHT.astype(int))
    return {(1, 1, 0, 0, 0): "eyes", (0, 0, 1, 0, 0): "nose", (0, 0, 0, 1, 1): "mouth", (0,) * 5: "nothing"}[hidden]


def test_parts_are_covered_as_often_as_upstream_does():
    known = {(1 - np.frombuffer(half, np.uint8)).tobytes(): "half face" for half in draw_halves(SHAPE, STRAIGHT, 60)}
    known |= {keep.tobytes(): "half picture" for keep in halves_and_quarters(*SHAPE)}
    assert len(known) == 10
    covers = A.Compose(augment.AUGMENTATIONS["hard"](64).transforms[:2], seed=1, save_applied_params=True)
    picture, mask = np.full((*SHAPE, 3), 200, np.uint8), np.full(SHAPE, 200, np.uint8)
    found = Counter()
    for _ in range(8000):
        made = covers(image=picture, mask=mask, landmarks=STRAIGHT, label=1.0)
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
    """Counted in pixels, on a face whose eyes are 384 apart: along the bar's middle line and across it."""
    rng, face = np.random.default_rng(0), 16 * STRAIGHT.astype(int)
    (left, eyes), (right, _), (middle, tip), (_, mouth), _ = face.tolist()
    thickness = []
    for _ in range(300):
        keep = augment.cover_landmark((1600, 1600), face.astype(np.float32), rng)
        along, across = {
            "eyes": (keep[eyes, left:right], keep[:, middle]),
            "mouth": (keep[mouth, left:right], keep[:, middle]),
            "nose": (keep[eyes:tip, middle], keep[(eyes + tip) // 2]),
            "nothing": (1 - keep, None),
        }[name_part(keep[::16, ::16])]
        assert not along.any()
        if across is not None:
            thickness.append(np.count_nonzero(across == 0) / (right - left))
    assert_even(thickness, 0.35, 0.7)
    together = np.full((5, 2), 10, np.float32)  # in a face too small: no error
    assert np.count_nonzero(augment.cover_landmark((20, 20), together, np.random.default_rng(0)) == 0) == 1


@pytest.mark.parametrize("name", LANDMARKS)
def test_half_a_face_is_its_left_right_upper_or_lower_half(name):
    landmarks, shape = np.array(LANDMARKS[name], np.float32), portrait(name).shape[:2]
    drawn = draw_halves(shape, landmarks, 400)
    assert len(drawn) == 4
    for count in drawn.values():
        assert_share(count, 400, 1 / 4)
    halves = [np.frombuffer(half, np.uint8).reshape(shape) for half in drawn]
    face = np.maximum.reduce(halves)
    outline = hull_mask(landmarks, *shape, feather=0) > 0.5  # from brows to chin, as dlib's landmarks
    assert face.sum() / outline.sum() == pytest.approx(1, abs=0.1)
    assert (face & outline).sum() / (face | outline).sum() > 0.75
    middle, seen = landmarks.mean(axis=0), set()
    for half in halves:
        y, x = np.nonzero(half)
        sides = {"left": x.max() < middle[0] + 1, "right": x.min() > middle[0] - 1}
        sides |= {"upper": y.max() < middle[1] + 1, "lower": y.min() > middle[1] - 1}
        seen |= {side for side, here in sides.items() if here}
        assert sum(sides.values()) == 1
        assert any(np.array_equal(face - half, other) for other in halves)
    assert len(seen) == 4


def test_the_face_grows_to_where_its_landmarks_point():
    narrow = STRAIGHT.copy()
    narrow[3:, 0] = (49, 51)  # as wide as the eyes above, as narrow as the mouth below
    face = np.maximum.reduce([np.frombuffer(half, np.uint8) for half in draw_halves(SHAPE, narrow, 60)]).reshape(SHAPE)
    assert face[38].sum() > 24
    assert face[66].sum() < 20


@pytest.mark.parametrize("away", [(0, 45), (45, 0), (0, -60), (-60, 0)])
def test_half_a_face_that_leaves_the_picture_is_half_of_what_is_seen(away):
    halves = [np.frombuffer(half, np.uint8) for half in draw_halves(SHAPE, STRAIGHT - np.float32(away), 60)]
    face = np.maximum.reduce(halves)
    assert face.any()
    assert all(any(np.array_equal(face - half, other) for other in halves) for half in halves)


def test_half_of_the_picture_or_two_opposite_quarters_each_as_often():
    drawn = Counter(augment.cover_part((40, 50), None, np.random.default_rng(seed)).tobytes() for seed in range(1200))
    assert set(drawn) == {keep.tobytes() for keep in halves_and_quarters(40, 50)}
    for count in drawn.values():
        assert_share(count, 1200, 1 / 6)


def test_some_of_what_is_fake_stays_visible():
    """More than 20 pixels of what is brighter than half of the brightest; without, nothing is covered."""
    right = np.arange(100) >= 50
    twenty = np.zeros(SHAPE, np.uint8)
    twenty[70, 5:25] = 200  # in the lower left quarter
    more = twenty.copy()
    more[70, 25] = 200
    for mask, kinds in ((twenty, 0), (more, 3), (more + np.uint8(100) * right, 3), (more + np.uint8(101) * right, 6)):
        drawn = [augment.cover_part(SHAPE, mask, np.random.default_rng(seed)) for seed in range(80)]
        assert len({keep.tobytes() for keep in drawn if not keep.all()}) == kinds
        assert kinds != 3 or all(keep[70, 5:26].all() for keep in drawn)
    parts = {keep.tobytes() for keep in halves_and_quarters(*SHAPE)}
    for label, kinds in ((1.0, 3), (0.0, 6)):  # a real picture has nothing to show
        given = {"image": np.zeros((*SHAPE, 3), np.uint8), "mask": more, "landmarks": STRAIGHT, "label": label}
        drawn = {run["BlackOut"]["keep"].tobytes() for run in record([augment.BlackOut()], 3000, **given)}
        assert len(drawn & parts) == kinds


def test_a_grid_mask_is_a_regular_grid_of_squares():
    """Every hole has the same place in its period, which is a share of the shorter side; the mask goes along."""
    grid = next(t for t in augment.AUGMENTATIONS["hard"](64).transforms if isinstance(t, augment.GridMask))
    grid.p = 1
    grid.set_random_seed(0)
    white = np.full((1200, 400, 3), 255, np.uint8)
    periods, offsets = [], []
    for _ in range(300):
        result = grid(image=white, mask=white[..., 0])
        keep = result["mask"]
        assert np.array_equal(result["image"], np.dstack([keep] * 3))
        rows, columns = (keep == 0).any(axis=1), (keep == 0).any(axis=0)
        assert np.array_equal(keep == 0, np.outer(rows, columns))
        starts = np.flatnonzero(np.diff(rows.astype(int)) > 0)
        period = (starts[-1] - starts[0]) / (len(starts) - 1)
        assert np.ptp(np.diff(starts)) <= 1
        across = np.flatnonzero(np.diff(columns.astype(int)) > 0)
        assert np.diff(across) == pytest.approx(period, abs=1.5)
        ends = np.flatnonzero(np.diff(rows.astype(int)) < 0)
        assert ends[ends > starts[0]][0] - starts[0] == pytest.approx(0.4 * period, abs=1.5)
        ends = np.flatnonzero(np.diff(columns.astype(int)) < 0)
        assert ends[ends > across[0]][0] - across[0] == pytest.approx(0.4 * period, abs=1.5)
        periods.append(period / 400)
        offsets += [starts[0] / period % 1, across[0] / period % 1]
    assert_even(periods, 0.15, 0.5)
    assert_even(offsets, 0, 1)


def test_the_hard_set_needs_landmarks(crop):
    with pytest.raises(ValueError, match="landmarks"):
        augment.train_transforms(112, hard=True)(image=crop)
