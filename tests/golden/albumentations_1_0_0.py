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
    """A picture (60, 80, 3) uint8 with slopes, edges and texture, no colour like another."""
    y, x = np.mgrid[:60, :80]
    texture = 30 * np.sin(x / 5) * np.cos(y / 4)
    picture = np.stack([10 + 1.5 * x, 40 + 2.75 * x - y / 2, 20 + 2.9 * x + texture], axis=2)
    picture[20:40, 30:50] = (210, 60, 40)
    noisy = picture + np.random.RandomState(0).normal(0, 6, picture.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


picture, black = draw_picture(), {"border_mode": cv2.BORDER_CONSTANT}
shifts = {"shift_limit_x": (0.05, 0.05), "shift_limit_y": (-0.1, -0.1)}
transforms = {  # each with ranges of one value
    "compression_60": A.ImageCompression(60, 60, p=1),
    "compression_100": A.ImageCompression(100, 100, p=1),
    "blur": A.GaussianBlur(blur_limit=3, p=1),
    "flip": A.HorizontalFlip(p=1),
    "pad": A.PadIfNeeded(min_height=96, min_width=96, **black, p=1),
    "gray": A.ToGray(p=1),
    "brightness": A.RandomBrightnessContrast((0.2, 0.2), (-0.1, -0.1), p=1),
    "hue": A.HueSaturationValue((12, 12), (-25, -25), (15, 15), p=1),
    "shift_scale_rotate": A.ShiftScaleRotate(
        **shifts, scale_limit=(0.1, 0.1), rotate_limit=(8, 8), **black, p=1
    ),
}
stored = {name: transform(image=picture)["image"] for name, transform in transforms.items()}
for alpha in (-0.3, -0.1, 0.1, 0.3):
    stored[f"fancy_pca_{alpha}"] = functional.fancy_pca(picture, alpha)
covariance = np.cov(picture.reshape(-1, 3).T / 255)
_, stored["directions"] = np.linalg.eigh(covariance)  # a direction's sign is LAPACK's choice

random.seed(0)
flat, noise = np.full((64, 64, 3), 128, np.uint8), A.GaussNoise(p=1)
noisy = [noise(image=flat)["image"].astype(float) for _ in range(400)]
stored["noise_spread"] = np.array([each.std() for each in noisy])
np.savez_compressed(Path(__file__).with_suffix(".npz"), picture=picture, **stored)
