"""The sample: a miniature DFDC, filmed from two public-domain portraits in installed packages.

Eileen Collins (NASA) and Grace Hopper (US Navy) stand before a synthetic camera; then faces are
swapped or re-warped, or get another mouth. A score on it says nothing about deepfakes in the wild.
Nothing else should give a fake away: it shares its original's camera path, noise and codec, and
each face is swapped in as often as it is filmed.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from string import ascii_lowercase

import cv2
import numpy as np
from PIL import Image

from dfdc_lib.geometry import move_points
from dfdc_lib.jobs import Lost, run_jobs
from dfdc_lib.rehearsal.film import write_video
from dfdc_lib.rehearsal.manipulate import displace, eyes_to_mouth, replace_region
from dfdc_lib.store import appear_whole, read_json, write_json

VERSION = 2  # raise it when the same settings would give other pictures

PEOPLE = ("collins", "hopper")
# Five landmarks of each portrait, in its pixels, as MTCNN finds them.
LANDMARKS = {
    "collins": [[204.7, 101.7], [246.9, 103.6], [225.9, 128.8], [202.4, 139.9], [245.0, 141.3]],
    "hopper": [[221.4, 192.7], [309.4, 187.9], [268.6, 238.6], [231.5, 278.5], [305.9, 274.1]],
}
# (width, height) of frames: they cover each branch of the slides' resize rule.
SIZES = [(480, 270), (270, 480), (400, 300), (480, 360)]
SIZES += [(256, 256), (640, 360), (360, 480), (540, 300)]
LARGE_SIZES = [(1280, 720), (1920, 1080)]
METHOD_PAIRS = [("swap", "rewarp"), ("mouth", "rewarp")]
QUALITIES = (19, 25)  # x264's constant rate factor, drawn alike for originals and fakes
# A frame, or what the camera pans over; and each person's landmarks (5, 2) in it.
Scene = tuple[np.ndarray, list[np.ndarray]]
# A portrait, its landmarks, and the affine map (2, 3) from it to the scene.
Actor = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Shot:
    """How an original is filmed. The same values give the same frames."""

    seed: int
    identities: tuple[str, ...]
    width: int
    height: int
    n_frames: int
    crf: int
    leaves_frame: bool = False
    crosses: bool = False  # two people change places, the first one in front


@dataclass(frozen=True)
class Fake:
    """How a fake is made from a shot."""

    seed: int
    method: str  # "swap", "mouth" or "rewarp"
    strength: float  # from 0, barely visible, to 1, crude
    crf: int


@cache
def portrait(identity: str) -> np.ndarray:
    """Load a portrait (H, W, 3) uint8 RGB from the package that ships it."""
    if identity == "collins":
        from skimage.data import astronaut

        return astronaut()
    from matplotlib.cbook import get_sample_data

    return np.array(Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)))


def pose(identity: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Relight, reshape and perhaps mirror a portrait; return (picture, landmarks)."""
    picture, landmarks = portrait(identity), np.array(LANDMARKS[identity])
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


def prepare_scene(shot: Shot, rng: np.random.Generator) -> tuple[np.ndarray, list[Actor]]:
    """A blurred backdrop, float32, 1.4 times the frame's size, and the cast before it."""
    width, height = round(1.4 * shot.width), round(1.4 * shot.height)
    small = cv2.resize(portrait(shot.identities[0]), (32, 32), interpolation=cv2.INTER_AREA)
    blurred = cv2.GaussianBlur(relight(small, rng), (0, 0), 2)
    canvas = cv2.resize(blurred, (width, height), interpolation=cv2.INTER_CUBIC)
    alone = len(shot.identities) == 1
    # Faces grow more slowly than frames: a 1080p camera stands farther away.
    enlarged = (min(shot.width, shot.height) / 270) ** 0.6
    size = rng.uniform(0.11, 0.17) * (1 if alone else 0.8) * 270 * enlarged
    cast = []
    for identity, across in zip(shot.identities, (0.5,) if alone else (0.32, 0.68), strict=True):
        picture, landmarks = pose(identity, rng)
        if shot.crosses:  # the portrait's background would hide the other person for seconds
            picture, landmarks = cut_column(picture, landmarks)
        scale = size * np.exp(rng.normal(0, 0.05)) / eyes_to_mouth(landmarks)
        off = rng.normal(0, 0.03, 2) * (shot.width, shot.height)
        place = np.array([across * width, 0.45 * height]) + off
        move = np.column_stack([np.eye(2) * scale, place - landmarks.mean(axis=0) * scale])
        cast.append((picture, landmarks, move))
    return canvas.astype(np.float32), cast


