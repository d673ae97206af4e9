"""What experiments with many networks share: two sets of videos, and trainings side by side."""

import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from benchmarks.measure import stamp
from dfdc_lib.config import DEMO_TRAINING, TrainConfig
from dfdc_lib.dataset import CropReader, read_folds
from dfdc_lib.jobs import Lost, count_cores, run_jobs
from dfdc_lib.ops.pipeline import preprocess
from dfdc_lib.rehearsal.sample import VERSION, make_sample, read_methods
from dfdc_lib.store import WorkFolder, write_csv
from dfdc_lib.train import score_held_out, train

LEARNED_SEED, UNSEEN_SEED = 2, 3  # of samples on which nothing was tuned
UNSEEN_ORIGINALS = 24  # per part: 288 videos in all
LEARNED, UNSEEN = Path("data/audit"), Path("data/unseen")


def prepare(data: Path, seed: int, originals_per_part: int = 16) -> WorkFolder:
    """Make a sample and its crops, or keep them."""
    cores = os.cpu_count() or 1
    make_sample(data, originals_per_part=originals_per_part, seed=seed, workers=cores)
    work = WorkFolder.beside(data)
    preprocess(data, work, workers=cores)
    return work


def prepare_both() -> tuple[WorkFolder, WorkFolder]:
    """The sample that networks learn, and a larger one that no network has seen."""
    learned = prepare(LEARNED, LEARNED_SEED)
    return learned, prepare(UNSEEN, UNSEEN_SEED, UNSEEN_ORIGINALS)


def leave_out(data: Path, work: WorkFolder, methods: Collection[str]) -> WorkFolder:
    """Make a work folder beside a sample's with the same crops; its table has these methods' fakes
    only in the demo's held-out fold."""
    rows = read_folds(work)
    unwanted = rows.video_id.map(read_methods(data)).isin(methods)
    without = WorkFolder(work.root.with_name(f"{work.root.name}-without-{'-'.join(methods)}"))
    without.root.mkdir(parents=True, exist_ok=True)
    for name in ("crops", "masks", "boxes"):
        link = without.root / name
        if not link.is_symlink():
            link.symlink_to((work.root / name).resolve(), target_is_directory=True)
    shutil.copy(work.recipe, without.recipe)
    rows[~unwanted | (rows.fold == DEMO_TRAINING.fold)].to_csv(without.folds, index=False)
    return without


def describe_run() -> dict[str, str]:
    """The machine, the date, the versions and the sample's version, for each line of a table."""
    return stamp("timm") | {"sample": f"version {VERSION}"}


class Job(NamedTuple):
    """One network to train; see `train`."""

    work: WorkFolder
    name: str
    config: TrainConfig
    pretrained: bool = True
    unseen: WorkFolder | None = None  # whose crops it scores; None: those of the held-out fold
    keep_every: int = 0


def train_all(jobs: list[Job], workers: int = 0) -> dict[str, pd.DataFrame]:
    """Run `train_and_score` for each job, one per core: run → the table that it returns.

    Two networks on one core each learn faster than one after the other on two.
    """
    tables, workers = {}, min(workers or count_cores(), len(jobs))
    results = run_jobs(train_and_score, ((job,) for job in jobs), workers, time_limit=7200)
    for (job,), table in results:
        if isinstance(table, Lost):
            raise OSError(f"{job.name}: {table.reason}")
        tables[job.name] = table
        print(f"{len(tables)} of {len(jobs)}: {job.name}", flush=True)
    return {job.name: tables[job.name] for job in jobs}


def train_and_score(job: Job) -> pd.DataFrame:
    """Train a network, or resume; return the crops that it has not seen, with their p_fake."""
    how: dict = {"pretrained": job.pretrained, "keep_every": job.keep_every}
    run = train(job.work, job.config, job.name, **how).require_finished()
    if job.unseen is None:
        return run.held_out
    kept = run.folder / "unseen.csv"
    if not kept.exists():
        reader = CropReader(job.unseen, job.config.input_size)
        write_csv(kept, score_held_out(run.model, read_folds(job.unseen), reader))
    return pd.read_csv(kept, dtype={"video_id": str, "original_id": str}, keep_default_na=False)
