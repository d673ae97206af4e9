"""Make fakes: replace a face, or a part of one; or add an artifact that the slides name.

Pictures and landmarks are as in `blending`. A manipulation returns (picture, mask), the mask (H, W)
uint8: 0 where the picture stays bit-identical, 255 where the new one has full weight. strength:
from 0, no change, to 1, crude. Notebook 11 shows them.
"""

import cv2
import numpy as np
from numpy.random import Generator

from dfdc_lib.blending import (
    FACE,
    INNER,
    OUTLINE,
    blend,
    deform,
    eyes_to_mouth,
    face_frame,
    fit_to,
    hull_mask,
    lose_detail,
    shift_channels,
)
from dfdc_lib.geometry import affine_between
from dfdc_lib.rehearsal.forensics import high_pass, recompress

# Ellipses: centre (0 at the eyes, 1 at the mouth), half width and half height, in units of the
# distance from eyes to mouth. Measured on the sample's two portraits.
REGIONS = {"face": (0.55, 1.05, 1.30), "mouth": (1.0, 0.72, 0.50), "eyes": (0.0, 1.05, 0.45)}
REGIONS["oval"] = (0.6, 0.9, 1.15)  # what an autoencoder draws: brow to chin, within the ears


def region_mask(
    landmarks: np.ndarray, height: int, width: int, region: str = "face", feather: float = 0.3
) -> np.ndarray:
    """A soft ellipse (H, W) float32 over one of REGIONS, turned with the head.

    feather: the share of the radius over which it falls from 1 to exactly 0.
    """
    along, half_width, half_height = REGIONS[region]
    eyes, mouth = landmarks[:2].mean(axis=0), landmarks[3:].mean(axis=0)
    length = eyes_to_mouth(landmarks)
    down = (mouth - eyes) / length
    x0, y0 = eyes + along * length * down
    y, x = np.mgrid[:height, :width].astype(np.float32)
    y, x = y - y0, x - x0
    u = (x * down[1] - y * down[0]) / (half_width * length)
    v = (x * down[0] + y * down[1]) / (half_height * length)
    radius = np.sqrt(u * u + v * v)
    return np.clip((1 - radius) / max(feather, 1e-6), 0, 1).astype(np.float32)


def transfer_colour(
    picture: np.ndarray, reference: np.ndarray, where: np.ndarray, amount: float = 1.0
) -> np.ndarray:
    """Give `picture` the mean and the spread of the reference's colours `where` (H, W), in Lab.

    amount: from 0, no change, to 1. After Reinhard et al., Color Transfer between Images, 2001.
    """
    if not where.any():
        return picture
    ours, theirs = (cv2.cvtColor(p, cv2.COLOR_RGB2LAB) for p in (picture, reference))
    some: np.ndarray = where.astype(np.uint8)
    our_mean, our_std = (m.ravel() for m in cv2.meanStdDev(ours, mask=some))
    their_mean, their_std = (m.ravel() for m in cv2.meanStdDev(theirs, mask=some))
    values = np.arange(256)[:, None]
    matched = (values - our_mean) * (their_std / np.maximum(our_std, 1e-6)) + their_mean
    table = np.clip(values + amount * (matched - values), 0, 255).round().astype(np.uint8)
    return cv2.cvtColor(cv2.LUT(ours, table[None]), cv2.COLOR_LAB2RGB)


def match_grain(
    picture: np.ndarray, reference: np.ndarray, where: np.ndarray, amount: float, rng: Generator
) -> np.ndarray:
    """Add noise until the finest texture `where` (H, W) is as strong as the reference's.

    amount: from 0, no change, to 1.
    """
    if amount == 0 or not where.any():
        return picture
    ours, theirs = (1.48 * np.median(np.abs(high_pass(p)[where])) for p in (picture, reference))
    # White noise in three channels, made grey and high-passed, keeps its strength.
    sigma = amount * np.sqrt(max(theirs**2 - ours**2, 0))
    noisy = picture + rng.standard_normal(picture.shape, np.float32) * np.float32(sigma)
    return np.clip(noisy, 0, 255).round().astype(np.uint8)


