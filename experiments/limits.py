"""Where does a score stop meaning much? Small faces and few frames. Writes experiments/limits.csv
(four minutes on two cores, after experiments/ensembles.py).

    python -m experiments.limits

The four Lite0 with four times the steps score 288 videos that they have not seen.

"width": crops of faces at least 64 pixels wide, shrunk until the face is this wide, and enlarged
again to the network's input; AUC of crops. "frames": this many of the 32 frames, spread evenly,
joined by the slides' strategy; AUC of videos. One line per value: the mean of the networks, and by
how much it exceeds that of the whole (a width of 64 pixels; 32 frames), with 95 % intervals by
bootstrap over originals.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch

from dfdc_lib.augment import valid_transforms
from dfdc_lib.dataset import read_folds
from dfdc_lib.geometry import isotropic_resize, spread_indices
from dfdc_lib.model import load_checkpoint, score
from dfdc_lib.store import WorkFolder, face_file, read_png
from experiments.ensembles import ARMS, FRAME_SCORES, join_faces, list_models
from experiments.intervals import compare_auc
from experiments.training import describe_run, prepare_both

TABLE = Path(__file__).with_suffix(".csv")
WIDTHS = (8, 12, 16, 24, 32, 48, 64)  # of a face, pixels; the last is the whole
FRAMES = (1, 2, 4, 8, 16, 32)
NETWORKS = [f"longer_{seed}" for seed in range(ARMS["longer"][1])]


def shrink(crop: np.ndarray, factor: float) -> np.ndarray:
    """Make a crop smaller, as a smaller face would have been filmed."""
    size = [max(round(length * factor), 1) for length in crop.shape[1::-1]]
    return cv2.resize(crop, size, interpolation=cv2.INTER_AREA)


def score_widths(work: WorkFolder, checkpoints: list[Path]) -> pd.DataFrame:
    """A line per network and crop: its p_fake at each width."""
    rows = read_folds(work)
    rows = rows.assign(width=(rows.x1 - rows.x0) / 1.4)  # a margin of 20 % on each side
    rows = rows[rows.width >= WIDTHS[-1]]
    files = (work.crops(r.video_id) / face_file(r.frame_idx, r.face_idx) for r in rows.itertuples())
    crops, models = [read_png(file) for file in files], [load_checkpoint(c) for c in checkpoints]
    size = models[0].card.size
    tables = [rows.assign(seed=seed) for seed in range(len(models))]
    for width in WIDTHS:
        small = map(shrink, crops, width / rows.width)
        views = [valid_transforms(size)(image=isotropic_resize(c, size))["image"] for c in small]
        for table, model in zip(tables, models, strict=True):
            parts = [score(model, batch) for batch in torch.stack(views).split(64)]
            table[str(width)] = torch.cat(parts).numpy()
    return pd.concat(tables)


def join_frames(faces: pd.DataFrame) -> pd.DataFrame:
    """A line per network and video: its p_fake from each number of frames."""
    whole = []
    for seed, network in enumerate(NETWORKS):
        columns = {}
        for count in FRAMES:
            own = faces.groupby("video_id").frame_idx.transform(lambda f, n=count: choose(f, n))
            columns[str(count)] = join_faces(faces[own], network).set_index("video_id").p_confident
        about = faces.groupby("video_id")[["label", "original_id"]].first()
        whole.append(about.join(pd.DataFrame(columns), how="inner").assign(seed=seed))
    return pd.concat(whole).dropna()


def choose(frame_idx: pd.Series, count: int) -> pd.Series:
    """Which faces are in `count` of a video's frames?"""
    frames = np.unique(frame_idx)
    return frame_idx.isin(frames[spread_indices(len(frames), count)])


def summarise(kind: str, scored: pd.DataFrame, values: tuple[int, ...]) -> Iterator[dict]:
    """A line per value: AUC, and how far it is from the last value's."""
    for value in values:
        found = compare_auc(scored, str(value))
        line = {"kind": kind, "value": value, "auc": found["value"]}
        line |= {"low": found["low"], "high": found["high"], "items": len(scored) // len(NETWORKS)}
        if value != values[-1]:
            against = compare_auc(scored, str(value), str(values[-1]))
            line |= {f"against_{name}": number for name, number in against.items()}
        yield line


def main() -> None:
    """Score again; write the table."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    learned, unseen = prepare_both()
    models = list_models(learned)
    missing = [models[name] for name in NETWORKS if not models[name].exists()]
    if missing:
        raise FileNotFoundError(f"{missing[0]} is missing: run experiments.ensembles first")
    lines = [*summarise("width", score_widths(unseen, [models[n] for n in NETWORKS]), WIDTHS)]
    lines += summarise("frames", join_frames(pd.read_csv(FRAME_SCORES, comment="#")), FRAMES)
    pd.DataFrame(lines).assign(**describe_run()).to_csv(TABLE, index=False, float_format="%.3f")


if __name__ == "__main__":
    main()
