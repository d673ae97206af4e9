"""Which recipe learns the traces of a fake, and not only the sample? Writes
experiments/transfer.csv (an hour on two cores).

    python -m experiments.transfer

Every recipe learns the demo's sample twice, once without `swap` and `autoencoder` and once without
`mouth` and `rewarp`, and is tested on the methods that it has not seen: on the sample's own
held-out part, and on a second sample with other settings (larger frames, other qualities and
codecs, every method for every original). Each line has one recipe, place and method, and its AUC
against all real videos; the lines "all" have the mean. 95 % intervals by bootstrap over originals.
The best one on the second sample is the preset `transfer` (`dfdc train --preset transfer`).

    python -m experiments.transfer --score FOLDER

Once the preset is fixed: train it as a user would, on all of the sample, and score videos that had
no part in choosing it. The samples' own videos are refused.
"""

import argparse
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from dfdc_lib.config import DEMO_TRAINING, TRANSFER_TRAINING, TrainConfig
from dfdc_lib.dataset import read_crops
from dfdc_lib.metrics import auc, bootstrap_interval
from dfdc_lib.model import LITE
from dfdc_lib.ops.pipeline import preprocess
from dfdc_lib.ops.submission import find_videos
from dfdc_lib.predict import predict_videos
from dfdc_lib.rehearsal.film import CODECS, Shot
from dfdc_lib.rehearsal.people import PEOPLE
from dfdc_lib.rehearsal.sample import METHODS, VERSION, Fake, film_all, read_methods
from dfdc_lib.store import WorkFolder
from dfdc_lib.train import score_videos, train
from experiments.training import Job, describe_run, leave_out, prepare, train_all

TABLE = Path(__file__).with_suffix(".csv")
FIRST, SECOND = Path("data/sample"), Path("data/second")
FIRST_SEED, SECOND_SEED = 0, 1
SECOND_SIZES = [(1280, 720), (960, 540), (854, 480), (640, 480)]
SECOND_SIZES += [(720, 1280), (540, 960), (768, 768), (1024, 576)]
UNSEEN_METHODS = (("swap", "autoencoder"), ("mouth", "rewarp"))  # left out together

BLENDED = replace(DEMO_TRAINING, steps=150, epoch_steps=150, self_blend=0.5)
DEGRADED = replace(BLENDED, augmentation="transfer")
RECIPES: dict[str, TrainConfig] = {
    "the demo's": DEMO_TRAINING,
    "self-blending": BLENDED,
    "self-blending, the slides' augmentation": replace(BLENDED, augmentation="slides"),
    "self-blending, the hard set": replace(BLENDED, augmentation="hard", paired=False),
    "self-blending, degraded": DEGRADED,
    "self-blending alone, degraded": replace(DEGRADED, self_blend=1.0),
    "self-blending, degraded, batch norm frozen": replace(DEGRADED, freeze_batchnorm=True),
    "self-blending, degraded, 192 pixels": replace(DEGRADED, size=192),
    "self-blending, the slides' augmentation, 192 pixels": replace(
        BLENDED, augmentation="slides", size=192
    ),
    "self-blending, degraded, 300 steps": replace(DEGRADED, steps=300, epoch_steps=300),
    "self-blending, degraded, tiny from scratch": replace(
        DEGRADED, encoder="tiny", learning_rate=3e-3, steps=600, epoch_steps=600
    ),
}


