"""Make fakes: replace a face, or a part of one, in a picture. Pure functions; the randomness is the caller's.

Pictures are (H, W, 3) uint8 RGB. Landmarks are (5, 2) in pixels: left eye, right eye, nose, left and right mouth
corner. Each manipulation returns the new picture and its mask (H, W) uint8: 0 where the picture is bit-identical to
what came in, 255 where it was replaced altogether.
"""

import cv2
import numpy as np

from dfdc_lib.geometry import affine_between

# Ellipses that follow the face: (centre between the eyes and the mouth: 0 at the eyes, 1 at the mouth; half width and
# half height in units of the distance between the eyes and the mouth). Measured on the two portraits of the sample.
REGIONS = {"face": (0.55, 1.05, 1.30), "mouth": (1.0, 0.72, 0.50), "eyes": (0.0, 1.05, 0.45)}


def region_mask(landmarks: np.ndarray, height: int, width: int, region: str = "face", feather: float = 0.3):
    """Return a soft ellipse (H, W) float32 in [0, 1] over a region of the face, turned with the head.

    `feather` is the share of the radius over which it falls from 1 to 0; it is exactly 0 outside the ellipse.
    """
    if region not in REGIONS:
        raise ValueError(f"unknown region {region!r}: choose one of {', '.join(REGIONS)}")
    along, half_width, half_height = REGIONS[region]
    eyes, mouth = landmarks[:2].mean(axis=0), landmarks[3:].mean(axis=0)
    down = mouth - eyes
    length = float(np.hypot(*down))
    if length < 1:
        raise ValueError(f"these landmarks are not a face, eyes and mouth coincide: {landmarks.tolist()}")
    down = down / length
    y, x = np.mgrid[:height, :width].astype(np.float32) - (eyes + along * length * down)[::-1, None, None]
    u = (x * down[1] - y * down[0]) / (half_width * length)
    v = (x * down[0] + y * down[1]) / (half_height * length)
    radius = np.sqrt(u * u + v * v)
    return np.clip((1 - radius) / max(feather, 1e-6), 0, 1).astype(np.float32)


def transfer_colour(picture: np.ndarray, reference: np.ndarray, where: np.ndarray, amount: float = 1.0):
    """Give `picture` the colour mean and spread of `reference`, both measured where `where` (H, W) is true, in Lab.

    `amount` 0 leaves it as it is, 1 matches fully. After Reinhard et al., Color Transfer between Images, 2001.
    """
    if not where.any():
        return picture
    ours, theirs = (cv2.cvtColor(p, cv2.COLOR_RGB2LAB) for p in (picture, reference))
    our_mean, our_std, their_mean, their_std = (
        m.ravel() for lab in (ours, theirs) for m in cv2.meanStdDev(lab, mask=where.astype(np.uint8))
    )
    # One table of 256 values a channel: value + amount * (matched value - value).
    values = np.arange(256)[:, None]
    matched = (values - our_mean) * (their_std / np.maximum(our_std, 1e-6)) + their_mean
    table = np.clip(values + amount * (matched - values), 0, 255).round().astype(np.uint8)
    return cv2.cvtColor(cv2.LUT(ours, table[None]), cv2.COLOR_LAB2RGB)


def lose_detail(picture: np.ndarray, detail: float) -> np.ndarray:
    """Shrink a picture to `detail` (0 to 1) of its size and enlarge it again: what a small generator does to a face."""
    if not 0 < detail <= 1:
        raise ValueError(f"detail is a share of the size, above 0 and at most 1, got {detail}")
    height, width = picture.shape[:2]
    small = (max(round(width * detail), 2), max(round(height * detail), 2))
    return cv2.resize(
        cv2.resize(picture, small, interpolation=cv2.INTER_AREA), (width, height), interpolation=cv2.INTER_CUBIC
    )


