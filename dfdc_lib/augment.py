"""Augmentation: what the test set may have done to a picture. Albumentations 2.0.8, set to behave as 1.0.0 did.

Every pipeline takes a crop (H, W, 3) uint8 RGB of any size and returns a float32 tensor (3, size, size), normalised
with ImageNet's mean and spread. A second picture passed as `fake` is augmented exactly as the first, and a `mask`
(H, W) uint8 goes through the same geometry. The hard set also needs `landmarks` (5, 2) in pixels of the crop and the
`label`. Notebook 05 shows each transform.
"""

import warnings
from functools import partial

import albumentations as A
import cv2
import numpy as np
from albumentations.pytorch import ToTensorV2

from dfdc_lib.geometry import isotropic_resize

BLUR_SIGMA = (2 * np.log(2)) ** -0.5  # gives OpenCV's own 3 x 3 kernel, with weights 1/4, 1/2, 1/4
# How the three variants of the slides resize: (when shrinking, when enlarging).
RESIZES = [
    (cv2.INTER_AREA, cv2.INTER_CUBIC),
    (cv2.INTER_AREA, cv2.INTER_LINEAR),
    (cv2.INTER_LINEAR, cv2.INTER_LINEAR),
]


class IsotropicResize(A.DualTransform):
    """Resize so that the longer side is `size`, with one interpolation for shrinking and one for enlarging."""

    def __init__(self, size: int, shrink: int = cv2.INTER_AREA, enlarge: int = cv2.INTER_CUBIC, p: float = 1.0):
        super().__init__(p=p)
        self.size, self.shrink, self.enlarge = size, shrink, enlarge

    def apply(self, img, **params):
        return isotropic_resize(img, self.size, self.shrink, self.enlarge)

    def apply_to_mask(self, mask, **params):
        return isotropic_resize(mask, self.size, cv2.INTER_AREA, cv2.INTER_LINEAR)


class GaussNoise(A.ImageOnlyTransform):
    """Add normal noise whose variance is drawn evenly from `variance`, another value for each pixel and channel.

    (2.x draws the spread evenly instead, and its noise comes out weaker.)
    """

    def __init__(self, variance: tuple[float, float], p: float):
        super().__init__(p=p)
        self.variance = variance

    def get_params(self) -> dict:
        spread = self.py_random.uniform(*self.variance) ** 0.5
        return {"spread": spread, "seed": self.py_random.getrandbits(32)}

    def apply(self, img, spread: float, seed: int, **params):
        noise = np.random.default_rng(seed).normal(0, spread, img.shape)
        return np.clip(img + noise, 0, 255).astype(np.uint8)


class FancyPCA(A.ImageOnlyTransform):
    """Shift all pixels by one colour, which follows from how the picture's own colours vary: see `shift_colour`.

    One draw for the three directions, as in albumentations 1.0.0 (2.x draws three, and does something else with
    them). alpha: the draw's standard deviation.
    """

    def __init__(self, alpha: float, p: float = 0.5):
        super().__init__(p=p)
        self.alpha = alpha

    def get_params(self) -> dict:
        return {"strength": self.py_random.gauss(0, self.alpha)}

    def apply(self, img, strength: float, **params):
        return shift_colour(img, strength)


def shift_colour(picture: np.ndarray, strength: float) -> np.ndarray:
    """Add one colour to every pixel, as albumentations 1.0.0 did, which took rows for columns.

    Krizhevsky et al. 2012 add the principal directions of the picture's colours, each times its variance: red moves
    by what the three directions say of red. Here red moves by all three numbers of the strongest direction, green by
    those of the second and blue by those of the third, each number times the variance in its place.
    """
    variances, directions = np.linalg.eigh(np.cov(picture.reshape(-1, 3).T / 255))  # weakest first, in columns
    shift = 255 * strength * directions.T[::-1] @ variances[::-1]  # (3,)
    return np.clip(picture + shift, 0, 255).astype(np.uint8)


class Cover(A.DualTransform):
    """Paint black what a subclass's `keep` (H, W) uint8, 1 or 0, leaves out; in the mask too."""

    def apply(self, img, keep: np.ndarray, **params):
        return img * keep[..., None]

    def apply_to_mask(self, mask, keep: np.ndarray, **params):
        return mask * keep