def cut_column(picture: np.ndarray, landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Crop a portrait to a column around the face."""
    centre, reach = landmarks[:, 0].mean(), 2 * eyes_to_mouth(landmarks)
    left, right = max(int(centre - reach), 0), int(centre + reach)
    return np.ascontiguousarray(picture[:, left:right]), landmarks - (left, 0)


def set_scene(backdrop: np.ndarray, cast: list[Actor], crossed: float = 0) -> Scene:
    """Draw the cast, the first in front; `crossed`, 0 to 1: how far they have changed places."""
    canvas, people = backdrop.copy(), []
    way = 0.4 * canvas.shape[1] * crossed * np.array([[0, 0, 1], [0, 0, 0]])
    for number, (picture, landmarks, move) in reversed(list(enumerate(cast))):
        move = move - way if number else move + way
        draw_portrait(canvas, picture, move)
        people.append(move_points(landmarks, move))
    return canvas.round().astype(np.uint8), people[::-1]


def draw_portrait(canvas: np.ndarray, picture: np.ndarray, move: np.ndarray) -> None:
    """Draw a portrait with a soft border into a float32 canvas, through an affine map."""
    scale = float(move[0, 0])
    if scale < 0.8:
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        move = np.column_stack([np.eye(2), move[:, 2]])
    height, width = picture.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    border = np.minimum.reduce([x, y, width - 1 - x, height - 1 - y]) / (0.12 * width)
    size = canvas.shape[1::-1]
    weights = cv2.warpAffine(np.clip(border, 0, 1), move, size)[..., None]
    style: dict = {"flags": cv2.INTER_CUBIC, "borderMode": cv2.BORDER_REPLICATE}
    moved = cv2.warpAffine(picture, move, size, **style)
    canvas += weights * (moved - canvas)


def wander(n_frames: int, amplitude: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth random curve (n_frames,): three slow waves, about `amplitude` high."""
    time = np.arange(n_frames) / 30
    speeds, phases = rng.uniform(0.3, 1.2, 3), rng.uniform(0, 2 * np.pi, 3)
    return amplitude * np.sin(2 * np.pi * time[:, None] * speeds + phases).mean(axis=1)


def act(scene: Scene, moves: np.ndarray) -> Scene:
    """Let people sway and speak. moves: (people, 3), x, y and mouth, in sizes of the face."""
    picture, people = scene
    moved = []
    for points, (sway_x, sway_y, mouth) in zip(people, moves, strict=True):
        size = eyes_to_mouth(points)
        sway = (sway_x * size, sway_y * size)
        picture, points = displace(picture, points, points.mean(axis=0), 3 * size, sway)
        lips = points[3:].mean(axis=0)
        picture, points = displace(picture, points, lips, 0.9 * size, (0, mouth * size))
        moved.append(points)
    return picture, moved


def camera_path(shot: Shot, rng: np.random.Generator) -> np.ndarray:
    """Zoom, roll and pan as by hand: affine maps (n_frames, 2, 3) from the scene to the frame."""
    n, size = shot.n_frames, np.array([shot.width, shot.height])
    shake = 0.25 if shot.crosses else 1  # steadier where people walk
    zoom = np.exp(wander(n, 0.12 * shake, rng))
    roll = np.radians(rng.normal(0, 4) + wander(n, 5 * shake, rng))
    shift = np.stack([wander(n, 0.12, rng), wander(n, 0.10, rng)], axis=1) * size * shake
    if shot.leaves_frame:
        shift[:, 0] += 0.95 * shot.width * np.clip(np.sin(np.pi * np.arange(n) / n) * 2 - 1, 0, 1)
    cos, sin = np.cos(roll), np.sin(roll)
    turn = np.stack([cos, -sin, sin, cos], axis=1).reshape(n, 2, 2) * zoom[:, None, None]
    centre = 0.7 * size  # of the scene, which is 1.4 times the frame
    return np.concatenate([turn, (size / 2 + shift - turn @ centre)[..., None]], axis=2)


def film(shot: Shot) -> Iterator[Scene]:
    """Yield each frame (H, W, 3) uint8 RGB of a shot, and each person's landmarks in it."""
    rng = np.random.default_rng(shot.seed)
    backdrop, cast = prepare_scene(shot, rng)
    scene, path = set_scene(backdrop, cast), camera_path(shot, rng)
    reach = (0.25, 0.20, 0.22)
    moves = np.array([[wander(shot.n_frames, r, rng) for r in reach] for _ in shot.identities])
    exposure = np.exp(wander(shot.n_frames, 0.15, rng))
    # One field of noise behind a window that jumps: as random to a codec, and far faster.
    grain = rng.standard_normal((shot.height + 128, shot.width + 128, 3), np.float32)
    grain *= np.float32(rng.uniform(2, 5))
    size = (shot.width, shot.height)
    for i, affine in enumerate(path):
        if shot.crosses:
            scene = set_scene(backdrop, cast, i / (shot.n_frames - 1))
        picture, people = act(scene, moves[:, :, i])
        seen = cv2.warpAffine(picture, affine, size, borderMode=cv2.BORDER_REPLICATE)
        x, y = rng.integers(128, size=2)
        noisy = seen * np.float32(exposure[i]) + grain[y : y + shot.height, x : x + shot.width]
        frame = np.clip(noisy, 0, 255).round().astype(np.uint8)
        yield frame, [move_points(landmarks, affine) for landmarks in people]


def falsify(shot: Shot, filmed: list[Scene], fake: Fake) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (frame, mask) with the first person manipulated, the rest bit-identical."""
    rng = np.random.default_rng(fake.seed)
    crude = fake.strength
    look = (0.85 - 0.5 * crude, 1 - 0.5 * crude, 0.45 - 0.3 * crude)  # detail, colour, feather
    region = "mouth" if fake.method == "mouth" else "face"
    donor = pose(other_person(shot.identities[0]), rng)
    # A forger's tracker is a little off, and drifts.
    waves = [wander(len(filmed), 0.03 + 0.08 * crude, rng) for _ in range(10)]
    drift = np.stack(waves, axis=1).reshape(-1, 5, 2)
    for (frame, (landmarks, *_)), off in zip(filmed, drift, strict=True):
        tracked = landmarks + off * eyes_to_mouth(landmarks)
        if fake.method == "rewarp":
            yield replace_region(frame, landmarks, frame, tracked, region, *look)
        else:
            yield replace_region(frame, tracked, *donor, region, *look)


def other_person(identity: str) -> str:
    """The other one of PEOPLE."""
    return PEOPLE[1 - PEOPLE.index(identity)]


def plan(
    n_parts: int, originals_per_part: int, n_frames: int, seed: int
) -> list[tuple[int, Shot, list[Fake]]]:
    """Lay out the data set: the part, the shot and two fakes of each original.

    In each part both people are filmed equally often; in every 4 originals, swapped in so too.
    """
    rng, n_originals = np.random.default_rng(seed), n_parts * originals_per_part

    def draw() -> tuple[int, int]:
        """Draw a seed and a quality."""
        return int(rng.integers(2**31)), int(rng.integers(*QUALITIES, endpoint=True))

    strengths = iter(rng.permutation(np.linspace(0, 1, 2 * n_originals)).tolist())
    result = []
    for i in range(n_originals):
        part, j = divmod(i, originals_per_part)
        identities: tuple[str, ...] = (PEOPLE[j % 2],)
        width, height = SIZES[(j // 2 + part) % len(SIZES)]
        leaves_frame, crosses = (part, j) == (0, 1), (part, j) == (1, 0)
        if j == originals_per_part - 1 and part < len(LARGE_SIZES):
            width, height = LARGE_SIZES[part]
        if j == 0 and part < 2:
            identities, width, height = PEOPLE, 640, 360
        if leaves_frame:
            width, height = 480, 270
        length, (number, crf) = 3 * n_frames if crosses else n_frames, draw()
        shot = Shot(number, identities, width, height, length, crf, leaves_frame, crosses)
        fakes = []
        for method in METHOD_PAIRS[(j // 2) % len(METHOD_PAIRS)]:
            number, crf = draw()
            fakes.append(Fake(number, method, next(strengths), crf))
        result.append((part, shot, fakes))
    return result


def film_group(folder: Path, shot: Shot, fakes: list[Fake], names: list[str]) -> None:
    """Write an original and its fakes as mp4 files of these names, in this order."""
    filmed = list(film(shot))
    write_video(folder / f"{names[0]}.mp4", (frame for frame, _ in filmed), crf=shot.crf)
    for fake, name in zip(fakes, names[1:], strict=True):
        frames = (frame for frame, _ in falsify(shot, filmed, fake))
        write_video(folder / f"{name}.mp4", frames, crf=fake.crf)


def make_sample(
    out: Path,
    n_parts: int = 4,
    originals_per_part: int = 16,
    n_frames: int = 48,
    seed: int = 0,
    workers: int = 2,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Make the sample in DFDC's layout; sample.json says how each video was made.

    The same arguments give the same pictures; a folder made with them is kept. workers: as in
    `run_jobs`. Raises FileExistsError where `out` holds anything else.
    """
    out, settings = Path(out), {"version": VERSION, "n_parts": n_parts}
    settings |= {"originals_per_part": originals_per_part, "n_frames": n_frames, "seed": seed}
    kept = out / "sample.json"
    if kept.is_file() and read_json(kept).get("settings") == settings:
        return out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} holds something else: remove it, or name a new folder")
    groups = plan(n_parts, originals_per_part, n_frames, seed)
    shape = len(groups), 3, 10  # an original and two fakes; ten letters, as DFDC names its videos
    letters = np.random.default_rng([seed, 1]).choice(list(ascii_lowercase), shape)
    jobs, recipes = [], {}
    parts: dict[Path, dict] = defaultdict(dict)  # a part's folder → its metadata.json
    with appear_whole(out) as folder:
        for (part, shot, fakes), spelled in zip(groups, letters, strict=True):
            where, names = folder / f"dfdc_train_part_{part}", ["".join(name) for name in spelled]
            jobs.append((where, shot, fakes, names))
            original = f"{names[0]}.mp4"
            parts[where][original] = {"label": "REAL", "split": "train", "original": None}
            recipes[names[0]] = {"shot": asdict(shot)}
            for name, fake in zip(names[1:], fakes, strict=True):
                entry = {"label": "FAKE", "split": "train", "original": original}
                parts[where][f"{name}.mp4"] = entry
                recipes[name] = {"shot": asdict(shot), "fake": asdict(fake)}
        for where, entries in parts.items():
            where.mkdir(parents=True)
            write_json(where / "metadata.json", entries)
        jobs.sort(key=lambda job: -job[1].width * job[1].height)  # the largest first
        for done, (_, result) in enumerate(run_jobs(film_group, jobs, workers), 1):
            if isinstance(result, Lost):
                raise OSError(f"an original could not be filmed: {result.reason}")
            progress(done, len(jobs))
        write_json(folder / "sample.json", {"settings": settings, "videos": recipes})
    return out


def read_recipes(data: Path) -> dict[str, dict]:
    """How each video of a sample was made: video_id → {"shot": …} and, for a fake, {"fake": …}."""
    return read_json(Path(data) / "sample.json")["videos"]


def read_methods(data: Path) -> dict[str, str]:
    """How each fake of a sample was made: video_id → "swap", "mouth" or "rewarp"."""
    recipes = read_recipes(data).items()
    return {name: recipe["fake"]["method"] for name, recipe in recipes if "fake" in recipe}


def credit(source: Path) -> str:
    """Caption pictures from a data folder or a video: whose they are, and who may see them."""
    source = Path(source).resolve()
    if any((folder / "sample.json").exists() for folder in (source, *source.parents[:2])):
        return "Synthetic pictures; portraits: NASA and US Navy, public domain."
    terms = "pass them on, or a page that shows them, only where their terms allow it."
    return f"Pictures from “{source.name}”: {terms} DFDC's do not."


def changed_regions(recipe: dict) -> list[np.ndarray]:
    """The true mask (H, W) uint8 of each frame of a fake, made again without compression."""
    shot, fake = Shot(**recipe["shot"]), Fake(**recipe["fake"])
    return [mask for _, mask in falsify(shot, list(film(shot)), fake)]
