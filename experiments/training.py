"""What experiments with many networks share: two sets of videos, and trainings side by side."""

import os
from pathlib import Path

import pandas as pd

from dfdc_lib.config import TrainConfig
from dfdc_lib.dataset import CropReader, read_folds
from dfdc_lib.jobs import Lost, count_cores, run_jobs
from dfdc_lib.ops.pipeline import preprocess
from dfdc_lib.rehearsal.sample import make_sample
from dfdc_lib.store import WorkFolder, write_csv
from dfdc_lib.train import score_held_out, train

LEARNED_SEED, UNSEEN_SEED = 2, 3  # of samples on which nothing was tuned
UNSEEN_ORIGINALS = 24  # a part: 288 videos in all


def prepare(data: Path, seed: int, originals_per_part: int = 16) -> WorkFolder:
    """Make a sample and its crops, or keep them."""
    cores = os.cpu_count() or 1
    make_sample(data, originals_per_part=originals_per_part, seed=seed, workers=cores)
    work = WorkFolder.beside(data)
    preprocess(data, work, workers=cores)
    return work


def prepare_both() -> tuple[WorkFolder, WorkFolder]:
    """The sample that networks learn, and a larger one that no network has seen."""
    learned = prepare(Path("data/audit"), LEARNED_SEED)
    return learned, prepare(Path("data/unseen"), UNSEEN_SEED, UNSEEN_ORIGINALS)


Job = tuple[WorkFolder, str, TrainConfig, bool, WorkFolder | None]


def train_all(jobs: list[Job], workers: int = 0) -> dict[str, pd.DataFrame]:
    """Do `train_and_score` for each job, one to a core: run → the table that it returns.

    Two networks with one core each learn faster than one after the other with two.
    """
    tables = {}
    for job, table in run_jobs(train_and_score, jobs, workers or count_cores(), time_limit=7200):
        if isinstance(table, Lost):
            raise OSError(f"{job[1]}: {table.reason}")
        tables[job[1]] = table
        print(f"{len(tables)} of {len(jobs)}: {job[1]}", flush=True)
    return {job[1]: tables[job[1]] for job in jobs}


def train_and_score(
    work: WorkFolder, name: str, config: TrainConfig, pretrained: bool, unseen: WorkFolder | None
) -> pd.DataFrame:
    """Train a network, or go on; the crops of `unseen` (None: of the held-out fold) with p_fake."""
    run = train(work, config, name, pretrained=pretrained).require_finished()
    if unseen is None:
        return run.held_out
    kept = run.folder / "unseen.csv"
    if not kept.exists():
        reader = CropReader(unseen, config.input_size)
        write_csv(kept, score_held_out(run.model, read_folds(unseen), reader))
    return pd.read_csv(kept, dtype={"video_id": str, "original_id": str}, keep_default_na=False)
