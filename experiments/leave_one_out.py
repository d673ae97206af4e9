"""Does a detector know a method it has not seen? Writes experiments/leave_one_out.csv (about 20 minutes on two cores).

    python -m experiments.leave_one_out

A sample on which nothing was tuned, three methods of making a fake. The demo's small encoder is trained on two of them
and judged on held-out videos of the third; with and without self-blending (`dfdc train --self-blend`). Beside that:
trained on all three, and on self-blended pictures alone, without any fake. Each seed holds out another part. One line
an arm, method and seed, over the held-out videos of that method against all held-out real ones; then one line of all
seeds together, and how far it is from the arm "left out". 95 % intervals by bootstrap over originals.
"""

import argparse
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.measure import stamp
from dfdc_lib.config import DEMO_TRAINING
from dfdc_lib.dataset import read_folds
from dfdc_lib.metrics import auc, bootstrap_interval, log_loss
from dfdc_lib.paths import WorkFolder
from dfdc_lib.preprocess import preprocess
from dfdc_lib.sample import make_sample, read_methods
from dfdc_lib.train import score_videos, train
from experiments.sample_audit import UNTUNED_SEED

TABLE = Path(__file__).with_suffix(".csv")
METHODS = ("swap", "mouth", "rewarp")
SEEDS = 3  # seed i holds out part i
# arm → (is the judged method left out of training?, self_blend). The last arm never sees a fake: one run serves all.
ARMS = {
    "seen": (False, 0.0),
    "left out": (True, 0.0),
    "left out, self-blend": (True, 0.5),
    "self-blend alone": (False, 1.0),
}


def without_method(work: WorkFolder, methods: pd.Series, method: str, fold: int) -> WorkFolder:
    """A work folder beside `work` with the same crops, in which a method's fakes are only in the held-out fold."""
    rows = read_folds(work)
    kept = (rows.video_id.map(methods) != method) | (rows.fold == fold)
    without = WorkFolder(work.root.with_name(f"{work.root.name}-without-{method}-{fold}"))
    without.root.mkdir(parents=True, exist_ok=True)
    for name in ("crops", "masks", "boxes"):
        link = without.root / name
        if not link.is_symlink():
            link.symlink_to((work.root / name).resolve(), target_is_directory=True)
    shutil.copy(work.source, without.source)
    rows[kept].to_csv(without.folds, index=False)
    return without


def judge(name: str, work: WorkFolder, seed: int, self_blend: float, steps: int) -> pd.DataFrame:
    """Train one detector; its held-out videos with their p_fake."""
    config = replace(DEMO_TRAINING, fold=seed, seed=seed, self_blend=self_blend, steps=steps)
    return score_videos(train(work, config, name).require_finished().held_out).assign(seed=seed)


def run_arm(work: WorkFolder, methods: pd.Series, arm: str, seed: int, steps: int) -> pd.DataFrame:
    """The held-out videos of one arm and seed, once for each judged method: real, and fake by that method."""
    leaves_out, share = ARMS[arm]
    tables = []
    for method in METHODS:
        if leaves_out:
            folder, name = without_method(work, methods, method, seed), f"blend_{share}_{seed}"
        else:
            folder, name = work, f"leave_none_out_blend_{share}_{seed}"
        videos = judge(name, folder, seed, share, steps)  # a finished run is only read again
        judged = videos[videos.video_id.map(methods).fillna("real").isin(["real", method])]
        tables.append(judged.assign(arm=arm, method=method))
        print(f"{arm}, seed {seed}, {method}: AUC {auc(judged.label, judged.p_fake):.3f}", flush=True)
    return pd.concat(tables)


def summarise(arm: str, method: str, seed: str, videos: pd.DataFrame) -> dict:
    """One line of the table."""
    low, high = bootstrap_interval(auc, videos.label, videos.p_fake, videos.original_id)
    line = {"arm": arm, "method": method, "seed": seed, "auc": auc(videos.label, videos.p_fake)}
    line |= {"auc_low": low, "auc_high": high, "log_loss": log_loss(videos.label, videos.p_fake)}
    return line | {"originals": videos.original_id.nunique(), "fakes": int((videos.label == 1).sum())}


def compare(videos: pd.DataFrame, arm: str, other: str) -> dict:
    """AUC of an arm less that of another one on the same videos, with its interval over originals."""
    key = ["seed", "video_id", "label", "original_id"]
    both = videos[videos.arm == arm].merge(videos[videos.arm == other], on=key)

    def gain(labels: np.ndarray, p_fake: np.ndarray) -> float:
        return auc(labels, p_fake[:, 0]) - auc(labels, p_fake[:, 1])

    p_fake = both[["p_fake_x", "p_fake_y"]].to_numpy()
    low, high = bootstrap_interval(gain, both.label, p_fake, both.original_id)
    return {"against_left_out": gain(both.label, p_fake), "against_low": low, "against_high": high}


def main() -> None:
    """Train everything, or go on; write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/audit"))
    parser.add_argument("--steps", type=int, default=DEMO_TRAINING.steps)
    args = parser.parse_args()
    data = make_sample(args.data, seed=UNTUNED_SEED, workers=os.cpu_count() or 1)
    work, methods = WorkFolder.beside(data), pd.Series(read_methods(data))
    preprocess(data, work, workers=os.cpu_count() or 1)
    tables = [run_arm(work, methods, arm, seed, args.steps) for arm in ARMS for seed in range(SEEDS)]
    videos, lines = pd.concat(tables), []
    for (arm, method), of_all in videos.groupby(["arm", "method"], sort=False):
        lines += [summarise(arm, method, str(seed), of_one) for seed, of_one in of_all.groupby("seed")]
        gained = compare(videos[videos.method == method], arm, "left out")
        lines.append(summarise(arm, method, "all", of_all) | gained)
    pd.DataFrame(lines).assign(steps=args.steps, **stamp("timm")).to_csv(TABLE, index=False, float_format="%.3f")


if __name__ == "__main__":
    main()