def replace_region(
    picture: np.ndarray,
    landmarks: np.ndarray,
    donor: np.ndarray,
    donor_landmarks: np.ndarray,
    region: str = "face",
    detail: float = 1.0,
    colour: float = 1.0,
    feather: float = 0.3,
    grain: float = 0.0,
    seed: int | tuple[int, ...] = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Replace a region of a face by the donor's, warped to fit the five landmarks.

    The donor may be another person or, as in arXiv 1811.00656, the picture itself. detail: see
    `lose_detail`; colour: `transfer_colour`; feather: `region_mask`; grain: `match_grain`.
    """
    result, mask = picture.copy(), np.zeros(picture.shape[:2], np.uint8)
    reach = 2.2 * eyes_to_mouth(landmarks)  # no ellipse reaches farther
    x0, y0 = np.maximum(landmarks.min(axis=0) - reach, 0).astype(int)
    x1, y1 = np.maximum(landmarks.max(axis=0) + reach, -1).astype(int) + 1
    target = picture[y0:y1, x0:x1]
    if target.size == 0:  # the face lies outside
        return result, mask
    inside, (height, width) = landmarks - (x0, y0), target.shape[:2]
    warped = fit_to(donor, donor_landmarks, inside, height, width)
    weights = region_mask(inside, height, width, region, feather)
    inner = weights > 0.5
    warped = transfer_colour(lose_detail(warped, detail), target, inner, colour)
    warped = match_grain(warped, target, inner, grain, np.random.default_rng(seed))
    result[y0:y1, x0:x1], mask[y0:y1, x0:x1] = blend(target, warped, weights)
    return result, mask


def displace(
    picture: np.ndarray, landmarks: np.ndarray, centre, radius: float, shift
) -> tuple[np.ndarray, np.ndarray]:
    """Push (picture, landmarks) by `shift` (dx, dy) at `centre`, fading to nothing at `radius`."""
    centre, last = np.asarray(centre), np.array(picture.shape[1::-1]) - 1
    x0, y0 = np.clip(centre - radius, 0, last).astype(int)
    x1, y1 = np.clip(centre + radius, 0, last).astype(int) + 1
    y, x = np.mgrid[y0:y1, x0:x1].astype(np.float32)

    def strength(px, py):
        squared = ((px - centre[0]) ** 2 + (py - centre[1]) ** 2) / radius**2
        return np.clip(1 - squared, 0, 1) ** 2

    push, result = strength(x, y).astype(np.float32), picture.copy()
    x, y = x - push * np.float32(shift[0]), y - push * np.float32(shift[1])
    edge = cv2.BORDER_REFLECT_101
    result[y0:y1, x0:x1] = cv2.remap(picture, x, y, cv2.INTER_CUBIC, borderMode=edge)
    moved = landmarks + strength(landmarks[:, 0], landmarks[:, 1])[:, None] * np.asarray(shift)
    return result, moved


def check_strength(strength: float) -> None:
    """Raise ValueError unless 0 <= strength <= 1."""
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be from 0 to 1, got {strength}")


def lay(
    picture: np.ndarray, new: np.ndarray, weights: np.ndarray, strength: float, opacity: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Blend; at strength 0 return the picture unchanged and an empty mask."""
    if strength == 0:
        return picture.copy(), np.zeros(picture.shape[:2], np.uint8)
    return blend(picture, new, weights, opacity)


VISUAL_KINDS = ("colour", "mouth", "eyes", "resolution")


def visual_defect(
    picture: np.ndarray,
    landmarks: np.ndarray,
    rng: Generator,
    strength: float = 1.0,
    kind: str = "",
) -> tuple[np.ndarray, np.ndarray]:
    """Change a face's colour or resolution, or blur mouth or eyes: `kind`, or one at random."""
    check_strength(strength)
    kind = kind or str(rng.choice(VISUAL_KINDS))
    if kind not in VISUAL_KINDS:
        raise ValueError(f"unknown kind {kind!r}: choose one of {', '.join(VISUAL_KINDS)}")
    height, width = picture.shape[:2]
    weights = hull_mask(landmarks, height, width)
    if kind in ("mouth", "eyes"):
        weights = region_mask(landmarks, height, width, kind)
    if kind == "colour":
        shift = rng.choice((-1, 1), 3) * rng.uniform(0.5, 1, 3) * 40 * strength
        altered = shift_channels(picture, shift)
    else:
        lost = 0.75 if kind == "resolution" else 0.85
        altered = lose_detail(picture, 1 - lost * strength)
    return lay(picture, altered, weights, strength)


def encoding_difference(
    picture: np.ndarray, landmarks: np.ndarray, rng: Generator, strength: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Compress eyes, nose and mouth once more, as in a face that was saved and pasted back.

    JPEG at a quality from 95 (weak) to 20 (strong), on a grid of blocks that starts elsewhere.
    """
    check_strength(strength)
    height, width = picture.shape[:2]
    weights = hull_mask(landmarks, height, width, INNER, feather=0.05)
    down, right = rng.integers(1, 8, 2)
    moved = cv2.copyMakeBorder(picture, down, 0, right, 0, cv2.BORDER_REFLECT_101)
    altered = recompress(moved, round(95 - 75 * strength))[down:, right:]
    return lay(picture, altered, weights, strength)


def warping_artifact(
    picture: np.ndarray, landmarks: np.ndarray, rng: Generator, strength: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Align a face to a small upright square and warp it back: detail is lost (arXiv 1811.00656).

    The square is as large as the face (weak) down to about a quarter of it (strong). Below strength
    0.25 the old face shows through, because resampling alone removes most of the grain.
    """
    check_strength(strength)
    height, width = picture.shape[:2]
    outline = (OUTLINE, INNER)[rng.integers(2)]
    weights = hull_mask(landmarks, height, width, deform(outline, 0.05, rng), feather=0.08)
    detail = 1 - 0.8 * strength * rng.uniform(0.8, 1)
    unit = max(eyes_to_mouth(landmarks) * detail, 1)  # eyes to mouth in the square, pixels
    align = affine_between(landmarks, FACE * unit + (1.5 * unit, unit))
    soft = cv2.GaussianBlur(picture, (0, 0), 0.5 / detail)  # else shrinking would alias
    aligned = cv2.warpAffine(soft, align, (round(3 * unit),) * 2, borderMode=cv2.BORDER_REFLECT_101)
    back = cv2.invertAffineTransform(align)
    altered = cv2.warpAffine(aligned, back, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    return lay(picture, altered, weights, strength, opacity=min(1, 4 * strength))


def blending_artifact(
    picture: np.ndarray,
    landmarks: np.ndarray,
    donor: np.ndarray,
    donor_landmarks: np.ndarray,
    rng: Generator,
    strength: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Blend in another real face: only the seam gives it away (Face X-ray, arXiv 1912.13458).

    strength: from a wide seam with matched colours to a narrow one between two colours.
    """
    check_strength(strength)
    face_frame(donor_landmarks, *donor.shape[:2])
    height, width = picture.shape[:2]
    outline = deform(OUTLINE, rng.uniform(0.05, 0.2), rng)
    weights = hull_mask(landmarks, height, width, outline, feather=0.2 - 0.17 * strength)
    warped = fit_to(donor, donor_landmarks, landmarks, height, width)
    warped = transfer_colour(warped, picture, weights > 0.5, 1 - 0.5 * strength)
    return lay(picture, warped, weights, strength)