def plan_second() -> list[tuple[int, Shot, list[Fake]]]:
    """Lay out a sample with other settings: larger frames, more qualities, all methods."""
    rng, groups = np.random.default_rng(SECOND_SEED), []
    for number in range(64):
        width, height = SECOND_SIZES[number // 4 % len(SECOND_SIZES)]
        shot = Shot(
            seed=int(rng.integers(2**31)),
            identities=(list(PEOPLE)[number % 4],),
            width=width,
            height=height,
            n_frames=13,
            crf=int(rng.integers(16, 33)),
            camera_crf=int(rng.integers(12, 24)),
            codec=str(rng.choice(list(CODECS))),
            fps=int(rng.choice([24, 25, 30])),
            noise=round(max(rng.uniform(-3, 3), 0), 1),
        )
        fakes = [
            Fake(int(rng.integers(2**31)), method, rng.uniform(0, 1), int(rng.integers(16, 33)))
            for method in METHODS
        ]
        groups.append((number // 16, shot, fakes))
    return groups


def prepare_samples() -> tuple[WorkFolder, WorkFolder]:
    """The sample that recipes learn, and the second one that they are tested on."""
    first, cores = prepare(FIRST, FIRST_SEED), os.cpu_count() or 1
    settings = {"version": VERSION, "seed": SECOND_SEED, "plan": "experiments.transfer"}
    film_all(SECOND, plan_second(), settings, cores)
    second = WorkFolder.beside(SECOND)
    preprocess(SECOND, second, workers=cores)
    return first, second


def list_jobs(first: WorkFolder, second: WorkFolder) -> dict[tuple[str, tuple[str, ...]], Job]:
    """(recipe, methods left out) → its training."""
    jobs = {}
    for recipe, config in RECIPES.items():
        for methods in UNSEEN_METHODS:
            work, pretrained = leave_out(FIRST, first, methods), config.encoder in LITE
            name = re.sub("[^a-z0-9]+", "-", f"{recipe} without {' '.join(methods)}")
            jobs[recipe, methods] = Job(work, name, config, pretrained, second)
    return jobs


def split_by_method(
    crops: pd.DataFrame, data: Path, methods: tuple[str, ...]
) -> Iterator[pd.DataFrame]:
    """The videos of each of these methods, with all real ones."""
    videos, made = score_videos(crops), read_methods(data)
    videos["method"] = videos.video_id.map(made).fillna("real")
    for method in methods:
        yield videos[videos.method.isin(["real", method])].assign(judged=method)


def mean_auc(labels: np.ndarray, values: np.ndarray) -> float:
    """AUC of each tested method by itself, then their mean. values: (n, 2), p_fake and method."""
    judged = np.unique(values[:, 1])
    of = [auc(labels[values[:, 1] == m], values[values[:, 1] == m, 0]) for m in judged]
    return float(np.mean(of))


def summarise(recipe: str, place: str, videos: pd.DataFrame) -> Iterator[dict]:
    """Lines of one recipe and place: each method, then the mean of all."""
    config = RECIPES[recipe]
    about = {"recipe": recipe, "place": place, "steps": config.steps}
    for method in (*METHODS, "all"):
        rows = videos[videos.judged == method] if method != "all" else videos
        values = np.stack([rows.p_fake, rows.judged.map(METHODS.index)], axis=1)
        found = mean_auc(rows.label.to_numpy(), values)
        low, high = bootstrap_interval(mean_auc, rows.label, values, rows.original_id, n_draws=500)
        line = {"method": method, "auc": found, "auc_low": low, "auc_high": high}
        yield about | line | {"originals": rows.original_id.nunique()}


def tune() -> pd.DataFrame:
    """Train every recipe, or resume; return the lines of the table."""
    first, second = prepare_samples()
    jobs = list_jobs(first, second)
    scored, lines = train_all([*jobs.values()]), []
    for recipe in RECIPES:
        own, other = [], []
        for methods in UNSEEN_METHODS:
            job = jobs[recipe, methods]
            own += split_by_method(
                read_crops(job.work.run(job.name) / "held_out.csv"), FIRST, methods
            )
            other += split_by_method(scored[job.name], SECOND, methods)
        lines += summarise(recipe, "own held-out part", pd.concat(own))
        lines += summarise(recipe, "second sample", pd.concat(other))
    return pd.DataFrame(lines)


def score_clips(videos: list[Path]) -> pd.DataFrame:
    """The preset's verdicts on videos that had no part in choosing it."""
    refuse_tuned(videos)
    work = prepare(FIRST, FIRST_SEED)
    run = train(work, TRANSFER_TRAINING, "transfer", pretrained=True).require_finished()
    verdicts = predict_videos(videos, [run.model])
    lines = [(v.video.name, v.status, v.n_faces, v.p_fake) for v in verdicts]
    return pd.DataFrame(lines, columns=["video", "status", "faces", "p_fake"])


def refuse_tuned(videos: list[Path]) -> None:
    """Raise ValueError for a video that recipes were chosen on, under whatever name."""
    tuned = {digest(path) for data in (FIRST, SECOND) for path in data.glob("*/*.mp4")}
    if not tuned:
        raise ValueError(f"{FIRST} and {SECOND} hold no videos: tune first")
    if known := [path.name for path in videos if digest(path) in tuned]:
        raise ValueError(f"the recipe was chosen on {known[0]}: its score would tell nothing")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    """Tune and write the table; or score videos with the preset."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--score", type=Path, help="score the videos in this folder; do not tune")
    if folder := parser.parse_args().score:
        print(score_clips(find_videos([folder])[0]).to_string(index=False))
        return
    tune().assign(**describe_run()).to_csv(TABLE, index=False, float_format="%.4f")


if __name__ == "__main__":
    main()
