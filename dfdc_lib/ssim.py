"""Show where a fake changed the picture."""

import numpy as np
from skimage.metrics import structural_similarity


def ssim_difference(real: np.ndarray, fake: np.ndarray) -> np.ndarray:
    """Return 1 - SSIM per pixel as a mask (H, W) uint8, from 0 (equal) to 255.

    real, fake: (H, W, 3) uint8 RGB of one shape, at least 7 x 7 (else ValueError). Averaged over
    the channels; negative SSIM counts as 0. Source: Wang et al. 2004, as the slides use it.
    """
    if real.shape != fake.shape:
        raise ValueError(f"crops of {real.shape} and {fake.shape} can't be compared")
    if min(real.shape[:2]) < 7:
        raise ValueError(f"SSIM needs at least 7 x 7 pixels, got {real.shape}")
    _, similarity = structural_similarity(real, fake, channel_axis=2, full=True)
    difference = 1 - np.clip(similarity.mean(axis=2), 0, 1)
    return (difference * 255).round().astype(np.uint8)