def blend(target: np.ndarray, donor: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lay `donor` over `target` by `weights` (H, W) in [0, 1]; return (picture, mask)."""
    mixed = target + weights[..., None] * (donor.astype(np.float32) - target)
    return np.clip(mixed, 0, 255).round().astype(np.uint8), np.ceil(weights * 255).astype(np.uint8)


def fit_to(donor: np.ndarray, donor_landmarks: np.ndarray, landmarks: np.ndarray, height: int, width: int):
    """Warp the donor's picture so that its landmarks fall on `landmarks` of a picture of height x width.

    A donor that is too large is first shrunk by area: plain sampling would alias, and aliasing is not a trait of fakes.
    """
    warp = affine_between(donor_landmarks, landmarks)
    scale = float(np.sqrt(abs(np.linalg.det(warp[:, :2]))))
    if scale < 0.8:
        donor = cv2.resize(donor, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        warp = affine_between(donor_landmarks * scale, landmarks)
    return cv2.warpAffine(donor, warp, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def _window(landmarks: np.ndarray, height: int, width: int) -> tuple[slice, slice]:
    """The part of a picture that any region's ellipse can reach."""
    reach = 2.2 * np.hypot(*(landmarks[3:].mean(axis=0) - landmarks[:2].mean(axis=0)))
    (x0, y0), (x1, y1) = landmarks.min(axis=0) - reach, landmarks.max(axis=0) + reach
    return slice(max(int(y0), 0), min(int(y1) + 1, height)), slice(max(int(x0), 0), min(int(x1) + 1, width))


def replace_region(
    picture: np.ndarray,
    landmarks: np.ndarray,
    donor: np.ndarray,
    donor_landmarks: np.ndarray,
    region: str = "face",
    detail: float = 1.0,
    colour: float = 1.0,
    feather: float = 0.3,
) -> tuple[np.ndarray, np.ndarray]:
    """Replace a region of a face by the same region of the donor's picture, warped to fit the five landmarks.

    The donor may be another person (a face swap) or the picture itself (a face that was cut out, warped and put
    back, as in arXiv 1811.00656). `detail` is the resolution that survives, `colour` how far the donor's colours are
    matched, `feather` how soft the rim is. A face that lies outside the picture changes nothing.
    """
    height, width = picture.shape[:2]
    rows, columns = _window(landmarks, height, width)
    result, mask = picture.copy(), np.zeros((height, width), np.uint8)
    target = picture[rows, columns]
    if target.size == 0:
        return result, mask
    inside = landmarks - (columns.start, rows.start)
    warped = fit_to(donor, donor_landmarks, inside, *target.shape[:2])
    weights = region_mask(inside, *target.shape[:2], region, feather)
    warped = transfer_colour(lose_detail(warped, detail), target, weights > 0.5, colour)
    result[rows, columns], mask[rows, columns] = blend(target, warped, weights)
    return result, mask


def displace(picture: np.ndarray, landmarks: np.ndarray, centre, radius: float, shift) -> tuple[np.ndarray, np.ndarray]:
    """Push the part of a picture around `centre` by `shift` (dx, dy), fading out smoothly at `radius`.

    Returns the picture and the landmarks, moved along. With small shifts it is a head that sways or a mouth that
    opens: what a still portrait needs to pass for a film.
    """
    height, width = picture.shape[:2]
    x0, y0 = (max(int(c - radius), 0) for c in centre)
    x1, y1 = min(int(centre[0] + radius) + 1, width), min(int(centre[1] + radius) + 1, height)
    y, x = np.mgrid[y0:y1, x0:x1].astype(np.float32)

    def strength(px, py):
        squared = ((px - centre[0]) ** 2 + (py - centre[1]) ** 2) / radius**2
        return np.clip(1 - squared, 0, 1) ** 2

    push = strength(x, y).astype(np.float32)
    result = picture.copy()
    result[y0:y1, x0:x1] = cv2.remap(
        picture,
        x - push * np.float32(shift[0]),
        y - push * np.float32(shift[1]),
        cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    moved = landmarks + strength(landmarks[:, 0], landmarks[:, 1])[:, None] * np.asarray(shift)
    return result, moved
