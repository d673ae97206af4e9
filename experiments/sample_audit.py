"""Is the sample fair and learnable? Writes experiments/sample_audit.csv (about 15 minutes on two
cores).

    python -m experiments.sample_audit

Fair: what must not tell a fake from an original does not: file size, bitrate, resolution, the
picture with the face blanked, whose face it is and on whose head. Learnable: the demo's encoder
does tell, each seed holding out another part. The sample is made with a seed on which nothing was
tuned. Intervals: 95 %, by bootstrap over originals.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dfdc_lib.config import DEMO_TRAINING, Margin, PreprocessConfig, TrainConfig
from dfdc_lib.dataset import read_folds
from dfdc_lib.geometry import add_margin
from dfdc_lib.metadata import read_metadata
from dfdc_lib.metrics import auc, bootstrap_interval, log_loss
from dfdc_lib.ops.pipeline import preprocess
from dfdc_lib.rehearsal.people import PEOPLE, other_face
from dfdc_lib.rehearsal.sample import make_sample, read_methods, read_recipes
from dfdc_lib.store import WorkFolder, face_file, read_png, write_png
from dfdc_lib.train import score_videos, train
from dfdc_lib.video import probe
from experiments.training import LEARNED, LEARNED_SEED

TABLE = Path(__file__).with_suffix(".csv")


def summarise(check: str, videos: pd.DataFrame, loss: bool = False) -> dict:
    """One line of the table from columns label, p_fake, original_id."""
    low, high = bootstrap_interval(auc, videos.label, videos.p_fake, videos.original_id)
    line = {
        "check": check,
        "videos": len(videos),
        "auc": auc(videos.label, videos.p_fake),
        "auc_low": low,
        "auc_high": high,
    }
    return line | {"log_loss": log_loss(videos.label, videos.p_fake) if loss else None}


def header_features(data: Path) -> pd.DataFrame:
    """What can be known of each video without looking at it."""
    videos = read_metadata(data)
    size = np.array([(data / file).stat().st_size for file in videos.file], float)
    info = [probe(data / file) for file in videos.file]
    seconds = np.array([i.n_frames / i.fps for i in info])
    pixels = np.array([i.width * i.height for i in info], float)
    return videos.assign(file_size=size, bitrate=size / seconds, resolution=pixels)


def predict_across_parts(features: np.ndarray, videos: pd.DataFrame) -> pd.DataFrame:
    """p_fake of each row by a logistic regression fitted on the other parts."""
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=0.1, max_iter=2000, class_weight="balanced")
    )
    scores = cross_val_predict(
        model,
        features,
        videos.label,
        groups=videos.part,
        cv=LeaveOneGroupOut(),
        method="predict_proba",
    )
    return videos.assign(p_fake=scores[:, 1])


def check_headers(data: Path) -> Iterator[dict]:
    """File size, bitrate and resolution, one by one and together."""
    videos = header_features(data)
    names = ["file_size", "bitrate", "resolution"]
    for name in names:
        yield summarise(
            name.replace("_", " ") + " alone", videos.assign(p_fake=videos[name].rank(pct=True))
        )
    yield summarise(
        "file size, bitrate, resolution together",
        predict_across_parts(np.log(videos[names]), videos),
    )


def identity_seen(recipe: dict) -> str:
    """Whom the first person of a video seems to be: after a swap, a head with the other face."""
    filmed = recipe["shot"]["identities"][0]
    if recipe.get("fake", {}).get("method") not in ("swap", "autoencoder"):
        return filmed
    seen = (PEOPLE[filmed][0], other_face(filmed))
    return next(identity for identity, parts in PEOPLE.items() if parts == seen)


def check_identity(data: Path, work: WorkFolder) -> Iterator[dict]:
    """Whose face it is: as known from the making of the sample, and according to a recogniser."""
    recipes = read_recipes(data)
    videos = read_metadata(data)
    seen = [PEOPLE[identity_seen(recipes[v])] for v in videos.video_id]
    known = [float(face == "hopper") for _, face in seen]
    yield summarise("whose face is seen: known", videos.assign(p_fake=known))
    known = [float(head != face) for head, face in seen]
    yield summarise("a face on another's head: known", videos.assign(p_fake=known))
    crops = read_folds(work)
    crops = crops[crops.face_idx == 0].assign(
        filmed=lambda t: [recipes[v]["shot"]["identities"] for v in t.video_id]
    )
    crops = crops[crops.filmed.map(len) == 1]
    yield summarise(
        "whose face is seen: told by a recogniser", score_videos(recognise(work, crops))
    )


def recognise(work: WorkFolder, crops: pd.DataFrame) -> pd.DataFrame:
    """p_fake = "this is Hopper", by a logistic regression that learned small faces of originals."""
    faces = np.stack([small_face(work, row) for row in crops.itertuples()])
    hopper = crops.filmed.map(lambda filmed: PEOPLE[filmed[0]][1] == "hopper").to_numpy()
    p_hopper = np.zeros(len(crops))
    for part in crops.part.unique():
        here, learn = (
            (crops.part == part).to_numpy(),
            ((crops.part != part) & (crops.label == 0)).to_numpy(),
        )
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)).fit(
            faces[learn], hopper[learn]
        )
        p_hopper[here] = model.predict_proba(faces[here])[:, 1]
    return crops.assign(p_fake=p_hopper)


def small_face(work: WorkFolder, row) -> np.ndarray:
    """The middle of a crop, from brows to mouth: 144 grey values of mean 0 and spread 1."""
    crop = read_png(work.crops(row.video_id) / face_file(row.frame_idx, row.face_idx))
    height, width = crop.shape[:2]
    inner = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)[
        height // 3 : -height // 4, width * 3 // 10 : -width * 3 // 10
    ]
    grey = cv2.resize(inner, (12, 12), interpolation=cv2.INTER_AREA).astype(float).ravel()
    return (grey - grey.mean()) / (grey.std() + 1e-6)


def blank_faces(data: Path, work: WorkFolder) -> WorkFolder:
    """A copy of the crops with a margin of 60 %; every face box and 10 % around it are black."""
    blanked = WorkFolder(work.root.parent / f"{work.root.name}-blanked")
    preprocess(data, blanked, PreprocessConfig(margin=Margin(0.6)), workers=os.cpu_count() or 1)
    for row in read_folds(blanked).itertuples():
        path = blanked.crops(row.video_id) / face_file(row.frame_idx, row.face_idx)
        boxes = json.loads(blanked.boxes(row.original_id).read_text())["frames"]
        found = next(frame for frame in boxes if frame["frame_idx"] == row.frame_idx)
        write_png(path, blank_crop(read_png(path), found["boxes"], row.x0, row.y0))
    return blanked


def blank_crop(crop: np.ndarray, boxes: list, left: int, top: int) -> np.ndarray:
    """Black out every face of the frame inside this crop, which begins at (left, top)."""
    for box in boxes:
        x0, y0, x1, y1 = add_margin(box, Margin(0.1), 10**5, 10**5)
        crop[max(y0 - top, 0) : max(y1 - top, 0), max(x0 - left, 0) : max(x1 - left, 0)] = 0
    return crop


def train_each_part(work: WorkFolder, config: TrainConfig) -> tuple[pd.DataFrame, float]:
    """Train a model per part, with its own seed and held-out part; pool the held-out videos."""
    started, pooled = time.monotonic(), []
    folds = sorted(read_folds(work).fold.unique())
    for fold in folds:
        settings, name = replace(config, fold=int(fold), seed=int(fold)), f"audit_{fold}"
        run = train(work, settings, name, pretrained=True, overwrite=True)
        run.require_finished()
        pooled.append(score_videos(run.held_out))
    return pd.concat(pooled, ignore_index=True), (time.monotonic() - started) / len(folds)


def check_learning(data: Path, work: WorkFolder, config: TrainConfig) -> Iterator[dict]:
    """Blanked faces, then whole crops, then each method against all originals."""
    blanked, _ = train_each_part(blank_faces(data, work), config)
    yield summarise(f"face blanked, {config.encoder}", blanked, loss=True)
    videos, seconds = train_each_part(work, config)
    whole = summarise(f"whole crop, {config.encoder}", videos, loss=True)
    yield whole | {"seconds_to_train": seconds}
    methods = videos.video_id.map(read_methods(data)).fillna("real")
    for method in sorted(set(methods) - {"real"}):
        yield summarise(
            f"… its {method} fakes against all originals", videos[methods.isin(["real", method])]
        )


def audit(data: Path) -> pd.DataFrame:
    """Run all checks on a sample, one line each."""
    work = WorkFolder.beside(data)
    preprocess(data, work, workers=os.cpu_count() or 1)
    lines = []
    for checks in (
        check_headers(data),
        check_identity(data, work),
        check_learning(data, work, DEMO_TRAINING),
    ):
        for line in checks:
            print(line, flush=True)
            lines.append(line)
    return pd.DataFrame(lines)


def main() -> None:
    """Make the sample, audit it, write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=LEARNED)
    data = make_sample(parser.parse_args().data, seed=LEARNED_SEED, workers=os.cpu_count() or 1)
    versions = " ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("torch", "timm", "opencv-python-headless", "av")
    )
    stamp = {
        "sample_seed": LEARNED_SEED,
        "date": datetime.date.today().isoformat(),
        "versions": versions,
    }
    audit(data).assign(**stamp).to_csv(TABLE, index=False, float_format="%.3f")


if __name__ == "__main__":
    main()
