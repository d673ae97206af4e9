"""Distort pictures as the test set's may have been, as albumentations 1.0.0 did. See notebook 06.

A pipeline turns a crop (H, W, 3) uint8 RGB of any size into a float32 tensor (3, size, size),
normalised for ImageNet. A second picture, `fake`, is augmented the same way; a `mask` (H, W) uint8
moves along. The hard sets also need `landmarks` (5, 2) in pixels of the crop, and `label`.
"""

from collections.abc import Callable
from functools import partial

import albumentations as A
import cv2
import numpy as np
from albumentations.pytorch import ToTensorV2

from dfdc_lib.geometry import isotropic_resize

BLUR_SIGMA = (2 * np.log(2)) ** -0.5  # OpenCV's own 3 x 3 kernel: 1/4, 1/2, 1/4
# The slides' three ways to resize: (shrinking, enlarging).
RESIZES = [
    (cv2.INTER_AREA, cv2.INTER_CUBIC),
    (cv2.INTER_AREA, cv2.INTER_LINEAR),
    (cv2.INTER_LINEAR, cv2.INTER_LINEAR),
]


class IsotropicResize(A.DualTransform):
    """Apply `isotropic_resize`."""

    def __init__(self, size: int, shrink: int = cv2.INTER_AREA, enlarge: int = cv2.INTER_CUBIC):
        super().__init__(p=1.0)
        self.size, self.shrink, self.enlarge = size, shrink, enlarge

    def apply(self, img, **params):
        return isotropic_resize(img, self.size, self.shrink, self.enlarge)

    def apply_to_mask(self, mask, **params):
        return isotropic_resize(mask, self.size, cv2.INTER_AREA, cv2.INTER_LINEAR)


class GaussNoise(A.ImageOnlyTransform):
    """Add normal noise; its variance is drawn uniformly. (2.x draws the spread, and adds less.)"""

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
    """Apply `shift_colour` with a strength from a normal distribution of spread `alpha`."""

    def __init__(self, alpha: float, p: float = 0.5):
        super().__init__(p=p)
        self.alpha = alpha

    def get_params(self) -> dict:
        return {"strength": self.py_random.gauss(0, self.alpha)}

    def apply(self, img, strength: float, **params):
        return shift_colour(img, strength)


def shift_colour(picture: np.ndarray, strength: float) -> np.ndarray:
    """Add one colour to every pixel, like albumentations 1.0.0, which mixed up rows and columns.

    In Krizhevsky et al. 2012 each principal direction moves red; here only the strongest does.
    """
    # eigh returns directions as columns, the weakest first.
    variances, directions = np.linalg.eigh(np.cov(picture.reshape(-1, 3).T / 255))
    shift = 255 * strength * directions.T[::-1] @ variances[::-1]  # (3,)
    return np.clip(picture + shift, 0, 255).astype(np.uint8)


class Cover(A.DualTransform):
    """Black out picture and mask where a subclass's `keep` (H, W) uint8 is 0; elsewhere it is 1."""

    def apply(self, img, keep: np.ndarray, **params):
        return img * keep[..., None]

    def apply_to_mask(self, mask, keep: np.ndarray, **params):
        return mask * keep


class GridMask(Cover):  # 2.x's GridDropout makes no grid
    """Cover a grid of squares, after GridMask (arXiv 2001.04086). Our own: upstream has none."""

    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict:
        shape, stripes = params["shape"][:2], []
        period = self.py_random.uniform(0.15, 0.5) * min(shape)
        for n in shape:
            offset = self.py_random.uniform(0, period)
            stripes.append((np.arange(n) + offset) % period < 0.4 * period)
        return {"keep": (~np.outer(*stripes)).astype(np.uint8)}


