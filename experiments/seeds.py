"""How much is a seed, and what do several give? Writes experiments/seeds.csv (about 20 minutes on two cores).

    python -m experiments.seeds

The demo's small encoder on the sample, made with a seed on which nothing was tuned. Held-out videos of two folds are
scored by: eight seeds; the epochs of one seed (snapshots); one seed trained four times as long; one network with
about four times the multiply-adds. One line a model and video. Notebooks 07 and 09 show the table.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path

import pandas as pd

from benchmarks.measure import stamp
from dfdc_lib.config import DEMO_TRAINING
from dfdc_lib.dataset import CropReader
from dfdc_lib.model import load_checkpoint
from dfdc_lib.paths import WorkFolder
from dfdc_lib.preprocess import preprocess
from dfdc_lib.sample import make_sample
from dfdc_lib.train import Run, score_crops, score_videos, train
from experiments.sample_audit import UNTUNED_SEED

TABLE = Path(__file__).with_suffix(".csv")
SEEDS, FOLDS = range(8), (0, 1)
LONGER, LARGER = 4, "efficientnet_lite0"  # times the steps; about four times tiny's multiply-adds at 112 pixels


def judge_crops(arm: str, seed: int, fold: int, epoch: int, crops: pd.DataFrame) -> pd.DataFrame:
    """The videos of scored crops: one line each, with the mean and the slides' strategy."""
    videos = score_videos(crops).rename(columns={"p_fake": "p_mean"})
    confident = score_videos(crops, "confident").p_fake
    return videos.assign(p_confident=confident, arm=arm, seed=seed, fold=fold, epoch=epoch)


def judge_snapshots(run: Run, work: WorkFolder, fold: int) -> list[pd.DataFrame]:
    """The held-out videos, by each kept epoch of a run."""
    reader = CropReader(work, run.model.card.size)
    rows = run.held_out.drop(columns="p_fake")
    return [
        judge_crops("snapshot", 0, fold, epoch, score_crops(load_checkpoint(path), rows, reader))
        for epoch in run.metrics.epoch
        if (path := run.folder / f"epoch_{epoch}.pt").exists()
    ]


def main() -> None:
    """Train everything, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/audit"))
    data = make_sample(parser.parse_args().data, seed=UNTUNED_SEED, workers=os.cpu_count() or 1)
    work = WorkFolder.beside(data)
    preprocess(data, work, workers=os.cpu_count() or 1)
    others = {
        "longer": replace(DEMO_TRAINING, steps=LONGER * DEMO_TRAINING.steps),
        "larger": replace(DEMO_TRAINING, encoder=LARGER, size=112),
    }
    tables = []
    for fold in FOLDS:
        for seed in SEEDS:
            config = replace(DEMO_TRAINING, fold=fold, seed=seed)
            run = train(work, config, f"seed_{fold}_{seed}", keep_every=0 if seed else 1)
            tables.append(judge_crops("seed", seed, fold, run.metrics.epoch.iloc[-1], run.held_out))
            tables += judge_snapshots(run, work, fold) if seed == 0 else []
            print(f"fold {fold}, seed {seed}", flush=True)
        for arm, config in others.items():
            run = train(work, replace(config, fold=fold), f"{arm}_{fold}")
            tables.append(judge_crops(arm, 0, fold, run.metrics.epoch.iloc[-1], run.held_out))
            print(f"fold {fold}, {arm}", flush=True)
    pd.concat(tables).assign(**stamp("timm")).to_csv(TABLE, index=False, float_format="%.5f")


if __name__ == "__main__":
    main()
