"""The sample: a miniature DFDC, filmed from two public-domain portraits in installed packages.

People stand in front of a synthetic camera; then their faces are replaced by a picture of the other
one, redrawn by an autoencoder, badly fitted, or given the mouth of another take. A score on it says
nothing about deepfakes in the wild. Nothing else should give a fake away: it is made from what its
original's camera recorded, has its codec and noise, and shows each face on each head equally often.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from string import ascii_lowercase

import numpy as np

from dfdc_lib.blending import eyes_to_mouth
from dfdc_lib.jobs import Lost, run_jobs
from dfdc_lib.rehearsal.autoencoder import ALIGNED, align, draw_as
from dfdc_lib.rehearsal.film import (
    CODECS,
    Scene,
    Shot,
    add_grain,
    film,
    grain_field,
    wander,
    write_video,
)
from dfdc_lib.rehearsal.manipulate import replace_region
from dfdc_lib.rehearsal.people import PEOPLE, REACH, express, other_face, pose
from dfdc_lib.store import appear_whole, read_json, write_json

VERSION = 3  # raise it when the same settings would give different pictures

# (width, height) of frames: they cover each branch of the slides' resize rule.
SIZES = [(480, 270), (270, 480), (400, 300), (480, 360)]
SIZES += [(256, 256), (640, 360), (360, 480), (540, 300)]
LARGE_SIZES = [(1280, 720), (1920, 1080)]
METHODS = ("swap", "autoencoder", "mouth", "rewarp")
METHOD_PAIRS = [("swap", "rewarp"), ("autoencoder", "mouth")]
QUALITIES = (20, 28)  # x264's constant rate factor, drawn the same way for originals and fakes


@dataclass(frozen=True)
class Fake:
    """How a fake is made from a shot."""

    seed: int
    method: str  # from METHODS
    strength: float  # from 0, barely visible, to 1, crude
    crf: int


def falsify(shot: Shot, filmed: list[Scene], fake: Fake) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (frame, mask) with the first person manipulated, the rest bit-identical."""
    rng, crude = np.random.default_rng(fake.seed), fake.strength
    look: dict = {"detail": 1 - 0.6 * crude, "colour": 1 - 0.5 * crude, "grain": 0.8 * (1 - crude)}
    look |= {"feather": 0.5 - 0.35 * crude}
    # A forger's tracker is a little off, and drifts.
    waves = [wander(len(filmed), 0.02 + 0.08 * crude, rng) for _ in range(10)]
    drift = np.stack(waves, axis=1).reshape(-1, 5, 2)
    frames, faces = [frame for frame, _ in filmed], [people[0] for _, people in filmed]
    tracked = [face + off * eyes_to_mouth(face) for face, off in zip(faces, drift, strict=True)]
    other, region, targets = other_face(shot.identities[0]), "face", tracked
    moves = rng.normal(0, 0.7, len(REACH)) * [*REACH.values()]
    if fake.method == "autoencoder":
        aligned = np.stack([align(*found) for found in zip(frames, tracked, strict=True)])
        donors, region = [(drawn, ALIGNED) for drawn in draw_as(other, aligned)], "oval"
    elif fake.method == "rewarp":  # the face itself, fitted wrongly
        donors, targets = list(zip(frames, tracked, strict=True)), faces
    elif fake.method == "swap":
        donors = [express(*pose(other, rng), moves)] * len(frames)
    else:  # their own mouth, from another take
        donors, region = [express(*pose(shot.identities[0], rng), moves)] * len(frames), "mouth"
    for number, (frame, target, donor) in enumerate(zip(frames, targets, donors, strict=True)):
        yield replace_region(frame, target, *donor, region, **look, seed=(fake.seed, number))


