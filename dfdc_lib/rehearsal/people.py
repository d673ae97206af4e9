"""The sample's cast: four people made from two public-domain portraits, who sway and speak.

Two of them never lived: each has the head of one woman and the face of the other, carefully joined
before anything is filmed. Otherwise "this face in that hair" alone would give every swap away.
Pictures and landmarks are as in `blending`.
"""

from functools import cache

import numpy as np
from PIL import Image

from dfdc_lib.blending import INNER, blend, both_halves, eyes_to_mouth, fit_to, hull_mask
from dfdc_lib.rehearsal.manipulate import displace, transfer_colour

# Five landmarks of each portrait, in its pixels, as MTCNN finds them.
LANDMARKS = {
    "collins": [[204.7, 101.7], [246.9, 103.6], [225.9, 128.8], [202.4, 139.9], [245.0, 141.3]],
    "hopper": [[221.4, 192.7], [309.4, 187.9], [268.6, 238.6], [231.5, 278.5], [305.9, 274.1]],
}
# Each person's head (hair, ears, neck, background) and face, from one portrait each.
PEOPLE = {
    "collins": ("collins", "collins"),
    "hopper": ("hopper", "hopper"),
    "collins-hopper": ("collins", "hopper"),
    "hopper-collins": ("hopper", "collins"),
}
# The right half of what the made-up people borrow, as in `blending.RIGHT`: glasses and all.
BORROWED = [(0.25, -0.45), (0.7, -0.42), (1.05, -0.26), (1.02, 0.0), (0.84, 0.35)]
BORROWED += [(0.74, 0.85), (0.58, 1.25), (0.3, 1.5), (0.0, 1.58)]


@cache
def portrait(name: str) -> np.ndarray:
    """Load a portrait (H, W, 3) uint8 RGB, read-only, from the package that ships it.

    name: of LANDMARKS; "collins" is NASA's, "hopper" the US Navy's. Raises KeyError.
    """
    from matplotlib.cbook import get_sample_data
    from skimage.data import astronaut

    def hopper() -> np.ndarray:
        return np.array(Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)))

    picture = {"collins": astronaut, "hopper": hopper}[name]()
    picture.setflags(write=False)  # the cache hands out one array
    return picture


@cache
def person(identity: str) -> tuple[np.ndarray, np.ndarray]:
    """One of PEOPLE as a portrait, read-only: (picture, landmarks)."""
    head, face = PEOPLE[identity]
    picture, landmarks = portrait(head), np.array(LANDMARKS[head])
    landmarks.setflags(write=False)
    if head == face:
        return picture, landmarks
    height, width = picture.shape[:2]
    borrowed = fit_to(portrait(face), np.array(LANDMARKS[face]), landmarks, height, width)
    skin = hull_mask(landmarks, height, width, INNER, feather=0) > 0.5
    weights = hull_mask(landmarks, height, width, both_halves(BORROWED), feather=0.15)
    joined, _ = blend(picture, transfer_colour(borrowed, picture, skin), weights)
    joined.setflags(write=False)
    return joined, landmarks


def other_face(identity: str) -> str:
    """Name the portrait whose face this one of PEOPLE doesn't have."""
    return "collins" if PEOPLE[identity][1] == "hopper" else "hopper"


def pose(identity: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Relight, reshape and perhaps mirror one of PEOPLE; return (picture, landmarks)."""
    picture, landmarks = person(identity)
    if rng.random() < 0.5:
        picture = np.ascontiguousarray(picture[:, ::-1])
        landmarks = (landmarks * (-1, 1) + (picture.shape[1] - 1, 0))[[1, 0, 2, 4, 3]]
    size = eyes_to_mouth(landmarks)
    for _ in range(4):
        centre = landmarks.mean(axis=0) + rng.normal(0, 1.2 * size, 2)
        shift = rng.normal(0, 0.10 * size, 2)
        picture, landmarks = displace(picture, landmarks, centre, 2.5 * size, shift)
    return relight(picture, rng), landmarks


def relight(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Light a picture from one side; change its white balance and gamma."""
    height, width = picture.shape[:2]
    slope = rng.normal(0, 0.35, 2)
    y, x = np.linspace(-0.5, 0.5, height)[:, None], np.linspace(-0.5, 0.5, width)[None]
    light = np.exp(slope[0] * x + slope[1] * y)[..., None] * np.exp(rng.normal(0, 0.08, 3))
    lit = (picture / 255) ** np.exp(rng.normal(0, 0.2)) * light
    return (np.clip(lit, 0, 1) * 255).astype(np.uint8)


# How far each part of `express` moves, in sizes of the face (from the eyes to the mouth).
REACH = {"sway_x": 0.25, "sway_y": 0.2, "open": 0.3, "smile": 0.15, "brows": 0.1, "blink": 0.15}


def express(
    picture: np.ndarray, landmarks: np.ndarray, moves: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Move a face by warping: (picture, landmarks). moves: (6,), as REACH, in sizes of the face."""
    size = eyes_to_mouth(landmarks)
    sway_x, sway_y, opened, smile, brows, blink = np.asarray(moves) * size
    middle = landmarks.mean(axis=0)
    picture, landmarks = displace(picture, landmarks, middle, 3 * size, (sway_x, sway_y))
    jaw = landmarks[3:].mean(axis=0) + np.array((0, 0.25 * size))
    picture, landmarks = displace(picture, landmarks, jaw, 0.9 * size, (0, opened))
    for side in (0, 1):  # as we see them: left, right
        eye, corner = landmarks[side], landmarks[3 + side]
        outward = (side - 0.5) * smile
        picture, landmarks = displace(picture, landmarks, corner, 0.5 * size, (outward, -smile))
        brow, lid = eye - (0, 0.3 * size), eye - (0, 0.1 * size)
        picture, landmarks = displace(picture, landmarks, brow, 0.5 * size, (0, -brows))
        picture, landmarks = displace(picture, landmarks, lid, 0.3 * size, (0, max(blink, 0)))
    return picture, landmarks
