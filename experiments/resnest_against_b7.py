"""The slides' open question: does ResNeSt, then the state of the art, beat EfficientNet-B7?

    torchrun --nproc-per-node 4 -m experiments.resnest_against_b7 --work data/work/dfdc --pretrained
    python -m experiments.resnest_against_b7 --work data/work/sample --rehearse   # on two CPU cores

Four arms, each with the same data, schedule and augmentation, and several seeds. An interrupted run
resumes. Writes experiments/resnest_against_b7.csv: log loss over held-out videos, its spread over
seeds, and the difference from B7 with an interval by bootstrap over originals. A rehearsal takes a
minute: a few steps with small pictures show that every arm runs and what a step costs; its table
goes to the work folder, and its losses mean nothing.
"""

import argparse
import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.measure import stamp
from dfdc_lib.config import TrainConfig, encoder_preset
from dfdc_lib.metrics import bootstrap_interval
from dfdc_lib.ops.cost import cost_of
from dfdc_lib.store import WorkFolder, write_json
from dfdc_lib.train import Run, score_videos, train

TABLE = Path(__file__).with_suffix(".csv")
ARMS = {  # name → encoder, input size; notebook 08 counts what is equal
    "B7": ("b7", 380),
    "equal compute": ("resnest50", 380),
    "equal size": ("resnest200", 380),
    "equal size and compute": ("resnest200", 208),
}
REHEARSAL = {
    "steps": 4,
    "epoch_steps": 4,
    "batch": 4,
    "size": 64,
    "valid_every": 10_000,
    "precision": "no",
}


def configure(arm: str, seed: int, fold: int) -> TrainConfig:
    """The slides' settings for one arm: the network differs, and the batch as memory allows."""
    encoder, size = ARMS[arm]
    config = TrainConfig(encoder=encoder, size=size, seed=seed, fold=fold, precision="fp16")
    return replace(config, batch=encoder_preset(encoder).batch)


def train_arm(
    work: WorkFolder, arm: str, config: TrainConfig, name: str, **options
) -> tuple[Run, dict]:
    """Train or resume; return the run, and its seconds per step, machine, date and versions."""
    times = []  # (step, when)
    name = f"{name}_{arm.replace(' ', '_')}_{config.seed}"
    run = train(
        work,
        config,
        name,
        progress=lambda step, *_: times.append((step, time.monotonic())),
        **options,
    )
    run.require_finished()
    made = run.folder / "made.json"
    if len(times) > 1:
        steps, when = np.array(times).T
        write_json(
            made,
            {"seconds_a_step": float(np.median(np.diff(when) / np.diff(steps)))} | stamp("timm"),
        )
    about = (
        json.loads(made.read_text())
        if made.exists()
        else {"seconds_a_step": float("nan")} | stamp("timm")
    )
    return run, about


def video_losses(run: Run) -> pd.DataFrame:
    """Each held-out video's log loss: columns video_id, label, original_id, loss."""
    videos = score_videos(run.held_out)
    p = videos.p_fake.clip(1e-7, 1 - 1e-7)
    return videos.assign(loss=-np.where(videos.label == 1, np.log(p), np.log(1 - p)))


def summarise(losses: pd.DataFrame, made: dict[str, list[dict]], size: int) -> pd.DataFrame:
    """One line per arm. losses: columns arm, seed, video_id, label, original_id, loss.

    made: arm → what `train_arm` says about each seed. size: 0 for each arm's own.
    """
    # Mean over seeds: (videos, arms).
    of_video = losses.groupby(["arm", "video_id"]).loss.mean().unstack(0)
    about = losses.drop_duplicates("video_id").set_index("video_id").loc[of_video.index]
    lines = []
    for arm, (encoder, own_size) in ARMS.items():
        seconds = np.nanmedian([run["seconds_a_step"] for run in made[arm]])
        gap = of_video[arm] - of_video["B7"]
        low, high = bootstrap_interval(
            lambda _, values: values.mean(), about.label, gap, about.original_id
        )
        of_seed, cost = (
            losses[losses.arm == arm].groupby("seed").loss.mean(),
            cost_of(encoder, size or own_size),
        )
        lines.append(
            {"arm": arm, "encoder": encoder, "size": size or own_size}
            | {"million_parameters": cost.parameters / 1e6, "gmacs": cost.macs / 1e9}
            | {"seconds_a_step": seconds}
            | {"seeds": len(of_seed), "log_loss": of_seed.mean(), "seed_sd": of_seed.std()}
            | {"minus_b7": gap.mean(), "low": low, "high": high}
            | {key: made[arm][-1][key] for key in ("machine", "date", "versions")}
        )  # fmt: skip
    return pd.DataFrame(lines)


def main() -> None:
    """Run all arms and seeds, then write the table (the first process alone)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--workers", type=int, default=8, help="processes that read crops, per GPU")
    parser.add_argument(
        "--pretrained", type=Path, nargs="?", const=True, default=False, metavar="FOLDER"
    )
    parser.add_argument("--rehearse", action="store_true")
    args = parser.parse_args()
    work, name = WorkFolder(args.work), "rehearsal" if args.rehearse else "resnest"
    table = args.work / "resnest_rehearsal.csv" if args.rehearse else TABLE
    options = {} if args.rehearse else {"workers": args.workers, "pretrained": args.pretrained}
    parts, made = [], {arm: [] for arm in ARMS}
    for arm in ARMS:
        for seed in range(1 if args.rehearse else args.seeds):
            config = configure(arm, seed, args.fold)
            config = replace(config, **REHEARSAL) if args.rehearse else config
            run, about = train_arm(work, arm, config, name, **options)
            made[arm].append(about)
            parts.append(video_losses(run).assign(arm=arm, seed=seed))
            if args.rehearse:
                shutil.rmtree(run.folder)  # nearly a gigabyte of weights that mean nothing
    if int(os.environ.get("RANK", 0)) == 0:
        size = REHEARSAL["size"] if args.rehearse else 0
        summary = summarise(pd.concat(parts), made, size)
        summary.to_csv(table, index=False, float_format="%.4g")
        print(summary.to_string(index=False))


if __name__ == "__main__":
    main()
