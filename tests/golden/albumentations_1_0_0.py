"""Make albumentations_1_0_0.npz: what the transforms of albumentations 1.0.0, upstream's version,
did to a picture.

The tests hold ours, on 2.0.8, against it. To make it again, in an environment of its own (Python
3.11):

    pip install albumentations==1.0.0 "numpy<1.24" "opencv-python-headless<4.9" "scikit-image<0.21"
    "scipy<1.11" python tests/golden/albumentations_1_0_0.py
"""

import random
from pathlib import Path

import albumentations as A
import cv2
import numpy as np
from albumentations.augmentations import functional

assert A.__version__ == "1.0.0", A.__version__


def draw_picture() -> np.ndarray:
    """A picture (60, 80, 3) uint8 with slopes, edges and fine texture; its colours' eigenvectors
    are not symmetric."""
    y, x = np.mgrid[:60, :80]
    texture = 30 * np.sin(x / 5) * np.cos(y / 4)
    picture = np.stack([10 + 1.5 * x, 40 + 2.75 * x - y / 2, 20 + 2.9 * x + texture], axis=2)
    picture[20:40, 30:50] = (210, 60, 40)
    return np.clip(picture + np.random.RandomState(0).normal(0, 6, picture.shape), 0, 255).astype(
        np.uint8
    )


def fixed(kind, **limits):
    """A transform whose range holds one value only."""
    return kind(p=1, **limits)


picture = draw_picture()
transforms = {
    "compression_60": fixed(A.ImageCompression, quality_lower=60, quality_upper=60),
    "compression_100": fixed(A.ImageCompression, quality_lower=100, quality_upper=100),
    "blur": fixed(A.GaussianBlur, blur_limit=3),
    "flip": fixed(A.HorizontalFlip),
    "pad": fixed(A.PadIfNeeded, min_height=96, min_width=96, border_mode=cv2.BORDER_CONSTANT),
    "gray": fixed(A.ToGray),
    "brightness": fixed(
        A.RandomBrightnessContrast, brightness_limit=(0.2, 0.2), contrast_limit=(-0.1, -0.1)
    ),
    "hue": fixed(
        A.HueSaturationValue,
        hue_shift_limit=(12, 12),
        sat_shift_limit=(-25, -25),
        val_shift_limit=(15, 15),
    ),
    "shift_scale_rotate": fixed(
        A.ShiftScaleRotate,
        shift_limit_x=(0.05, 0.05),
        shift_limit_y=(-0.1, -0.1),
        scale_limit=(0.1, 0.1),
        rotate_limit=(8, 8),
        border_mode=cv2.BORDER_CONSTANT,
    ),
}
stored = {name: transform(image=picture)["image"] for name, transform in transforms.items()}
for alpha in (-0.3, -0.1, 0.1, 0.3):
    stored[f"fancy_pca_{alpha}"] = functional.fancy_pca(picture, alpha)
_, stored["directions"] = np.linalg.eigh(
    np.cov(picture.reshape(-1, 3).T / 255)
)  # a direction's sign is LAPACK's choice

random.seed(0)
flat, noise = np.full((64, 64, 3), 128, np.uint8), A.GaussNoise(p=1)
stored["noise_spread"] = np.array(
    [noise(image=flat)["image"].astype(float).std() for _ in range(400)]
)
np.savez_compressed(Path(__file__).with_suffix(".npz"), picture=picture, **stored)