class BlackOut(Cover):
    """Black out part of the face, as for the 7 x B7, so that no single part can be relied on.

    Source: upstream's code; its hull, used for 6 % of the pictures, is of dlib's 68 landmarks. We
    enlarge the hull of MTCNN's five, which saves a second detector.
    """

    @property
    def targets_as_params(self) -> list[str]:
        return ["image", "mask", "landmarks", "label"]

    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict:
        shape, rng = data["image"].shape[:2], self.random_generator
        landmarks = np.asarray(data["landmarks"], np.float32)
        if rng.random() < 0.7:
            return {"keep": cover_landmark(shape, landmarks, rng)}
        if rng.random() < 0.2:
            return {"keep": cover_half_hull(shape, landmarks, rng)}
        if rng.random() < 0.1:
            return {"keep": cover_part(shape, data["mask"] if data["label"] else None, rng)}
        return {"keep": np.ones(shape, np.uint8)}


Shape = tuple[int, int]  # (H, W)


def cover_landmark(shape: Shape, landmarks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cover eyes, mouth, nose or nothing with a bar. Returns `keep` (H, W) uint8, 1 or 0."""
    keep: np.ndarray = np.ones(shape, np.uint8)
    left_eye, right_eye, nose, left_mouth, right_mouth = landmarks
    between = (left_eye + right_eye) / 2
    lines = ((left_eye, right_eye), (left_mouth, right_mouth), (between, nose), None)
    line = lines[rng.choice(4, p=[1 / 2, 1 / 4, 1 / 8, 1 / 8])]
    if line is not None:
        apart = float(np.hypot(*(right_eye - left_eye)))
        thickness = max(round(apart * rng.uniform(0.35, 0.7)), 1)
        start, end = (tuple(np.round(point).astype(int).tolist()) for point in line)
        cv2.line(keep, start, end, 0, thickness)
    return keep


def cover_half_hull(shape: Shape, landmarks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cover the left, right, upper or lower half of the landmarks' hull, enlarged to the face."""
    hull: np.ndarray = np.zeros(shape, np.uint8)
    # 1.9 times the hull reaches from brows to chin.
    points = landmarks.mean(axis=0) + 1.9 * (landmarks - landmarks.mean(axis=0))
    cv2.fillConvexPoly(hull, cv2.convexHull(np.round(points).astype(np.int32)), 1)
    x, y = np.maximum(np.round(points.mean(axis=0)).astype(int), 0)
    side = [np.s_[:, :x], np.s_[:, x:], np.s_[:y], np.s_[y:]][rng.integers(4)]
    keep: np.ndarray = np.ones(shape, np.uint8)
    keep[side] -= hull[side]
    return keep


def cover_part(shape: Shape, mask: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """Cover half the picture or two opposite quarters, but never everything that is fake.

    mask: a fake's. More than 20 pixels above half its maximum stay, or nothing is covered.
    """
    y, x = np.indices(shape)
    upper, left = y < shape[0] // 2, x < shape[1] // 2
    quarters = upper ^ left  # two opposite ones
    choices = [keep for half in (upper, left, quarters) for keep in (half, ~half)]
    for number in rng.permutation(len(choices)):
        keep = choices[number].astype(np.uint8)
        if mask is None or np.count_nonzero((mask > mask.max() / 2) & (keep > 0)) > 20:
            return keep
    return np.ones(shape, np.uint8)


def _compose(transforms: list, seed: int | None, record: bool = False) -> A.Compose:
    steps, targets = [*transforms, A.Normalize(), ToTensorV2()], {"fake": "image"}
    return A.Compose(steps, additional_targets=targets, seed=seed, save_applied_params=record)


def slides_transforms(size: int, as_upstream: bool = False) -> list[A.BasicTransform]:
    """List the slides' transforms. as_upstream: with only the first of the three ways to resize."""
    kinds = [RESIZES[0]] * 3 if as_upstream else RESIZES
    colours = [
        A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2),
        FancyPCA(alpha=0.1),
        A.HueSaturationValue(hue_shift_limit=20, sat_shift_limit=30, val_shift_limit=20),
    ]
    return [
        A.ImageCompression(quality_range=(60, 100), p=0.5),
        GaussNoise(variance=(10, 50), p=0.1),
        A.GaussianBlur(blur_limit=(3, 3), sigma_limit=(BLUR_SIGMA, BLUR_SIGMA), p=0.05),
        A.HorizontalFlip(),
        A.OneOf([IsotropicResize(size, *kind) for kind in kinds], p=1),
        A.PadIfNeeded(size, size),
        A.OneOf(colours, p=0.7),
        A.ToGray(p=0.2),
        _shift_scale_rotate(0.1, 0.2, 10, p=0.5),
    ]


def train_transforms(
    size: int,
    seed: int | None = None,
    hard: bool = False,
    as_upstream: bool = False,
    record: bool = False,
) -> A.Compose:
    """Build the slides' training augmentation. hard: cover parts of the picture first.

    as_upstream: no GridMask, one way to resize. record: list what was done in "applied_transforms".
    """
    covers = [BlackOut(p=1), GridMask(p=0.1)] if hard else []
    covers = covers[:1] if as_upstream else covers
    return _compose(covers + slides_transforms(size, as_upstream), seed, record)


def demo_transforms(size: int, seed: int | None = None) -> A.Compose:
    """Vary colour, place and size, or the sample's two faces are soon learned by heart."""
    transforms = [
        IsotropicResize(size),
        A.PadIfNeeded(size, size),
        A.HorizontalFlip(),
        _shift_scale_rotate(0.06, 0.15, 10, p=1),
        A.RandomGamma(gamma_limit=(60, 160), p=1),
        A.RGBShift(25, 25, 25, p=1),
        A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.3, p=1),
    ]
    return _compose(transforms, seed)


