"""Does a detector know a method it has not seen? Writes experiments/leave_one_out.csv (25 minutes
on two cores).

    python -m experiments.leave_one_out

A pretrained Lite0 learns a sample on which nothing was tuned, with the demo's settings but without
one of four methods of making a fake, and is tested on that method's fakes among the 288 videos of
another sample; with and without self-blending (`dfdc train --self-blend`). For comparison, it is
also trained on all methods, and on self-blended pictures alone, without any fake. One line per arm,
method and seed, over the fakes of that method against all real videos; then one line for all seeds
(the mean of their AUC), and how far it is from the arm "left out"; 95 % intervals by bootstrap over
originals. All arms have the same steps: what one arm adds, it takes from other kinds of fakes.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import pandas as pd

from dfdc_lib.config import DEMO_TRAINING
from dfdc_lib.metrics import log_loss
from dfdc_lib.rehearsal.sample import METHODS, read_methods
from dfdc_lib.store import WorkFolder
from dfdc_lib.train import score_videos
from experiments.intervals import compare_auc
from experiments.training import (
    LEARNED,
    UNSEEN,
    Job,
    describe_run,
    leave_out,
    prepare_both,
    train_all,
)

TABLE = Path(__file__).with_suffix(".csv")
SEEDS = 3
# arm → (is the tested method left out of training?, self_blend). In the first and the last arm
# one run serves all methods; the last one never sees a fake.
ARMS = {
    "seen": (False, 0.0),
    "left out": (True, 0.0),
    "left out, self-blend": (True, 0.5),
    "self-blend alone": (False, 1.0),
}


def run_name(arm: str, method: str, seed: int) -> str:
    leaves_out, share = ARMS[arm]
    if arm == "seen":
        return f"lite0_{seed}"  # as in experiments/encoders.py, whose runs are reused
    return f"blend_{share}_without_{method}_{seed}" if leaves_out else f"blend_{share}_{seed}"


def list_jobs(learned: WorkFolder, unseen: WorkFolder) -> list[Job]:
    """Every training once, seed by seed."""
    folders = {method: leave_out(LEARNED, learned, [method]) for method in METHODS}
    jobs = {}
    for seed in range(SEEDS):
        for arm, (leaves_out, share) in ARMS.items():
            config = replace(DEMO_TRAINING, seed=seed, self_blend=share)
            for method in METHODS:
                name, work = run_name(arm, method, seed), folders[method] if leaves_out else learned
                jobs[name] = Job(work, name, config, unseen=unseen)
    return list(jobs.values())


def select_scores(
    scored: dict[str, pd.DataFrame], methods: dict, arm: str, method: str
) -> pd.DataFrame:
    """The videos that one arm is tested on: real ones, and fakes by this method; all seeds."""
    tables = []
    for seed in range(SEEDS):
        videos = score_videos(scored[run_name(arm, method, seed)]).assign(seed=seed)
        tables.append(videos[videos.video_id.map(methods).fillna("real").isin(["real", method])])
    return pd.concat(tables)


def summarise(videos: pd.DataFrame, left_out: pd.DataFrame | None) -> list[dict]:
    """Lines of the table: each seed, then all, and how far these are from the arm "left out"."""
    lines = []
    for seed, rows in [*videos.groupby("seed"), ("all", videos)]:
        found = compare_auc(rows, "p_fake")
        line = {"seed": seed, "auc": found["value"]}
        line |= {"auc_low": found["low"], "auc_high": found["high"]}
        line |= {"log_loss": log_loss(rows.label, rows.p_fake)}
        fakes = int(rows.drop_duplicates("video_id").label.sum())
        lines.append(line | {"originals": rows.original_id.nunique(), "fakes": fakes})
    if left_out is not None:
        key = ["seed", "video_id", "label", "original_id"]
        both = videos.merge(left_out, on=key, suffixes=("", "_left_out"))
        gained = compare_auc(both, "p_fake", "p_fake_left_out")
        lines[-1] |= {f"against_{name}": value for name, value in gained.items()}
    return lines


def main() -> None:
    """Train everything, or resume; write the table."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    scored = train_all(list_jobs(*prepare_both()))
    methods, lines = read_methods(UNSEEN), []
    for arm in ARMS:
        for method in METHODS:
            videos, left_out = (
                select_scores(scored, methods, a, method) for a in (arm, "left out")
            )
            found = summarise(videos, left_out if arm != "left out" else None)
            lines += [{"arm": arm, "method": method} | line for line in found]
    table = pd.DataFrame(lines).assign(steps=DEMO_TRAINING.steps, **describe_run())
    table.to_csv(TABLE, index=False, float_format="%.3f")


if __name__ == "__main__":
    main()
