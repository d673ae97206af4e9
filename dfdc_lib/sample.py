"""The sample: a miniature DFDC, filmed from two public-domain portraits that ship inside installed packages.

A rehearsal stage. Two people (Eileen Collins, NASA; Grace Hopper, US Navy) stand before a synthetic camera; their
faces are then swapped, re-warped or given another mouth. It has the data set's layout and its difficulties, and it
needs no download. Every picture of it is synthetic, and a score on it is no evidence about deepfakes in the wild.

What must not tell a fake from an original is made equal: both come from the same camera path with the same noise and
go through the same encoder, and each face appears as often swapped in as filmed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from dfdc_lib.geometry import move_points
from dfdc_lib.manipulate import displace, eyes_to_mouth, replace_region
from dfdc_lib.paths import appear_whole, read_json, write_json
from dfdc_lib.tasks import run_tasks
from dfdc_lib.video import write_video

VERSION = 2  # raise it when the same settings would give other pictures

PEOPLE = ("collins", "hopper")
# Five landmarks of each portrait, in its pixels, as MTCNN finds them.
LANDMARKS = {
    "collins": [[204.7, 101.7], [246.9, 103.6], [225.9, 128.8], [202.4, 139.9], [245.0, 141.3]],
    "hopper": [[221.4, 192.7], [309.4, 187.9], [268.6, 238.6], [231.5, 278.5], [305.9, 274.1]],
}
# (width, height) of the frames: each branch of the slides' resize rule appears.
SIZES = [(480, 270), (270, 480), (400, 300), (480, 360), (256, 256), (640, 360), (360, 480), (540, 300)]
LARGE_SIZES = [(1280, 720), (1920, 1080)]
METHOD_PAIRS = [("swap", "rewarp"), ("mouth", "rewarp")]
QUALITIES = (19, 25)  # x264's constant rate factor, drawn for each video whatever its label


class Person(NamedTuple):
    """Someone on the stage."""

    identity: str
    landmarks: np.ndarray  # (5, 2) in pixels of the stage


class Stage(NamedTuple):
    """What the camera films: a picture (H, W, 3) uint8 RGB, larger than the frame, and who stands in it."""

    picture: np.ndarray
    people: list[Person]


class Cast(NamedTuple):
    """Someone in costume, before stepping onto the stage."""

    identity: str
    picture: np.ndarray  # (h, w, 3) uint8 RGB
    landmarks: np.ndarray  # (5, 2) in pixels of that picture
    move: np.ndarray  # (2, 3) affine map to the stage


@dataclass(frozen=True)
class Shot:
    """How one original is filmed. Everything follows from these values: the same shot gives the same frames."""

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
    """How one fake is made from a shot. `strength` runs from 0, barely visible, to 1, crude."""

    seed: int
    method: str
    strength: float
    crf: int


@cache
def portrait(identity: str) -> np.ndarray:
    """Load a portrait (H, W, 3) uint8 RGB from the package that carries it."""
    if identity == "collins":
        from skimage.data import astronaut

        return astronaut()
    from matplotlib.cbook import get_sample_data

    path = get_sample_data("grace_hopper.jpg", asfileobj=False)
    return cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def pose(identity: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A portrait in another light: mirrored or not, its head a little reshaped. Returns (picture, landmarks)."""
    picture, landmarks = portrait(identity), np.array(LANDMARKS[identity])
    if rng.random() < 0.5:
        picture = np.ascontiguousarray(picture[:, ::-1])
        landmarks = (landmarks * (-1, 1) + (picture.shape[1] - 1, 0))[[1, 0, 2, 4, 3]]
    size = eyes_to_mouth(landmarks)
    for _ in range(4):
        centre = landmarks.mean(axis=0) + rng.normal(0, 1.2 * size, 2)
        picture, landmarks = displace(picture, landmarks, centre, 2.5 * size, rng.normal(0, 0.10 * size, 2))
    return relight(picture, rng), landmarks


