"""Self-blending: a face blended with a changed copy of itself, and the parts that all blends share.

Pictures are (H, W, 3) uint8 RGB. Landmarks are (5, 2) in pixels: left eye, right eye, nose, left
and right mouth corner.
"""

import cv2
import numpy as np

from dfdc_lib.geometry import affine_between, move_points

# A face's own frame: the origin between the eyes, y down the face, 1 = from the eyes to the mouth.
# The mean places of the five landmarks, after ArcFace's template.
FACE = np.array([(-0.43, 0.0), (0.43, 0.0), (0.0, 0.5), (-0.36, 1.0), (0.36, 1.0)])
# Outlines, first their right halves: from brows to chin, as a hull of 68 landmarks has it, and of
# eyes, nose and mouth, which expression and identity change most.
RIGHT = [(0.25, -0.42), (0.62, -0.38), (0.8, -0.15), (0.84, 0.35)]
RIGHT += [(0.76, 0.85), (0.6, 1.25), (0.3, 1.6), (0.0, 1.7)]
INNER_RIGHT = [(0.7, -0.22), (0.7, 0.25), (0.55, 1.05), (0.3, 1.25)]
OUTLINE = np.concatenate([RIGHT, np.multiply(RIGHT, (-1, 1))])
INNER = np.concatenate([INNER_RIGHT, np.multiply(INNER_RIGHT, (-1, 1))])


class NotAFace(ValueError):
    """Landmarks that no face has, or that of a face which leaves the picture."""


def face_frame(landmarks: np.ndarray, height: int, width: int) -> np.ndarray:
    """The affine map (2, 3) from a face's own frame to a picture of this size. Raises NotAFace."""
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
    """A soft mask (H, W) float32 in [0, 1] of an outline that the landmarks carry onto the face.

    feather: the blur's standard deviation, in units of a face's own frame. After Face X-ray (arXiv
    1912.13458), which takes the hull of 68 landmarks.
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
    """How large a face is: pixels from between the eyes to the middle of the mouth."""
    return float(np.hypot(*(landmarks[3:].mean(axis=0) - landmarks[:2].mean(axis=0))))


def shift_channels(picture: np.ndarray, shift: np.ndarray, contrast: float = 1.0) -> np.ndarray:
    """Stretch the channels by `contrast` around the middle, then add `shift` (3,) grey levels."""
    levels = 128 + contrast * (np.arange(256)[:, None] - 128.0) + shift
    return cv2.LUT(picture, np.clip(levels, 0, 255).round().astype(np.uint8)[None])


def lose_detail(picture: np.ndarray, detail: float) -> np.ndarray:
    """Shrink a picture to `detail` of its size and enlarge it again, as a small generator does."""
    if not 0 < detail <= 1:
        raise ValueError(f"detail is a share of the size, above 0 and at most 1, got {detail}")
    height, width = picture.shape[:2]
    small = (max(round(width * detail), 2), max(round(height * detail), 2))
    shrunk = cv2.resize(picture, small, interpolation=cv2.INTER_AREA)
    return cv2.resize(shrunk, (width, height), interpolation=cv2.INTER_CUBIC)


def blend(
    target: np.ndarray, donor: np.ndarray, weights: np.ndarray, opacity: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Lay `donor` over `target` by `opacity` times `weights` (H, W); return (picture, mask)."""
    mixed = target + opacity * weights[..., None] * (donor.astype(np.float32) - target)
    return np.clip(mixed, 0, 255).round().astype(np.uint8), np.ceil(weights * 255).astype(np.uint8)


def fit_to(
    donor: np.ndarray, donor_landmarks: np.ndarray, landmarks: np.ndarray, height: int, width: int
) -> np.ndarray:
    """Warp the donor's picture so that its landmarks fall on `landmarks`, to height x width."""
    warp = affine_between(donor_landmarks, landmarks)
    scale = float(np.sqrt(abs(np.linalg.det(warp[:, :2]))))
    if scale < 0.8:  # plain sampling would alias, which is not a trait of fakes
        donor = cv2.resize(donor, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        warp = affine_between(donor_landmarks * scale, landmarks)
    return cv2.warpAffine(donor, warp, (width, height), borderMode=cv2.BORDER_REFLECT_101)


def self_blend(
    picture: np.ndarray, landmarks: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Blend a face with a slightly changed copy of itself: a fake without a second face.

    After self-blended images (arXiv 2204.08376): the copy's colours are shifted, it is blurred or
    sharpened, resized by a few percent and moved a little. (The paper changes either the copy or
    its surroundings. Here always the copy, so that outside the mask nothing changes.)
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
