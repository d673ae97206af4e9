"""Make fakes: replace a face, or a part of one, in a picture. Pure functions; the randomness is the caller's.

Pictures are (H, W, 3) uint8 RGB. Landmarks are (5, 2) in pixels: left eye, right eye, nose, left and right mouth
corner. Each manipulation returns the new picture and its mask (H, W) uint8: 0 where the picture is bit-identical to
what came in, 255 where the new was laid on in full (it may be translucent: the mask says where, not how much).

First come the parts: masks, colour, detail, blending. Then what makes the sample's fakes (`replace_region`). Last the
four families of artifacts that the slides name, each made alone on one crop, and self-blended images; there `strength`
runs from 0, the picture as it came, to 1, crude, and notebook 10 shows them.
"""

import cv2
import numpy as np

from dfdc_lib.forensics import recompress
from dfdc_lib.geometry import affine_between, move_points

# Ellipses that follow the face: (centre between the eyes and the mouth: 0 at the eyes, 1 at the mouth; half width and
# half height in units of the distance between the eyes and the mouth). Measured on the two portraits of the sample.
REGIONS = {"face": (0.55, 1.05, 1.30), "mouth": (1.0, 0.72, 0.50), "eyes": (0.0, 1.05, 0.45)}


# A face's own frame: the origin between the eyes, y down the face, 1 = from the eyes to the mouth. The mean places of
# the five landmarks (after ArcFace's template), the outline from brows to chin that a hull of 68 landmarks has, and
# the part that expression and identity change most: eyes, nose and mouth.
FACE = np.array([(-0.43, 0.0), (0.43, 0.0), (0.0, 0.5), (-0.36, 1.0), (0.36, 1.0)])
OUTLINE_RIGHT = np.array(
    [(0.25, -0.42), (0.62, -0.38), (0.8, -0.15), (0.84, 0.35), (0.76, 0.85), (0.6, 1.25), (0.3, 1.6), (0, 1.7)]
)
INNER_RIGHT = np.array([(0.7, -0.22), (0.7, 0.25), (0.55, 1.05), (0.3, 1.25)])
OUTLINE, INNER = (np.concatenate([half, half * (-1, 1)]) for half in (OUTLINE_RIGHT, INNER_RIGHT))


class NotAFace(ValueError):
    """Landmarks that no face has, or that of a face which leaves the picture."""


def face_frame(landmarks: np.ndarray, height: int, width: int) -> np.ndarray:
    """The affine map (2, 3) from a face's own frame (see FACE) to a picture of height x width.

    Raises NotAFace: not five points, one outside the picture, two in one place, or all on a line.
    """
    landmarks = np.asarray(landmarks, float)
    if landmarks.shape != (5, 2) or not np.isfinite(landmarks).all():
        raise NotAFace(f"a face has five finite landmarks (5, 2), got {landmarks.tolist()}")
    if (landmarks < 0).any() or (landmarks >= (width, height)).any():
        raise NotAFace(f"landmarks outside a picture of {width} x {height}: {landmarks.tolist()}")
    apart = np.hypot(*(landmarks[:, None] - landmarks[None])[np.triu_indices(5, 1)].T)
    frame = affine_between(FACE, landmarks)
    long, short = np.linalg.svd(frame[:, :2], compute_uv=False)
    if apart.min() < 0.5:
        raise NotAFace(f"these landmarks are not a face, two coincide: {landmarks.tolist()}")
    if short < 0.1 * long:
        raise NotAFace(f"these landmarks are not a face, they lie on a line: {landmarks.tolist()}")
    return frame


def hull_mask(
    landmarks: np.ndarray, height: int, width: int, outline: np.ndarray = OUTLINE, feather: float = 0.1,
    deform: float = 0.0, rng: np.random.Generator | None = None,
) -> np.ndarray:  # fmt: skip
    """A soft mask (H, W) float32 in [0, 1] of an outline that is carried onto the face.

    feather: the blur's standard deviation, and deform: how far each of the outline's points is moved at most, at
    random (with `rng`); both in units of the distance between the eyes and the mouth. After Face X-ray (arXiv
    1912.13458), which takes the hull of 68 landmarks; five landmarks carry an average outline instead.
    """
    frame = face_frame(landmarks, height, width)
    if deform and rng is None:
        raise ValueError("to deform an outline at random takes rng, a numpy Generator")
    if deform:
        outline = outline + deform * rng.uniform(-1, 1, outline.shape)
    points = cv2.convexHull(np.round(16 * move_points(outline, frame)).astype(np.int32))  # in sixteenths of a pixel
    mask = np.zeros((height, width), np.float32)
    cv2.fillConvexPoly(mask, points, 1.0, shift=4)
    sigma = feather * float(np.hypot(*frame[:, 1]))
    reach = 2 * round(2 * sigma) + 1
    return np.minimum(cv2.GaussianBlur(mask, (reach, reach), sigma), 1) if reach > 1 else mask


