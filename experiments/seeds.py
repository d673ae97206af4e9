"""How much is a seed, and what do several give? Writes experiments/seeds.csv (about 25 minutes on
two cores).

    python -m experiments.seeds

A small encoder from scratch, on the sample with a seed on which nothing was tuned. Held-out videos
of one fold are scored by: eight seeds; four seeds trained four times as long; the epochs of one of
those (snapshots); one network with about four times the multiply-adds. One line a model and video.
Notebooks 08 and 10 show the table.
"""

import argparse
import os
from dataclasses import replace
from itertools import product
from pathlib import Path

import pandas as pd

from benchmarks.measure import stamp
from dfdc_lib.dataset import CropReader
from dfdc_lib.model import load_checkpoint
from dfdc_lib.ops.pipeline import preprocess
from dfdc_lib.rehearsal.sample import make_sample
from dfdc_lib.store import WorkFolder
from dfdc_lib.train import Run, score_held_out, score_videos, train
from experiments import TINY
from experiments.training import LEARNED_SEED

TABLE = Path(__file__).with_suffix(".csv")
FOLDS = (0,)
# arm → (settings, seeds). "longer": four times the steps. "larger": about four times the
# multiply-adds.
ARMS = {
    "seed": (TINY, range(8)),
    "larger": (replace(TINY, encoder="efficientnet_lite0", size=112), range(1)),
    "longer": (replace(TINY, steps=4 * TINY.steps), range(4)),
}


def join_crops(arm: str, seed: int, fold: int, epoch: int, crops: pd.DataFrame) -> pd.DataFrame:
    """The videos of scored crops: one line each, with the mean and the slides' strategy."""
    videos = score_videos(crops).rename(columns={"p_fake": "p_mean"})
    confident = score_videos(crops, "confident").p_fake
    return videos.assign(p_confident=confident, arm=arm, seed=seed, fold=fold, epoch=epoch)


def join_snapshots(run: Run, work: WorkFolder, fold: int) -> list[pd.DataFrame]:
    """The held-out videos, by each kept epoch of a run."""
    reader, rows = CropReader(work, run.model.card.size), run.held_out.drop(columns="p_fake")
    return [
        join_crops("snapshot", 0, fold, epoch, score_held_out(load_checkpoint(path), rows, reader))
        for epoch in run.metrics.epoch
        if (path := run.folder / f"epoch_{epoch}.pt").exists()
    ]


def main() -> None:
    """Train everything, or go on; write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("data/audit"))
    data = make_sample(parser.parse_args().data, seed=LEARNED_SEED, workers=os.cpu_count() or 1)
    work = WorkFolder.beside(data)
    preprocess(data, work, workers=os.cpu_count() or 1)
    tables = []
    for (arm, (config, seeds)), fold in product(ARMS.items(), FOLDS):
        for seed in seeds:
            keep_every = 1 if (arm, seed) == ("longer", 0) else 0
            run = train(
                work,
                replace(config, fold=fold, seed=seed),
                f"{arm}_{fold}_{seed}",
                keep_every=keep_every,
            )
            run.require_finished()
            tables.append(join_crops(arm, seed, fold, run.metrics.epoch.iloc[-1], run.held_out))
            tables += join_snapshots(run, work, fold) if keep_every else []
            print(f"{arm}, fold {fold}, seed {seed}", flush=True)
    pd.concat(tables).assign(**stamp("timm")).to_csv(TABLE, index=False, float_format="%.5f")


if __name__ == "__main__":
    main()
