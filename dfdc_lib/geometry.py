"""Boxes, margins, resizing and padding: the arithmetic between a video frame and a model's input.

A box is (x0, y0, x1, y1) in pixels, x to the right, y down, x1 and y1 exclusive. Pictures are (H, W, C) arrays.
"""

import cv2
import numpy as np

Box = tuple[float, float, float, float]


def detector_scale(width: int, height: int) -> float:
    """Return the factor by which a frame is resized before face detection, from its wider side.

    Source: the slides. Under 300 px: 2 · 300 to 1000: 1 · above 1000: 0.5 · above 1900: 0.33.
    """
    wider = max(width, height)
    if wider <= 0:
        raise ValueError(f"a frame needs a positive size, got {width} x {height}")
    if wider < 300:
        return 2.0
    if wider > 1900:
        return 0.33
    return 0.5 if wider > 1000 else 1.0


def add_margin(box: Box, margin: float | str, width: int, height: int) -> tuple[int, int, int, int]:
    """Grow `box` by `margin` of its own width and height on each side, rounded and clipped to the frame.

    The slides keep a margin of about 20 % of the box: `margin=0.2`. `margin="upstream"` is what upstream's code does,
    and what its released weights expect: whole pixels, then a third of them, both rounded down. Raises ValueError
    where nothing is left inside the frame. Notebook 03 derives it.
    """
    if margin == "upstream":
        x0, y0, x1, y1 = (int(value) for value in box)
        pad_x, pad_y = (x1 - x0) // 3, (y1 - y0) // 3
    else:
        x0, y0, x1, y1 = box
        pad_x, pad_y = (x1 - x0) * margin, (y1 - y0) * margin
    grown = (
        max(round(x0 - pad_x), 0),
        max(round(y0 - pad_y), 0),
        min(round(x1 + pad_x), width),
        min(round(y1 + pad_y), height),
    )
    if grown[0] >= grown[2] or grown[1] >= grown[3]:
        raise ValueError(f"box {tuple(map(float, box))} leaves nothing inside a frame of {width} x {height}")
    return grown


def crop_box(frame: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """Cut an integer box out of a frame (H, W, C). The result is a copy."""
    x0, y0, x1, y1 = box
    return frame[y0:y1, x0:x1].copy()


def cut_face(frame: np.ndarray, box, margin: float | str) -> np.ndarray:
    """The crop (H, W, C) of a face's box (4,) with a margin; see `add_margin`, also for what it raises."""
    return crop_box(frame, add_margin(box, margin, frame.shape[1], frame.shape[0]))


def isotropic_resize(
    picture: np.ndarray, size: int, shrink: int = cv2.INTER_AREA, enlarge: int = cv2.INTER_CUBIC
) -> np.ndarray:
    """Resize so that the longer side is `size`, keeping the aspect ratio.

    A face that is squeezed into a square looks like another face; here its shape stays what it was. The shorter side
    is rounded down, as upstream's code does (the slides leave it open). What has the size already is returned itself,
    and is no copy.
    """
    height, width = picture.shape[:2]
    factor = size / max(height, width)
    target = (size, max(int(height * factor), 1)) if width > height else (max(int(width * factor), 1), size)
    if target == (width, height):
        return picture
    return cv2.resize(picture, target, interpolation=shrink if factor < 1 else enlarge)


def pad_to_square(picture: np.ndarray, size: int) -> np.ndarray:
    """Centre a picture on a black square of `size` pixels. Raises ValueError where it does not fit."""
    height, width = picture.shape[:2]
    if max(height, width) > size:
        raise ValueError(f"a picture of {width} x {height} does not fit on a square of {size}")
    top, left = (size - height) // 2, (size - width) // 2
    sides = (top, size - height - top, left, size - width - left)
    return cv2.copyMakeBorder(picture, *sides, cv2.BORDER_CONSTANT, value=0)


def spread_indices(n_total: int, n_wanted: int) -> np.ndarray:
    """Return `n_wanted` frame numbers spread evenly from the first to the last of `n_total`, each once.

    Numbers are rounded down, as upstream's code does (the slides leave it open). A shorter video gives all its frames.
    (Upstream's duplicates there stalled its reader: it then saw one frame.)
    """
    return np.unique(np.linspace(0, n_total - 1, min(n_total, n_wanted), dtype=int))


def affine_between(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the (2, 3) affine map that carries points `source` (n, 2) to `target` (n, 2), by least squares."""
    ones = np.ones((len(source), 1))
    solution, _, rank, _ = np.linalg.lstsq(np.hstack([source, ones]), target, rcond=None)
    if rank < 3:
        raise ValueError("an affine map needs at least three points that do not lie on one line")
    return solution.T


def move_points(points: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Apply a (2, 3) affine map to points (n, 2)."""
    return points @ affine[:, :2].T + affine[:, 2]