class GridMask(Cover):
    """Cover a regular grid of squares.

    Ours: upstream's README names GridMask (arXiv 2001.04086) as an inspiration, but its code has no grid.
    period: the grid's, drawn from this range as a share of the picture's shorter side. cover: the share of a period,
    along each side, that a square takes. (2.x's GridDropout with random offsets moves each hole by itself: no grid.)
    """

    def __init__(self, period: tuple[float, float] = (0.15, 0.5), cover: float = 0.4, *, p: float):
        super().__init__(p=p)
        self.period, self.cover = period, cover

    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict:
        height, width = params["shape"][:2]
        period = self.py_random.uniform(*self.period) * min(height, width)
        rows, columns = (
            (np.arange(n) + self.py_random.uniform(0, period)) % period < self.cover * period for n in (height, width)
        )
        return {"keep": (~np.outer(rows, columns)).astype(np.uint8)}


class BlackOut(Cover):
    """Paint a part of the face black, so that no single part can be relied on: the hard set of the 7 x B7.

    With probability 0.7 eyes, mouth or nose, by MTCNN's five landmarks; else with 0.2 half of the face's convex hull;
    else with 0.1 half of the picture or two opposite quarters, chosen so that some of what is fake stays visible.
    Source: upstream's code, which takes dlib's 68 landmarks for the hull. We grow the hull of the five instead: dlib
    would be one more detector to build and to download, for 6 % of the pictures.
    """

    def __init__(self, p: float = 1.0):
        super().__init__(p=p)

    @property
    def targets_as_params(self) -> list[str]:
        return ["image", "mask", "landmarks", "label"]

    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict:
        shape, landmarks, rng = (
            data["image"].shape[:2],
            np.asarray(data["landmarks"], np.float32),
            self.random_generator,
        )
        if rng.random() < 0.7:
            return {"keep": cover_landmark(shape, landmarks, rng)}
        if rng.random() < 0.2:
            return {"keep": cover_half_hull(shape, landmarks, rng)}
        if rng.random() < 0.1:
            return {"keep": cover_part(shape, data["mask"] if data["label"] else None, rng)}
        return {"keep": np.ones(shape, np.uint8)}


