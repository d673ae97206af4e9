"""Boxes, margins, resizing and padding: the arithmetic between a video frame and a model's input.

A box is (x0, y0, x1, y1) in pixels, y down, x1 and y1 exclusive; a picture is (H, W, C).
"""

import cv2
import numpy as np

from dfdc_lib.config import Margin

Box = tuple[float, float, float, float]


def detector_scale(width: int, height: int) -> float:
    """The factor by which a frame is resized before face detection. Source: the slides."""
    longer = max(width, height)
    if longer < 300:
        return 2.0
    if longer <= 1000:
        return 1.0
    return 0.5 if longer <= 1900 else 0.33


def add_margin(box: Box, margin: Margin, width: int, height: int) -> tuple[int, int, int, int]:
    """Grow a box by a share of its own sides on each side, rounded and clipped to the frame.

    With `whole_pixels` the box and the margin are first truncated to whole pixels. Raises
    ValueError if nothing is left inside the frame.
    """
    x0, y0, x1, y1 = map(int, box) if margin.whole_pixels else box
    pad_x, pad_y = (x1 - x0) * margin.share, (y1 - y0) * margin.share
    if margin.whole_pixels:
        pad_x, pad_y = int(pad_x), int(pad_y)
    left, top = max(round(x0 - pad_x), 0), max(round(y0 - pad_y), 0)
    right, bottom = min(round(x1 + pad_x), width), min(round(y1 + pad_y), height)
    if left >= right or top >= bottom:
        place = tuple(map(float, box))
        raise ValueError(f"box {place} leaves nothing inside a frame of {width} x {height}")
    return left, top, right, bottom


def crop_box(frame: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """Cut an integer box out of a frame (H, W, C). The result is a copy."""
    x0, y0, x1, y1 = box
    return frame[y0:y1, x0:x1].copy()


def cut_face(frame: np.ndarray, box: Box, margin: Margin) -> np.ndarray:
    """The crop (H, W, C) of a face's box with a margin. Raises what `add_margin` raises."""
    return crop_box(frame, add_margin(box, margin, frame.shape[1], frame.shape[0]))


def isotropic_resize(
    picture: np.ndarray, size: int, shrink: int = cv2.INTER_AREA, enlarge: int = cv2.INTER_CUBIC
) -> np.ndarray:
    """Resize so that the longer side is `size`, keeping the aspect ratio: a face keeps its shape.

    The shorter side is rounded down, as upstream's code does. A picture that already has the size
    is returned as it is, not copied.
    """
    height, width = picture.shape[:2]
    factor, wide = size / max(height, width), width > height
    shorter = max(int((height if wide else width) * factor), 1)
    target = (size, shorter) if wide else (shorter, size)
    if target == (width, height):
        return picture
    return cv2.resize(picture, target, interpolation=shrink if factor < 1 else enlarge)


def pad_to_square(picture: np.ndarray, size: int) -> np.ndarray:
    """Centre a picture on a black square of `size` pixels."""
    height, width = picture.shape[:2]
    if max(height, width) > size:
        raise ValueError(f"a picture of {width} x {height} does not fit on a square of {size}")
    top, left = (size - height) // 2, (size - width) // 2
    sides = (top, size - height - top, left, size - width - left)
    return cv2.copyMakeBorder(picture, *sides, cv2.BORDER_CONSTANT, value=0)


def spread_indices(n_total: int, n_wanted: int) -> np.ndarray:
    """`n_wanted` frame numbers spread evenly from the first to the last of `n_total`, each once.

    Rounded down, as upstream's code does. (It samples some frames of a shorter video twice.)
    """
    return np.unique(np.linspace(0, n_total - 1, min(n_total, n_wanted), dtype=int))


def affine_between(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The (2, 3) affine map that carries points `source` (n, 2) to `target`, by least squares."""
    ones = np.ones((len(source), 1))
    solution, _, rank, _ = np.linalg.lstsq(np.hstack([source, ones]), target, rcond=None)
    if rank < 3:
        raise ValueError("an affine map needs at least three points that do not lie on one line")
    return solution.T


def move_points(points: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Apply a (2, 3) affine map to points (n, 2)."""
    return points @ affine[:, :2].T + affine[:, 2]