def transfer_transforms(size: int, seed: int | None = None) -> A.Compose:
    """Vary colour and place, and lose detail as cameras and codecs do, for videos beyond the
    sample: how sharp a picture is then says nothing, only where its sharpness changes."""
    scales = {"downscale": cv2.INTER_AREA, "upscale": cv2.INTER_CUBIC}
    losses = [
        A.Downscale(scale_range=(0.3, 0.9), interpolation_pair=scales),
        A.GaussianBlur(blur_limit=0, sigma_limit=(0.3, 2.0)),
        A.MotionBlur(blur_limit=(3, 7)),
        A.Sharpen(alpha=(0.2, 0.6)),
    ]
    transforms = [
        IsotropicResize(size),
        A.PadIfNeeded(size, size),
        A.HorizontalFlip(),
        _shift_scale_rotate(0.08, 0.2, 12, p=1),
        A.RandomGamma(gamma_limit=(60, 160), p=0.7),
        A.RGBShift(25, 25, 25, p=0.7),
        A.RandomBrightnessContrast(brightness_limit=0.25, contrast_limit=0.35, p=0.8),
        A.HueSaturationValue(hue_shift_limit=15, sat_shift_limit=40, val_shift_limit=10),
        A.ToGray(p=0.1),
        A.OneOf(losses, p=0.6),
        GaussNoise(variance=(5, 150), p=0.3),
        A.ImageCompression(quality_range=(30, 95), p=0.6),
    ]
    return _compose(transforms, seed)


def valid_transforms(size: int, seed: int | None = None) -> A.Compose:
    """Resize, centre on black and normalise, as for every picture outside training."""
    return _compose([IsotropicResize(size), A.PadIfNeeded(size, size)], seed)


def _shift_scale_rotate(shift: float, scale: float, degrees: float, p: float) -> A.Affine:
    """Imitate 1.0.0's ShiftScaleRotate to within half a pixel, but with shifts in whole pixels."""
    limits = {"scale": (1 - scale, 1 + scale), "translate_percent": (-shift, shift)}
    return A.Affine(**limits, rotate=(-degrees, degrees), keep_ratio=True, p=p)


AUGMENTATIONS: dict[str, Callable[..., A.Compose]] = {
    "slides": train_transforms,
    "hard": partial(train_transforms, hard=True),
    "upstream": partial(train_transforms, hard=True, as_upstream=True),
    "demo": demo_transforms,
    "transfer": transfer_transforms,
    "none": valid_transforms,
}
