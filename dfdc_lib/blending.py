"""Blend a face with a changed copy of itself, in steps that all blends share.

Pictures: (H, W, 3) uint8 RGB. Landmarks: (5, 2) in pixels, as in `faces.Faces`.
"""

import cv2
import numpy as np

from dfdc_lib.geometry import affine_between, move_points

# After ArcFace's template, in a face's own frame: 0 between the eyes, y down, 1 at the mouth.
FACE = np.array([(-0.43, 0.0), (0.43, 0.0), (0.0, 0.5), (-0.36, 1.0), (0.36, 1.0)])
# Right halves: brows to chin, as for 68 landmarks; INNER: what expression and identity change.
RIGHT = [(0.25, -0.42), (0.62, -0.38), (0.8, -0.15), (0.84, 0.35)]
RIGHT += [(0.76, 0.85), (0.6, 1.25), (0.3, 1.6), (0.0, 1.7)]
INNER_RIGHT = [(0.7, -0.22), (0.7, 0.25), (0.55, 1.05), (0.3, 1.25)]


def both_halves(right: list[tuple[float, float]]) -> np.ndarray:
    """An outline (2 n, 2): its right half (n, 2), and the same mirrored."""
    return np.concatenate([right, np.multiply(right, (-1, 1))])


OUTLINE, INNER = both_halves(RIGHT), both_halves(INNER_RIGHT)


class NotAFace(ValueError):
    """Landmarks that no face has, or that lie outside the picture."""


def face_frame(landmarks: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the affine map (2, 3) from a face's own frame to the picture. Raises NotAFace."""
    landmarks = np.asarray(landmarks, float)
    if landmarks.shape != (5, 2) or not np.isfinite(landmarks).all():
        raise NotAFace(f"a face has five finite landmarks (5, 2), got {landmarks.tolist()}")
    if (landmarks < 0).any() or (landmarks >= (width, height)).any():
        raise NotAFace(f"landmarks outside a picture of {width} x {height}: {landmarks.tolist()}")
    frame = affine_between(FACE, landmarks)
    long, short = np.linalg.svd(frame[:, :2], compute_uv=False)
    if long < 1 or short < 0.1 * long:
        raise NotAFace(f"landmarks in one place or on a line: {landmarks.tolist()}")
    return frame


def deform(outline: np.ndarray, reach: float, rng: np.random.Generator) -> np.ndarray:
    """Move each point of an outline (n, 2) by up to `reach`, so that no two seams are alike."""
    return outline + reach * rng.uniform(-1, 1, outline.shape)


def hull_mask(
    landmarks: np.ndarray,
    height: int,
    width: int,
    outline: np.ndarray = OUTLINE,
    feather: float = 0.1,
) -> np.ndarray:
    """Make a soft mask (H, W) float32 in [0, 1] of an outline, placed by the landmarks.

    feather: the blur's sigma, in distances from eyes to mouth. After Face X-ray (arXiv 1912.13458).
    """
    frame = face_frame(landmarks, height, width)
    sixteenths = np.round(16 * move_points(outline, frame)).astype(np.int32)  # of a pixel
    points = cv2.convexHull(sixteenths)
    mask: np.ndarray = np.zeros((height, width), np.float32)
    cv2.fillConvexPoly(mask, points, 1.0, shift=4)
    sigma = feather * float(np.hypot(*frame[:, 1]))
    reach = 2 * round(2 * sigma) + 1
    return np.minimum(cv2.GaussianBlur(mask, (reach, reach), sigma), 1) if reach > 1 else mask


def eyes_to_mouth(landmarks: np.ndarray) -> float:
    """Measure a face: pixels from between the eyes to the middle of the mouth."""
    return float(np.hypot(*(landmarks[3:].mean(axis=0) - landmarks[:2].mean(axis=0))))


def shift_channels(picture: np.ndarray, shift: np.ndarray, contrast: float = 1.0) -> np.ndarray:
    """Scale the contrast around level 128, then add `shift` (3,) grey levels."""
    levels = 128 + contrast * (np.arange(256)[:, None] - 128.0) + shift
    return cv2.LUT(picture, np.clip(levels, 0, 255).round().astype(np.uint8)[None])


def lose_detail(picture: np.ndarray, detail: float) -> np.ndarray:
    """Shrink a picture to `detail` of its size and enlarge it again, like a small generator."""
    if not 0 < detail <= 1:
        raise ValueError(f"detail is a share of the size, above 0 and at most 1, got {detail}")
    height, width = picture.shape[:2]
    small = (max(round(width * detail), 2), max(round(height * detail), 2))
    shrunk = cv2.resize(picture, small, interpolation=cv2.INTER_AREA)
    return cv2.resize(shrunk, (width, height), interpolation=cv2.INTER_CUBIC)


def blend(
    target: np.ndarray, donor: np.ndarray, weights: np.ndarray, opacity: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Mix `donor` into `target` by opacity * weights (H, W) in [0, 1]; return (picture, mask)."""
    mixed = target + opacity * weights[..., None] * (donor.astype(np.float32) - target)
    return np.clip(mixed, 0, 255).round().astype(np.uint8), np.ceil(weights * 255).astype(np.uint8)


def fit_to(
    donor: np.ndarray, donor_landmarks: np.ndarray, landmarks: np.ndarray, height: int, width: int
) -> np.ndarray:
    """Warp `donor` to height x width, so that its landmarks fall on `landmarks`."""
    warp = affine_between(donor_landmarks, landmarks)
    scale = float(np.sqrt(abs(np.linalg.det(warp[:, :2]))))
    if scale < 0.8:  # warping alone would alias, which is not a trait of fakes
        old = np.array(donor.shape[1::-1])
        small = np.maximum(np.round(old * scale), 1).astype(int)
        donor = cv2.resize(donor, small, interpolation=cv2.INTER_AREA)
        # Pixel centres have whole coordinates: the corner of a picture is at -0.5.
        warp = affine_between((np.asarray(donor_landmarks) + 0.5) * small / old - 0.5, landmarks)
    return cv2.warpAffine(donor, warp, (width, height), borderMode=cv2.BORDER_REFLECT_101)


def self_blend(
    picture: np.ndarray, landmarks: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Blend a face with a slightly changed copy of itself. Returns what `blend` does.

    After self-blended images (arXiv 2204.08376), which change the copy or its surroundings; here
    always the copy, so that nothing outside the mask changes. Raises NotAFace.
    """
    height, width = picture.shape[:2]
    feather, outline = rng.uniform(0.02, 0.15), deform(OUTLINE, rng.uniform(0, 0.2), rng)
    weights = hull_mask(landmarks, height, width, outline, feather)
    copy = shift_channels(picture, rng.uniform(-20, 20, 3), 1 + rng.uniform(-0.1, 0.1))
    soft = lose_detail(copy, 1 - rng.uniform(0.2, 0.75))
    copy = soft if rng.random() < 0.5 else cv2.addWeighted(copy, 2, soft, -1, 0)
    size, centre = eyes_to_mouth(landmarks), landmarks.mean(axis=0)
    moved = centre + (landmarks - centre) * (1 + rng.uniform(-0.05, 0.05, 2))
    moved += rng.uniform(-0.06, 0.06, 2) * size
    copy = fit_to(copy, landmarks, moved, height, width)
    opacity = float(rng.choice([0.25, 0.5, 0.75, 1, 1, 1]))
    return blend(picture, copy, weights, opacity)
