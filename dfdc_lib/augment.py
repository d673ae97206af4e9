"""Augmentation: what the test set may have done to a picture. Albumentations 2.0.8, set to behave as 1.0.0 did.

Every pipeline takes a crop (H, W, 3) uint8 RGB of any size and returns a float32 tensor (3, size, size), normalised
with ImageNet's mean and spread. A second picture passed as `fake` is augmented exactly as the first.
"""

import warnings

import albumentations as A
import cv2
from albumentations.pytorch import ToTensorV2

from dfdc_lib.geometry import isotropic_resize


class IsotropicResize(A.ImageOnlyTransform):
    """Resize so that the longer side is `size`, with one interpolation for shrinking and one for enlarging."""

    def __init__(self, size: int, shrink: int = cv2.INTER_AREA, enlarge: int = cv2.INTER_CUBIC, p: float = 1.0):
        super().__init__(p=p)
        self.size, self.shrink, self.enlarge = size, shrink, enlarge

    def apply(self, img, **params):
        return isotropic_resize(img, self.size, self.shrink, self.enlarge)


def _resizes(size: int) -> A.OneOf:
    kinds = [
        (cv2.INTER_AREA, cv2.INTER_CUBIC),
        (cv2.INTER_AREA, cv2.INTER_LINEAR),
        (cv2.INTER_LINEAR, cv2.INTER_LINEAR),
    ]
    return A.OneOf([IsotropicResize(size, *kind) for kind in kinds], p=1)


def _pad(size: int) -> A.PadIfNeeded:
    return A.PadIfNeeded(size, size, border_mode=cv2.BORDER_CONSTANT, fill=0)


def _compose(transforms: list, seed: int | None) -> A.Compose:
    finish = [A.Normalize(), ToTensorV2()]
    return A.Compose(transforms + finish, additional_targets={"fake": "image"}, seed=seed)


def train_transforms(size: int, seed: int | None = None) -> A.Compose:
    """The slides' training augmentation, but for FancyPCA."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an argument that the library does not know is only a warning there
        colours = [
            A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, brightness_by_max=True),
            A.HueSaturationValue(hue_shift_limit=20, sat_shift_limit=30, val_shift_limit=20),
        ]
        transforms = [
            A.ImageCompression(quality_range=(60, 100), p=0.5),
            A.GaussNoise(std_range=(10**0.5 / 255, 50**0.5 / 255), p=0.1),
            A.GaussianBlur(blur_limit=(3, 3), sigma_limit=(0.8, 0.8), p=0.05),
            A.HorizontalFlip(),
            _resizes(size),
            _pad(size),
            A.OneOf(colours, p=0.7),
            A.ToGray(num_output_channels=3, method="weighted_average", p=0.2),
            _shift_scale_rotate(0.1, 0.2, 10, p=0.5),
        ]
        return _compose(transforms, seed)


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
    return A.Affine(
        translate_percent=(-shift, shift), scale=(1 - scale, 1 + scale), rotate=(-degrees, degrees), p=p,
        interpolation=cv2.INTER_LINEAR, border_mode=cv2.BORDER_CONSTANT, fill=0, balanced_scale=False, keep_ratio=True,
    )  # fmt: skip


AUGMENTATIONS = {"slides": train_transforms, "demo": demo_transforms}