def boundary_map(mask: np.ndarray) -> np.ndarray:
    """Where a picture was blended: 4 M (1 - M) of its mask (H, W) uint8, M = mask / 255. Returns float32 in [0, 1].

    Zero where all is old and where all is new, one where both count alike. Source: Face X-ray, arXiv 1912.13458.
    """
    share = mask.astype(np.float32) / 255
    return 4 * share * (1 - share)


def eyes_to_mouth(landmarks: np.ndarray) -> float:
    """The distance from between the eyes to the middle of the mouth, in pixels: how large a face is."""
    return float(np.hypot(*(landmarks[3:].mean(axis=0) - landmarks[:2].mean(axis=0))))


def region_mask(
    landmarks: np.ndarray, height: int, width: int, region: str = "face", feather: float = 0.3
) -> np.ndarray:
    """Return a soft ellipse (H, W) float32 in [0, 1] over a region of the face, turned with the head.

    `feather` is the share of the radius over which it falls from 1 to 0; it is exactly 0 outside the ellipse. Raises
    ValueError for a region that is not in REGIONS.
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


def transfer_colour(picture: np.ndarray, reference: np.ndarray, where: np.ndarray, amount: float = 1.0) -> np.ndarray:
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


def shift_channels(picture: np.ndarray, shift: np.ndarray, contrast: float = 1.0) -> np.ndarray:
    """Add `shift` (3,), in grey levels, to the channels, after stretching them by `contrast` around the middle."""
    levels = 128 + contrast * (np.arange(256)[:, None] - 128.0) + shift
    return cv2.LUT(picture, np.clip(levels, 0, 255).round().astype(np.uint8)[None])


def lose_detail(picture: np.ndarray, detail: float) -> np.ndarray:
    """Shrink a picture to `detail` (0 to 1) of its size and enlarge it again: what a small generator does to a face."""
    if not 0 < detail <= 1:
        raise ValueError(f"detail is a share of the size, above 0 and at most 1, got {detail}")
    height, width = picture.shape[:2]
    small = (max(round(width * detail), 2), max(round(height * detail), 2))
    return cv2.resize(
        cv2.resize(picture, small, interpolation=cv2.INTER_AREA), (width, height), interpolation=cv2.INTER_CUBIC
    )


def blend(
    target: np.ndarray, donor: np.ndarray, weights: np.ndarray, opacity: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Lay `donor` over `target` by `weights` (H, W) in [0, 1], at most `opacity`; return (picture, mask)."""
    mixed = target + opacity * weights[..., None] * (donor.astype(np.float32) - target)
    return np.clip(mixed, 0, 255).round().astype(np.uint8), np.ceil(weights * 255).astype(np.uint8)


def fit_to(
    donor: np.ndarray, donor_landmarks: np.ndarray, landmarks: np.ndarray, height: int, width: int
) -> np.ndarray:
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
    reach = 2.2 * eyes_to_mouth(landmarks)
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


VISUAL_KINDS = ("colour", "mouth", "eyes", "resolution")


