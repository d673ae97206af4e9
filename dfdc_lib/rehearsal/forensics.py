"""Show what a manipulation left behind in a picture (H, W, 3) uint8 RGB.

Each function compares parts of one picture. None is a detector: sharp edges make patterns too.
"""

import cv2
import numpy as np


def recompress(picture: np.ndarray, quality: int) -> np.ndarray:
    """Save a picture as JPEG at `quality` (1 to 100) and load it again."""
    turned = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    _, stored = cv2.imencode(".jpg", turned, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(stored, cv2.IMREAD_COLOR_RGB))


def error_level(picture: np.ndarray, quality: int = 90) -> np.ndarray:
    """Error level analysis (Krawetz, 2007): how much one more JPEG changes each pixel, (H, W)."""
    return np.abs(recompress(picture, quality).astype(np.float32) - picture).mean(axis=2)


def high_pass(picture: np.ndarray) -> np.ndarray:
    """Noise and texture, (H, W) float32: SRM's second residual (Fridrich and Kodovsky, 2012)."""
    kernel = np.array([[-1, 2, -1], [2, -4, 2], [-1, 2, -1]], np.float32) / 4
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    return cv2.filter2D(grey, cv2.CV_32F, kernel, borderType=cv2.BORDER_REFLECT_101)


def block_grid(picture: np.ndarray, where: np.ndarray | None = None, period: int = 8) -> np.ndarray:
    """Find the grid of compression blocks: how large the steps are at each phase, (2, period).

    [0, k] is the mean step from rows 8 n + k to the next, over the mean of all phases; [1, k] is of
    columns. Blocks from the corner show at k = 7. where: (H, W) bool, the pixels that count; too
    few raise ValueError. Source: blind measurement of blocking, Wang, Bovik and Evans, 2000.
    """
    grey: np.ndarray = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
    counts = np.ones(grey.shape, bool) if where is None else where
    phases = []
    for steps, both in (_steps(grey, counts), _steps(grey.T, counts.T)):
        found = [steps[k::period][both[k::period]] for k in range(period)]
        if min(map(len, found)) == 0:
            raise ValueError(f"too few pixels to tell {period} phases apart: {int(counts.sum())}")
        mean = np.array([some.mean() for some in found])
        phases.append(mean / max(mean.mean(), 1e-6))
    return np.array(phases)


def _steps(grey: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far each row's step exceeds the slope around it, and which steps count: both (H, W)."""
    step = np.zeros_like(grey)
    step[1:-2] = np.abs(grey[2:-1] - grey[1:-2] - (grey[3:] - grey[:-3]) / 3)
    both = counts.copy()
    both[:-1] &= counts[1:]
    both[[0, -1, -2]] = False
    return step, both