def plan(
    n_parts: int, originals_per_part: int, n_frames: int, seed: int
) -> list[tuple[int, Shot, list[Fake]]]:
    """Lay out the data set: the part, the shot and two fakes of each original.

    In each part everyone is filmed equally often, and equally often for each pair of methods, if a
    part has a multiple of 8 originals.
    """
    rng, n_originals = np.random.default_rng(seed), n_parts * originals_per_part

    def deal(low: float, high: float, n: int) -> Iterator[float]:
        """Hand out n values, evenly over a range, in random order."""
        return iter(rng.permutation(np.linspace(low, high, n)).tolist())

    strengths = deal(0, 1, 2 * n_originals)
    # Drawn at random, the qualities of a few fakes may differ by chance, and file sizes would tell.
    qualities, fake_qualities = (deal(*QUALITIES, n) for n in (n_originals, 2 * n_originals))
    result = []
    for i in range(n_originals):
        part, j = divmod(i, originals_per_part)
        identities: tuple[str, ...] = (list(PEOPLE)[j % 4],)
        width, height = SIZES[(j + j // 4 + part) % len(SIZES)]
        leaves_frame, crosses = (part, j) == (0, 1), (part, j) == (1, 0)
        if j == originals_per_part - 1 and part < len(LARGE_SIZES):
            width, height = LARGE_SIZES[part]
        if j == 0 and part < 2:
            identities, width, height = ("collins", "hopper"), 640, 360
        if leaves_frame:
            width, height = 480, 270
        length, number = 3 * n_frames if crosses else n_frames, int(rng.integers(2**31))
        crf, camera_crf = round(next(qualities)), int(rng.integers(12, 24))
        fps, codec = int(rng.choice([24, 25, 30])), str(rng.choice(["h264", "h264", *CODECS]))
        noise = round(max(rng.uniform(-3, 3), 0), 1)
        shot = Shot(number, identities, width, height, length, crf, camera_crf, codec, fps, noise)
        shot = replace(shot, leaves_frame=leaves_frame, crosses=crosses)
        fakes = []
        for method in METHOD_PAIRS[(j // 4 + part) % len(METHOD_PAIRS)]:
            number, crf = int(rng.integers(2**31)), round(next(fake_qualities))
            fakes.append(Fake(number, method, next(strengths), crf))
        result.append((part, shot, fakes))
    return result


def film_group(folder: Path, shot: Shot, fakes: list[Fake], names: list[str]) -> None:
    """Write an original and its fakes as mp4 files of these names, in this order."""
    filmed = list(film(shot))
    publish(folder / f"{names[0]}.mp4", (frame for frame, _ in filmed), shot, shot.seed, shot.crf)
    for fake, name in zip(fakes, names[1:], strict=True):
        frames = (frame for frame, _ in falsify(shot, filmed, fake))
        publish(folder / f"{name}.mp4", frames, shot, fake.seed, fake.crf)


def publish(path: Path, frames: Iterable[np.ndarray], shot: Shot, seed: int, crf: int) -> None:
    """Write an original or a fake of a shot: noise once more, and the second compression."""
    if shot.noise:
        rng = np.random.default_rng([seed, 1])
        field = grain_field(shot, shot.noise, rng)
        frames = (add_grain(frame, field, rng) for frame in frames)
    write_video(path, frames, crf, shot.codec, shot.fps)


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
    `run_jobs`. Raises FileExistsError if `out` holds anything else.
    """
    settings = {"version": VERSION, "n_parts": n_parts, "originals_per_part": originals_per_part}
    settings |= {"n_frames": n_frames, "seed": seed}
    groups = plan(n_parts, originals_per_part, n_frames, seed)
    return film_all(out, groups, settings, workers, progress)


def film_all(
    out: Path,
    groups: list[tuple[int, Shot, list[Fake]]],
    settings: dict,
    workers: int = 2,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Make a data set of a plan (see `plan`). settings: its seed, and what tells it from others.

    Every original has the same number of fakes. For the rest see `make_sample`.
    """
    out = Path(out)
    kept = out / "sample.json"
    if kept.is_file() and read_json(kept).get("settings") == settings:
        return out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} holds something else: remove it, or name a new folder")
    shape = len(groups), 1 + len(groups[0][2]), 10  # ten letters, as DFDC names its videos
    letters = np.random.default_rng([settings["seed"], 1]).choice(list(ascii_lowercase), shape)
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
    """How each video of a sample was made, by video_id: its "shot" and, for a fake, its "fake"."""
    return read_json(Path(data) / "sample.json")["videos"]


def read_methods(data: Path) -> dict[str, str]:
    """How each fake of a sample was made: video_id → a name from METHODS."""
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
