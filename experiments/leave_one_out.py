"""Does a detector know a method it has not seen? Writes experiments/leave_one_out.csv (26 minutes
on two cores).

    python -m experiments.leave_one_out

A sample on which nothing was tuned, several methods of making a fake. A small encoder from scratch
is trained without one of them and judged on its held-out videos; with and without self-blending
(`dfdc train --self-blend`). Beside that: trained on all of them; and on self-blended pictures
alone, without any fake. Each seed holds out another part. One line an arm, method and seed, over
the held-out videos of that method against all held-out real ones; then one line of all seeds
together (the mean of their AUC), and how far it is from the arm "left out"; 95 % intervals by
bootstrap over originals. The steps are the same in all arms: what one arm adds, another kind of
fake gives up.
"""

import argparse
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd

from benchmarks.measure import stamp
from dfdc_lib.dataset import read_folds
from dfdc_lib.metrics import auc, log_loss
from dfdc_lib.ops.pipeline import preprocess
from dfdc_lib.rehearsal.sample import METHODS, make_sample, read_methods
from dfdc_lib.store import WorkFolder
from dfdc_lib.train import score_videos, train
from experiments import TINY
from experiments.intervals import compare_auc
from experiments.training import LEARNED_SEED

TABLE = Path(__file__).with_suffix(".csv")
SEEDS = 3  # seed i holds out part i
# arm → (is the judged method left out of training?, self_blend). The last arm never sees a fake:
# one run serves all.
ARMS = {
    "seen": (False, 0.0),
    "left out": (True, 0.0),
    "left out, self-blend": (True, 0.5),
    "self-blend alone": (False, 1.0),
}


def without_method(work: WorkFolder, methods: pd.Series, method: str, fold: int) -> WorkFolder:
    """A work folder beside `work` with the same crops, in which a method's fakes are only in the
    held-out fold."""
    rows = read_folds(work)
    kept = (rows.video_id.map(methods) != method) | (rows.fold == fold)
    without = WorkFolder(work.root.with_name(f"{work.root.name}-without-{method}-{fold}"))
    without.root.mkdir(parents=True, exist_ok=True)
    for name in ("crops", "masks", "boxes"):
        link = without.root / name
        if not link.is_symlink():
            link.symlink_to((work.root / name).resolve(), target_is_directory=True)
    shutil.copy(work.recipe, without.recipe)
    rows[kept].to_csv(without.folds, index=False)
    return without


def train_arm(name: str, work: WorkFolder, seed: int, self_blend: float) -> pd.DataFrame:
    """Train one detector; its held-out videos with their p_fake."""
    config = replace(TINY, fold=seed, seed=seed, self_blend=self_blend)
    return score_videos(train(work, config, name).require_finished().held_out).assign(seed=seed)


def run_arm(work: WorkFolder, methods: pd.Series, arm: str, seed: int) -> pd.DataFrame:
    """The held-out videos of one arm and seed, once for each judged method: real, and fake by that
    method."""
    leaves_out, share = ARMS[arm]
    tables = []
    for method in METHODS:
        if leaves_out:
            folder, name = without_method(work, methods, method, seed), f"blend_{share}_{seed}"
        else:
            folder, name = work, f"leave_none_out_blend_{share}_{seed}"
        videos = train_arm(name, folder, seed, share)  # a finished run is only read again
        judged = videos[videos.video_id.map(methods).fillna("real").isin(["real", method])]
        tables.append(judged.assign(arm=arm, method=method))
        print(
            f"{arm}, seed {seed}, {method}: AUC {auc(judged.label, judged.p_fake):.3f}", flush=True
        )
    return pd.concat(tables)


def summarise(videos: pd.DataFrame, arm: str, method: str) -> list[dict]:
    """Lines of the table: each seed, then all, and how far these are from the arm "left out"."""
    key = ["seed", "video_id", "label", "original_id"]
    here = videos[videos.method == method]
    both = here[here.arm == arm].merge(
        here[here.arm == "left out"], on=key, suffixes=("", "_left_out")
    )
    lines = []
    for seed, rows in [*both.groupby("seed"), ("all", both)]:
        found = compare_auc(rows, "p_fake")
        line = {"arm": arm, "method": method, "seed": seed, "auc": found["value"]}
        line |= {
            "auc_low": found["low"],
            "auc_high": found["high"],
            "log_loss": log_loss(rows.label, rows.p_fake),
        }
        lines.append(
            line | {"originals": rows.original_id.nunique(), "fakes": int(rows.label.sum())}
        )
    if arm != "left out":
        gained = compare_auc(both, "p_fake", "p_fake_left_out")
        lines[-1] |= {f"against_{name}": value for name, value in gained.items()}
    return lines


def main() -> None:
    """Train everything, or go on; write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("data/audit"))
    args = parser.parse_args()
    data = make_sample(args.data, seed=LEARNED_SEED, workers=os.cpu_count() or 1)
    work, methods = WorkFolder.beside(data), pd.Series(read_methods(data))
    preprocess(data, work, workers=os.cpu_count() or 1)
    tables = [run_arm(work, methods, arm, seed) for arm in ARMS for seed in range(SEEDS)]
    videos, lines = pd.concat(tables), []
    for arm in ARMS:
        for method in METHODS:
            lines += summarise(videos, arm, method)
    table = pd.DataFrame(lines).assign(steps=TINY.steps, **stamp("timm"))
    table.to_csv(TABLE, index=False, float_format="%.3f")


if __name__ == "__main__":
    main()