def relight(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Light from one side, another white balance and gamma."""
    height, width = picture.shape[:2]
    slope = rng.normal(0, 0.35, 2)
    y, x = np.linspace(-0.5, 0.5, height)[:, None], np.linspace(-0.5, 0.5, width)[None]
    light = np.exp(slope[0] * x + slope[1] * y)[..., None] * np.exp(rng.normal(0, 0.08, 3))
    lit = (picture / 255) ** np.exp(rng.normal(0, 0.2)) * light
    return (np.clip(lit, 0, 1) * 255).astype(np.uint8)


def prepare_stage(shot: Shot, rng: np.random.Generator) -> tuple[np.ndarray, list[Cast]]:
    """A backdrop of blurred colours, 1.4 times as wide and high as the frame, and who will stand before it."""
    width, height = round(1.4 * shot.width), round(1.4 * shot.height)
    backdrop = relight(cv2.resize(portrait(shot.identities[0]), (32, 32), interpolation=cv2.INTER_AREA), rng)
    blurred = cv2.GaussianBlur(backdrop, (0, 0), 2)
    canvas = cv2.resize(blurred, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    alone = len(shot.identities) == 1
    # Faces grow more slowly than frames: who films in 1080p stands farther away, and the portraits are not larger.
    size = rng.uniform(0.11, 0.17) * (1 if alone else 0.8) * 270 * (min(shot.width, shot.height) / 270) ** 0.6
    cast = []
    for identity, across in zip(shot.identities, (0.5,) if alone else (0.32, 0.68), strict=True):
        picture, landmarks = pose(identity, rng)
        if shot.crosses:  # without the portrait's background, which would hide the other person for seconds
            picture, landmarks = cut_column(picture, landmarks)
        scale = size * np.exp(rng.normal(0, 0.05)) / eyes_to_mouth(landmarks)
        place = np.array([across * width, 0.45 * height]) + rng.normal(0, 0.03, 2) * (shot.width, shot.height)
        move = np.column_stack([np.eye(2) * scale, place - landmarks.mean(axis=0) * scale])
        cast.append(Cast(identity, picture, landmarks, move))
    return canvas, cast


def cut_column(picture: np.ndarray, landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keep the part of a portrait that is not far to the left or right of the face."""
    centre, reach = landmarks[:, 0].mean(), 2 * eyes_to_mouth(landmarks)
    left, right = max(int(centre - reach), 0), int(centre + reach)
    return np.ascontiguousarray(picture[:, left:right]), landmarks - (left, 0)


def set_stage(backdrop: np.ndarray, cast: list[Cast], crossed: float = 0) -> Stage:
    """Draw the cast before the backdrop, the first in front; `crossed` from 0 to 1: how far they changed places."""
    canvas, people = backdrop.copy(), []
    way = 0.4 * canvas.shape[1] * crossed
    for number, (identity, picture, landmarks, move) in reversed(list(enumerate(cast))):
        move = move + np.array([[0, 0, -way if number else way], [0, 0, 0]])
        stand(canvas, picture, move)
        people.insert(0, Person(identity, move_points(landmarks, move)))
    return Stage(canvas.round().astype(np.uint8), people)


def stand(canvas: np.ndarray, picture: np.ndarray, move: np.ndarray) -> None:
    """Draw a portrait on the canvas (float32, changed in place) through an affine map, its border faded out."""
    scale = move[0, 0]
    if scale < 0.8:
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        move = np.column_stack([np.eye(2), move[:, 2]])
    height, width = picture.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    border = np.minimum.reduce([x, y, width - 1 - x, height - 1 - y]) / (0.12 * width)
    size = canvas.shape[1::-1]
    weights = cv2.warpAffine(np.clip(border, 0, 1), move, size)[..., None]
    canvas += weights * (
        cv2.warpAffine(picture, move, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE) - canvas
    )


def wander(n_frames: int, amplitude: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth random curve (n_frames,): three slow waves of random phase, about `amplitude` high."""
    time = np.arange(n_frames) / 30
    speeds, phases = rng.uniform(0.3, 1.2, 3), rng.uniform(0, 2 * np.pi, 3)
    return amplitude * np.sin(2 * np.pi * time[:, None] * speeds + phases).mean(axis=1)


def act(stage: Stage, moves: np.ndarray) -> Stage:
    """Let each person sway the head and move the mouth: `moves` (people, 3) as shares of the face's size."""
    picture, people = stage
    moved = []
    for person, (sway_x, sway_y, mouth) in zip(people, moves, strict=True):
        size, landmarks = eyes_to_mouth(person.landmarks), person.landmarks
        picture, landmarks = displace(
            picture, landmarks, landmarks.mean(axis=0), 3 * size, (sway_x * size, sway_y * size)
        )
        picture, landmarks = displace(picture, landmarks, landmarks[3:].mean(axis=0), 0.9 * size, (0, mouth * size))
        moved.append(person._replace(landmarks=landmarks))
    return Stage(picture, moved)


def camera_path(shot: Shot, rng: np.random.Generator) -> np.ndarray:
    """Affine maps (n_frames, 2, 3) from the stage to the frame: slow zoom, roll and pan, as from a hand.

    Where people walk, the camera is steadier.
    """
    n, size, shake = shot.n_frames, np.array([shot.width, shot.height]), 0.25 if shot.crosses else 1
    zoom, roll = np.exp(wander(n, 0.12 * shake, rng)), np.radians(rng.normal(0, 4) + wander(n, 5 * shake, rng))
    shift = np.stack([wander(n, 0.12, rng), wander(n, 0.10, rng)], axis=1) * size * shake
    if shot.leaves_frame:
        shift[:, 0] += 0.95 * shot.width * np.clip(np.sin(np.pi * np.arange(n) / n) * 2 - 1, 0, 1)
    turn = np.stack([np.cos(roll), -np.sin(roll), np.sin(roll), np.cos(roll)], axis=1).reshape(n, 2, 2)
    turn = turn * zoom[:, None, None]
    centre = 0.7 * size  # of the stage, which is 1.4 times the frame
    return np.concatenate([turn, (size / 2 + shift - turn @ centre)[..., None]], axis=2)


def film(shot: Shot) -> Iterator[tuple[np.ndarray, list[Person]]]:
    """Film a shot: yield each frame (H, W, 3) uint8 RGB with its sensor noise, and the people in frame pixels."""
    rng = np.random.default_rng(shot.seed)
    backdrop, cast = prepare_stage(shot, rng)
    stage, path = set_stage(backdrop, cast), camera_path(shot, rng)
    reach = (0.25, 0.20, 0.22)
    moves = np.array([[wander(shot.n_frames, r, rng) for r in reach] for _ in stage.people])
    exposure = np.exp(wander(shot.n_frames, 0.15, rng))
    # One field of sensor noise, seen through a window that jumps: as random to an encoder, and ten times faster.
    grain = rng.standard_normal((shot.height + 128, shot.width + 128, 3), np.float32) * np.float32(rng.uniform(2, 5))
    for i, affine in enumerate(path):
        if shot.crosses:
            stage = set_stage(backdrop, cast, i / (shot.n_frames - 1))
        acted = act(stage, moves[:, :, i])
        size = (shot.width, shot.height)
        seen = cv2.warpAffine(acted.picture, affine, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        x, y = rng.integers(128, size=2)
        noisy = seen * np.float32(exposure[i]) + grain[y : y + shot.height, x : x + shot.width]
        frame = np.clip(noisy, 0, 255).round().astype(np.uint8)
        yield frame, [p._replace(landmarks=move_points(p.landmarks, affine)) for p in acted.people]


def falsify(filmed: Sequence[tuple[np.ndarray, list[Person]]], fake: Fake) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Manipulate the first person of every filmed frame: yield (frame, mask). The rest stays bit-identical."""
    rng = np.random.default_rng(fake.seed)
    crude = fake.strength
    look = {"detail": 0.85 - 0.5 * crude, "colour": 1 - 0.5 * crude, "feather": 0.45 - 0.3 * crude}
    region = "mouth" if fake.method == "mouth" else "face"
    donor = pose(other_person(filmed[0][1][0].identity), rng)
    # The landmarks that a forger's tracker finds are a little off, and drift.
    drift = np.stack([wander(len(filmed), 0.03 + 0.08 * crude, rng) for _ in range(10)], axis=1).reshape(-1, 5, 2)
    for (frame, people), off in zip(filmed, drift, strict=True):
        landmarks = people[0].landmarks
        tracked = landmarks + off * eyes_to_mouth(landmarks)
        if fake.method == "rewarp":
            yield replace_region(frame, landmarks, frame, tracked, region, **look)
        else:
            yield replace_region(frame, tracked, *donor, region, **look)


def other_person(identity: str) -> str:
    """The one who is not `identity`."""
    return PEOPLE[1 - PEOPLE.index(identity)]


def plan(n_parts: int, originals_per_part: int, n_frames: int, seed: int) -> list[tuple[int, Shot, list[Fake]]]:
    """Lay out the data set: for each original its part, its shot and its fakes.

    Within each part both people are filmed equally often, and with a multiple of 4 originals swapped in equally often.
    """
    rng = np.random.default_rng(seed)

    def draw_seed() -> int:
        return int(rng.integers(2**31))

    def draw_quality() -> int:
        return int(rng.integers(QUALITIES[0], QUALITIES[1] + 1))

    strengths = rng.permutation(np.linspace(0, 1, 2 * n_parts * originals_per_part))
    result = []
    for i in range(n_parts * originals_per_part):
        part, j = divmod(i, originals_per_part)
        width, height = SIZES[(j // 2 + part) % len(SIZES)]
        shot = Shot(draw_seed(), (PEOPLE[j % 2],), width, height, n_frames, draw_quality())
        if j >= originals_per_part - 1 and part < len(LARGE_SIZES):
            shot = replace(shot, width=LARGE_SIZES[part][0], height=LARGE_SIZES[part][1])
        if j == 0 and part < 2:
            shot = replace(shot, identities=(PEOPLE[j], PEOPLE[1 - j]), width=640, height=360)
        if j == 0 and part == 1:
            shot = replace(shot, n_frames=3 * n_frames, crosses=True)
        if j == 1 and part == 0:
            shot = replace(shot, leaves_frame=True, width=480, height=270)
        methods = METHOD_PAIRS[(j // 2) % len(METHOD_PAIRS)]
        drawn = enumerate(methods, 2 * i)
        fakes = [Fake(draw_seed(), method, float(strengths[k]), draw_quality()) for k, method in drawn]
        result.append((part, shot, fakes))
    return result


def draw_names(count: int, seed: int) -> list[str]:
    """Ten random letters each, as DFDC names its videos."""
    rng = np.random.default_rng([seed, 1])
    return ["".join(letters) for letters in rng.choice(list("abcdefghijklmnopqrstuvwxyz"), (count, 10))]


def _film_group(group: tuple[Path, Shot, list[Fake], list[str]]) -> None:
    folder, shot, fakes, names = group
    filmed = list(film(shot))
    write_video(folder / f"{names[0]}.mp4", (frame for frame, _ in filmed), crf=shot.crf)
    for fake, name in zip(fakes, names[1:], strict=True):
        write_video(folder / f"{name}.mp4", (frame for frame, _ in falsify(filmed, fake)), crf=fake.crf)


def make_sample(
    out: Path,
    n_parts: int = 4,
    originals_per_part: int = 16,
    n_frames: int = 48,
    seed: int = 0,
    workers: int = 2,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Make the sample in folder `out`, in DFDC's layout, plus sample.json with how each video was made.

    The same arguments give the same pictures; a folder that was made with them is kept as it is. workers: processes
    that film; 0: none but this one. Returns `out`.
    Raises FileExistsError where `out` holds anything but a sample.
    """
    out, shape = Path(out), {"n_parts": n_parts, "originals_per_part": originals_per_part}
    shape |= {"n_frames": n_frames, "seed": seed}
    settings = {"version": VERSION} | shape
    if (out / "sample.json").is_file() and read_json(out / "sample.json").get("settings") == settings:
        return out
    if out.exists() and not _holds_only_a_sample(out):
        raise FileExistsError(f"{out} holds something else: name a new folder for the sample")
    groups = plan(**shape)
    names = iter(draw_names(sum(1 + len(fakes) for _, _, fakes in groups), seed))
    named = [(part, shot, fakes, [next(names) for _ in range(1 + len(fakes))]) for part, shot, fakes in groups]
    with appear_whole(out) as folder:
        for part in range(n_parts):
            (folder / f"dfdc_train_part_{part}").mkdir(parents=True)
            members = [(shot, fakes, ids) for p, shot, fakes, ids in named if p == part]
            write_json(folder / f"dfdc_train_part_{part}" / "metadata.json", _metadata(members))
        largest_first = sorted(named, key=lambda group: -group[1].width * group[1].height)
        tasks = [(folder / f"dfdc_train_part_{part}", *rest) for part, *rest in largest_first]
        for done, _ in enumerate(run_tasks(_film_group, tasks, workers), 1):
            progress(done, len(tasks))
        write_json(folder / "sample.json", {"settings": settings, "videos": _recipes(named)})
    return out


def _holds_only_a_sample(folder: Path) -> bool:
    """True for an empty folder, and for one whose every entry is a sample's own: only these may be replaced."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    names = [path.name for path in folder.iterdir()]
    own = all(name == "sample.json" or name.startswith("dfdc_train_part_") for name in names)
    return not names or (own and "sample.json" in names)


def _metadata(members: list[tuple[Shot, list[Fake], list[str]]]) -> dict:
    entries = {}
    for _, fakes, names in members:
        entries[f"{names[0]}.mp4"] = {"label": "REAL", "split": "train", "original": None}
        for name, _ in zip(names[1:], fakes, strict=True):
            entries[f"{name}.mp4"] = {"label": "FAKE", "split": "train", "original": f"{names[0]}.mp4"}
    return entries


def _recipes(named: list[tuple[int, Shot, list[Fake], list[str]]]) -> dict:
    recipes = {}
    for _, shot, fakes, names in named:
        recipes[names[0]] = {"shot": asdict(shot)}
        recipes |= {
            name: {"shot": asdict(shot), "fake": asdict(fake)} for name, fake in zip(names[1:], fakes, strict=True)
        }
    return recipes


def read_recipes(data: Path) -> dict[str, dict]:
    """How each video of a sample was made: video_id → {"shot": …} and, for a fake, {"fake": method, strength, …}."""
    return read_json(Path(data) / "sample.json")["videos"]


def read_methods(data: Path) -> dict[str, str]:
    """How each fake of a sample was made: video_id → "swap", "mouth" or "rewarp"."""
    return {video_id: recipe["fake"]["method"] for video_id, recipe in read_recipes(data).items() if "fake" in recipe}


def credit(source: Path) -> str:
    """A caption for pictures of a data folder, or of one video: where they come from, and who may see them."""
    source = Path(source).resolve()
    if any((folder / "sample.json").exists() for folder in (source, *source.parents[:2])):
        return "Synthetic pictures; portraits: NASA and US Navy, public domain."
    terms = "pass them on, or a page that shows them, only where their terms allow it. DFDC's do not."
    return f"Pictures from “{source.name}”: {terms}"


def identity_seen(recipe: dict) -> str:
    """Whose face a viewer sees in the (first person of the) video: the other one's after a swap."""
    filmed = recipe["shot"]["identities"][0]
    swapped = recipe.get("fake", {}).get("method") == "swap"
    return other_person(filmed) if swapped else filmed


def changed_regions(recipe: dict) -> list[np.ndarray]:
    """Where a fake's recipe changed each frame: masks (H, W) uint8, 0 where the frame was left bit-identical.

    The frames are made once more, before any compression: this is the truth that a measured mask can be held against.
    """
    shot = Shot(**recipe["shot"] | {"identities": tuple(recipe["shot"]["identities"])})
    return [mask for _, mask in falsify(list(film(shot)), Fake(**recipe["fake"]))]