def cover_landmark(shape: tuple[int, int], landmarks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cover both eyes (half of the time), the mouth (a quarter), the nose (an eighth), or nothing.

    By a bar whose thickness is drawn, 0.35 to 0.7 of the distance between the eyes. Returns what to keep: (H, W)
    uint8, 1 or 0.
    """
    keep = np.ones(shape, np.uint8)
    left_eye, right_eye, nose, left_mouth, right_mouth = landmarks
    between = (left_eye + right_eye) / 2
    lines = {
        "eyes": (left_eye, right_eye),
        "mouth": (left_mouth, right_mouth),
        "nose": (between, nose),
        "nothing": None,
    }
    line = lines[rng.choice(list(lines), p=[1 / 2, 1 / 4, 1 / 8, 1 / 8])]
    if line is not None:
        thickness = max(round(float(np.hypot(*(right_eye - left_eye))) * rng.uniform(0.35, 0.7)), 1)
        start, end = (tuple(np.round(point).astype(int).tolist()) for point in line)
        cv2.line(keep, start, end, 0, thickness)
    return keep


def cover_half_hull(shape: tuple[int, int], landmarks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cover the left, right, upper or lower half of the face: the landmarks' convex hull, grown about its middle.

    Grown 1.9 times, it is as large as a face's outline from brows to chin.
    """
    hull = np.zeros(shape, np.uint8)
    points = landmarks.mean(axis=0) + 1.9 * (landmarks - landmarks.mean(axis=0))
    cv2.fillConvexPoly(hull, cv2.convexHull(np.round(points).astype(np.int32)), 1)
    x, y = np.maximum(np.round(points.mean(axis=0)).astype(int), 0)
    side = [np.s_[:, :x], np.s_[:, x:], np.s_[:y], np.s_[y:]][rng.integers(4)]
    keep = np.ones(shape, np.uint8)
    keep[side] -= hull[side]
    return keep


def cover_part(shape: tuple[int, int], mask: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """Cover half of the picture or two opposite quarters. mask: of a fake, whose brightest part must stay visible.

    Of that part, the pixels above half of its highest value, more than 20 stay; where no choice grants it, all stay.
    """
    upper, left = np.zeros((2, *shape), np.uint8)
    upper[: shape[0] // 2], left[:, : shape[1] // 2] = 1, 1
    crossed = upper ^ left  # two opposite quarters
    choices = [keep for half in (upper, left, crossed) for keep in (half, 1 - half)]
    for number in rng.permutation(len(choices)):
        keep = choices[number]
        if mask is None or np.count_nonzero((mask > mask.max() / 2) & (keep > 0)) > 20:
            return keep
    return np.ones(shape, np.uint8)


def _pad(size: int) -> A.PadIfNeeded:
    return A.PadIfNeeded(size, size, border_mode=cv2.BORDER_CONSTANT, fill=0)


def _compose(transforms: list, seed: int | None, record: bool = False) -> A.Compose:
    finish = [A.Normalize(), ToTensorV2()]
    return A.Compose(
        transforms + finish, additional_targets={"fake": "image"}, seed=seed, save_applied_params=record
    )  # fmt: skip


def slides_transforms(size: int, as_upstream: bool = False) -> list[A.BasicTransform]:
    """The slides' transforms, one by one. as_upstream: its resize ignores its own settings (always AREA and CUBIC)."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an argument that the library does not know is only a warning there
        colours = [
            A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, brightness_by_max=True),
            FancyPCA(alpha=0.1),
            A.HueSaturationValue(hue_shift_limit=20, sat_shift_limit=30, val_shift_limit=20),
        ]
        kinds = [RESIZES[0]] * 3 if as_upstream else RESIZES
        return [
            A.ImageCompression(quality_range=(60, 100), p=0.5),
            GaussNoise(variance=(10, 50), p=0.1),
            A.GaussianBlur(blur_limit=(3, 3), sigma_limit=(BLUR_SIGMA, BLUR_SIGMA), p=0.05),
            A.HorizontalFlip(),
            A.OneOf([IsotropicResize(size, *kind) for kind in kinds], p=1),
            _pad(size),
            A.OneOf(colours, p=0.7),
            A.ToGray(num_output_channels=3, method="weighted_average", p=0.2),
            _shift_scale_rotate(0.1, 0.2, 10, p=0.5),
        ]


def train_transforms(
    size: int, seed: int | None = None, hard: bool = False, as_upstream: bool = False, record: bool = False
) -> A.Compose:
    """The slides' training augmentation; with `hard`, blackouts and a grid of holes before it (needs landmarks).

    as_upstream: without the grid, which is ours, and with one way to resize (see `slides_transforms`).
    record: the result's "applied_transforms" tells what was done.
    """
    covers = [BlackOut()] if hard else []
    if hard and not as_upstream:
        covers.append(GridMask(p=0.1))
    return _compose(covers + slides_transforms(size, as_upstream), seed, record)


def demo_transforms(size: int, seed: int | None = None) -> A.Compose:
    """What the sample needs: two faces are soon learned by heart, so colour, place and size must say nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        transforms = [
            IsotropicResize(size),
            _pad(size),
            A.HorizontalFlip(),
            _shift_scale_rotate(0.06, 0.15, 10, p=1),
            A.RandomGamma(gamma_limit=(60, 160), p=1),
            A.RGBShift(25, 25, 25, p=1),
            A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.3, brightness_by_max=True, p=1),
        ]
        return _compose(transforms, seed)


def valid_transforms(size: int) -> A.Compose:
    """What every picture meets outside training: isotropic resize, centred on black, normalised."""
    return _compose([IsotropicResize(size), _pad(size)], seed=None)


def _shift_scale_rotate(shift: float, scale: float, degrees: float, p: float) -> A.Affine:
    """1.0.0's ShiftScaleRotate, but for half a pixel, and for shifts that are cut to whole pixels here."""
    return A.Affine(
        translate_percent=(-shift, shift), scale=(1 - scale, 1 + scale), rotate=(-degrees, degrees), p=p,
        interpolation=cv2.INTER_LINEAR, border_mode=cv2.BORDER_CONSTANT, fill=0, balanced_scale=False, keep_ratio=True,
    )  # fmt: skip


AUGMENTATIONS = {
    "slides": train_transforms,
    "hard": partial(train_transforms, hard=True),
    "upstream": partial(train_transforms, hard=True, as_upstream=True),
    "demo": demo_transforms,
}