def visual_defect(
    picture: np.ndarray, landmarks: np.ndarray, rng: np.random.Generator, strength: float = 1.0, kind: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """What one sees without a tool: a face of another colour or resolution, teeth or eyes without detail.

    kind: one of VISUAL_KINDS, else drawn.
    """
    _check_strength(strength)
    height, width = picture.shape[:2]
    kind = kind or str(rng.choice(VISUAL_KINDS))
    if kind not in VISUAL_KINDS:
        raise ValueError(f"unknown kind {kind!r}: choose one of {', '.join(VISUAL_KINDS)}")
    if kind in ("mouth", "eyes"):
        face_frame(landmarks, height, width)  # the same errors, whatever the kind
        weights = region_mask(landmarks, height, width, kind)
    else:
        weights = hull_mask(landmarks, height, width)
    if kind == "colour":
        altered = shift_channels(picture, rng.choice((-1, 1), 3) * rng.uniform(0.5, 1, 3) * 40 * strength)
    else:
        altered = lose_detail(picture, 1 - (0.75 if kind == "resolution" else 0.85) * strength)
    return _lay(picture, altered, weights, strength)


def encoding_difference(
    picture: np.ndarray, landmarks: np.ndarray, rng: np.random.Generator, strength: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Eyes, nose and mouth with another compression history than the face around them.

    They went through JPEG once more, at a quality from 95 (weak) down to 20 (strong), on a grid of blocks that starts
    somewhere else: both are what is left of a face that was generated, stored and pasted back.
    """
    _check_strength(strength)
    height, width = picture.shape[:2]
    weights = hull_mask(landmarks, height, width, INNER, feather=0.05)
    down, right = rng.integers(1, 8, 2)
    moved = cv2.copyMakeBorder(picture, down, 0, right, 0, cv2.BORDER_REFLECT_101)
    altered = recompress(moved, round(95 - 75 * strength))[down:, right:]
    return _lay(picture, altered, weights, strength)


def warping_artifact(
    picture: np.ndarray, landmarks: np.ndarray, rng: np.random.Generator, strength: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """A face that was aligned to a small upright square and warped back: its resolution does not fit.

    After arXiv 1811.00656: a generator makes faces of one fixed size, and whatever is pasted has been warped. The
    square's side is a share of the face's own: from all of it (weak) down to about a quarter (strong). Below a strength
    of 0.25 the old face shines through, because resampling alone, however fine, takes most of the grain. The region is
    the whole face or its inner part, drawn; the paper draws it too.
    """
    _check_strength(strength)
    height, width = picture.shape[:2]
    outline = (OUTLINE, INNER)[rng.integers(2)]
    weights = hull_mask(landmarks, height, width, outline, feather=0.08, deform=0.05, rng=rng)
    detail = 1 - 0.8 * strength * rng.uniform(0.8, 1)
    unit = max(eyes_to_mouth(landmarks) * detail, 1)  # eyes to mouth in the square, pixels
    align = affine_between(landmarks, FACE * unit + (1.5 * unit, unit))
    soft = cv2.GaussianBlur(picture, (0, 0), 0.5 / detail)  # else shrinking would alias
    aligned = cv2.warpAffine(soft, align, (round(3 * unit),) * 2, borderMode=cv2.BORDER_REFLECT_101)
    back = cv2.invertAffineTransform(align)
    altered = cv2.warpAffine(aligned, back, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    return _lay(picture, altered, weights, strength, opacity=min(1, 4 * strength))


def blending_artifact(
    picture: np.ndarray, landmarks: np.ndarray, donor: np.ndarray, donor_landmarks: np.ndarray,
    rng: np.random.Generator, strength: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Blend another real face in: nothing is wrong inside it, only the seam gives it away.

    After Face X-ray (arXiv 1912.13458): the donor is fitted to the landmarks, its colours are matched, the hull is
    deformed at random and feathered. `boundary_map` of the mask is the seam. strength: how much the seam shows, from a
    wide one with matched colours to a narrow one between two colours. (0 still changes nothing.)
    """
    _check_strength(strength)
    face_frame(donor_landmarks, *donor.shape[:2])
    height, width = picture.shape[:2]
    feather, deform = 0.2 - 0.17 * strength, rng.uniform(0.05, 0.2)
    weights = hull_mask(landmarks, height, width, feather=feather, deform=deform, rng=rng)
    warped = fit_to(donor, donor_landmarks, landmarks, height, width)
    warped = transfer_colour(warped, picture, weights > 0.5, 1 - 0.5 * strength)
    return _lay(picture, warped, weights, strength)


SELF_BLEND_OPACITIES = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)


def self_blend(
    picture: np.ndarray, landmarks: np.ndarray, rng: np.random.Generator, strength: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Blend a face with a slightly changed copy of itself: a fake that needs no second face and no forger.

    After self-blended images (arXiv 2204.08376): the copy's colours are shifted, it is blurred or sharpened, made a
    few percent larger or smaller and moved a little; hull, feather and opacity are drawn. (The paper changes either
    the copy or its surroundings. Here always the copy, so that outside the mask nothing changes.)
    """
    _check_strength(strength)
    height, width = picture.shape[:2]
    weights = hull_mask(landmarks, height, width, feather=rng.uniform(0.02, 0.15), deform=rng.uniform(0, 0.2), rng=rng)
    copy = shift_channels(picture, strength * rng.uniform(-20, 20, 3), 1 + strength * rng.uniform(-0.1, 0.1))
    soft = lose_detail(copy, 1 - strength * rng.uniform(0.2, 0.75))
    copy = soft if rng.random() < 0.5 else cv2.addWeighted(copy, 2, soft, -1, 0)
    size = eyes_to_mouth(landmarks)
    centre, scale = landmarks.mean(axis=0), 1 + strength * rng.uniform(-0.05, 0.05, 2)
    moved = centre + (landmarks - centre) * scale + strength * rng.uniform(-0.06, 0.06, 2) * size
    copy = fit_to(copy, landmarks, moved, height, width)
    return _lay(picture, copy, weights, strength, opacity=float(rng.choice(SELF_BLEND_OPACITIES)))


def _check_strength(strength: float) -> None:
    if not 0 <= strength <= 1:
        raise ValueError(f"strength runs from 0 to 1, got {strength}")


def _lay(picture, altered, weights, strength: float, opacity: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    if strength == 0:
        return picture.copy(), np.zeros(picture.shape[:2], np.uint8)
    return blend(picture, altered, weights, opacity)
