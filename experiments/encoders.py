"""The question of B3 to B7, rehearsed: does a larger pretrained network spot fakes better, and what
do sampling, smoothing and augmentation do? Writes experiments/encoders.csv (an hour on two cores).

    python -m experiments.encoders

Networks learn a sample on which nothing was tuned, and score the 288 videos of another one. Lite0,
Lite1 and Lite2 see pictures that grow as their own inputs do. "pretrained" and "from scratch": five
seeds each, with the demo's steps, and with as many as fit into Lite0's time; and a Lite0 from
scratch with four times the steps. Each ablation changes one setting of a pretrained Lite0, with
three seeds.

One line per arm and seed, then one for all seeds: video AUC and log loss (mean of a video's crops),
and by how much both exceed those of the arm in `against`, seed by seed. Intervals: 95 % by
bootstrap over originals, with the networks fixed.
"""

import argparse
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from dfdc_lib.config import DEMO_TRAINING, TrainConfig
from dfdc_lib.metrics import auc, log_loss
from dfdc_lib.store import WorkFolder
from dfdc_lib.train import score_videos
from experiments.intervals import compare_seeds
from experiments.training import Job, describe_run, prepare_both, train_all

TABLE = Path(__file__).with_suffix(".csv")
# The same share of their own inputs (224, 240 and 260 pixels) for all three; and the steps that
# take as long as Lite0's 75: on one core, a step takes 0.84, 1.33 and 1.61 seconds.
SIZES = {"lite0": 128, "lite1": 137, "lite2": 149}
STEPS_IN_EQUAL_TIME = {"lite1": 47, "lite2": 39}
PLAIN = replace(DEMO_TRAINING, paired=False)


class Arm(NamedTuple):
    """One setting, trained with several seeds."""

    config: TrainConfig
    pretrained: bool = True
    seeds: int = 3
    against: str = ""  # the arm to compare it with


def encoder_arms() -> Iterator[tuple[str, Arm]]:
    """Each network as it comes, from scratch, and stopped when Lite0 is done."""
    for encoder, size in SIZES.items():
        config = replace(DEMO_TRAINING, encoder=encoder, size=size)
        for pretrained, start in ((True, ""), (False, " from scratch")):
            other = f"lite0{start}" if encoder != "lite0" else "" if pretrained else "lite0"
            yield f"{encoder}{start}", Arm(config, pretrained, 5, other)
            if steps := STEPS_IN_EQUAL_TIME.get(encoder):
                short = replace(config, steps=steps)
                yield f"{encoder}{start}, equal time", Arm(short, pretrained, 5, other)
    longer = replace(DEMO_TRAINING, steps=4 * DEMO_TRAINING.steps)
    yield "lite0 from scratch, four times the steps", Arm(longer, False, 3, "lite0")


ARMS = dict(encoder_arms()) | {
    "the slides' draw, not pairs": Arm(PLAIN, against="lite0"),
    "smoothing 0": Arm(replace(DEMO_TRAINING, smoothing=0.0), against="lite0"),
    "smoothing 0.01": Arm(replace(DEMO_TRAINING, smoothing=0.01), against="lite0"),
    "smoothing 0.1": Arm(replace(DEMO_TRAINING, smoothing=0.1), against="lite0"),
}
for kind in ("none", "slides", "hard"):  # hard can't augment pairs, so all three do without them
    config = replace(PLAIN, augmentation=kind)
    ARMS[f"augmentation {kind}"] = Arm(config, against="the slides' draw, not pairs")


def run_name(arm: str, seed: int) -> str:
    return re.sub("[^a-z0-9.]+", "-", arm.replace("'", "")) + f"_{seed}"


def list_jobs(learned: WorkFolder, unseen: WorkFolder, arms: dict[str, Arm]) -> list[Job]:
    """Every training, seed by seed, so that a run that ends early has some of each arm."""
    return [
        Job(learned, run_name(name, seed), replace(arm.config, seed=seed), arm.pretrained, unseen)
        for seed in range(max(arm.seeds for arm in arms.values()))
        for name, arm in arms.items()
        if seed < arm.seeds
    ]


def summarise(name: str, videos: dict[str, pd.DataFrame]) -> Iterator[dict]:
    """The lines of one arm: each seed, then all of them, and how far they are from another arm.

    videos: arm → columns video_id, label, original_id, seed, p_fake.
    """
    arm = ARMS[name]
    about = {"arm": name, "against": arm.against, "pretrained": arm.pretrained}
    shown = ("encoder", "size", "steps", "paired", "smoothing", "augmentation")
    about |= {key: value for key, value in asdict(arm.config).items() if key in shown}
    for seed, rows in [*videos[name].groupby("seed"), ("all", videos[name])]:
        line = about | {"seed": seed}
        for label, metric in (("auc", auc), ("log_loss", log_loss)):
            found = compare_seeds(metric, rows, "p_fake")
            line |= {label: found["value"], f"{label}_low": found["low"]}
            line |= {f"{label}_high": found["high"]}
            if seed == "all" and arm.against:
                key = ["seed", "video_id", "label", "original_id"]
                both = rows.merge(videos[arm.against], on=key, suffixes=("", "_other"))
                gained = compare_seeds(metric, both, "p_fake", "p_fake_other")
                line |= {f"{label}_gain_{part}": value for part, value in gained.items()}
        yield line


def main() -> None:
    """Train everything, or resume; write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=0, help="networks at once; 0: one per core")
    workers = parser.parse_args().workers
    learned, unseen = prepare_both()
    scored = train_all(list_jobs(learned, unseen, ARMS), workers)
    videos = {
        name: pd.concat(
            score_videos(scored[run_name(name, seed)]).assign(seed=seed)
            for seed in range(arm.seeds)
        )
        for name, arm in ARMS.items()
    }
    table = pd.DataFrame([line for name in ARMS for line in summarise(name, videos)])
    table.assign(**describe_run()).to_csv(TABLE, index=False, float_format="%.4f")


if __name__ == "__main__":
    main()
