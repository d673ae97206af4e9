"""What do several networks gain, and which rule joins their scores best? Writes
experiments/frame_scores.csv and experiments/ensembles.csv (an hour on two cores; half of that if
experiments/encoders.py has run).

    python -m experiments.ensembles

Pretrained networks learn a sample on which nothing was tuned, and score 32 frames of each of the
288 videos of another one, as `dfdc predict` does. "seed": 15 Lite0 with the demo's settings.
"longer": four Lite0 with four times the steps; the last epochs of the first one are "snapshot".
"larger": five Lite2. "larger, longer": two Lite2 with twice the steps.

frame_scores.csv: one line per face, with a column for the p_fake of each "seed" and "longer".
ensembles.csv: one line per model and video, joined by the mean and by the slides' strategy;
`number` is the model's seed, or a snapshot's epoch.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from dfdc_lib.aggregate import join_videos
from dfdc_lib.config import DEMO_TRAINING, PredictConfig
from dfdc_lib.jobs import count_cores, run_jobs
from dfdc_lib.metadata import read_metadata
from dfdc_lib.predict import load_models, predict_videos
from dfdc_lib.rehearsal.sample import read_methods
from dfdc_lib.store import WorkFolder
from experiments.encoders import SIZES
from experiments.training import UNSEEN, Job, describe_run, prepare_both, train_all

TABLE = Path(__file__).with_suffix(".csv")
FRAME_SCORES = Path(__file__).with_name("frame_scores.csv")
LARGER = replace(DEMO_TRAINING, encoder="lite2", size=SIZES["lite2"])
# arm → (settings, networks, name of their runs: those of experiments/encoders.py are reused)
ARMS = {
    "seed": (DEMO_TRAINING, 15, "lite0"),
    "longer": (replace(DEMO_TRAINING, steps=4 * DEMO_TRAINING.steps), 4, "lite0-longer"),
    "larger": (LARGER, 5, "lite2"),
    "larger, longer": (replace(LARGER, steps=2 * LARGER.steps), 2, "lite2-longer"),
}
COMPILED = PredictConfig(backend="openvino", precision="fp32")  # 28 networks: it pays here
KEEP_EVERY, SNAPSHOTS = 2, (7, 9, 11)  # epochs of the first "longer" run that vote as snapshots


def list_jobs(learned: WorkFolder) -> list[Job]:
    """Every training; the first "longer" one keeps its epochs."""
    return [
        Job(
            learned,
            f"{name}_{seed}",
            replace(config, seed=seed),
            keep_every=KEEP_EVERY if (arm, seed) == ("longer", 0) else 0,
        )
        for arm, (config, count, name) in ARMS.items()
        for seed in range(count)
    ]


def list_models(learned: WorkFolder) -> dict[str, Path]:
    """Model → checkpoint; models are named seed_0 or, by epoch, snapshot_7."""
    models = {
        f"{arm}_{seed}": learned.run(f"{name}_{seed}") / "last.pt"
        for arm, (_, count, name) in ARMS.items()
        for seed in range(count)
    }
    folder = learned.run(f"{ARMS['longer'][2]}_0")
    return models | {f"snapshot_{epoch}": folder / f"epoch_{epoch}.pt" for epoch in SNAPSHOTS}


def score_faces(videos: Sequence[Path], models: dict[str, Path]) -> pd.DataFrame:
    """Score the faces of some videos: video_id, frame_idx, face_idx and a column per model."""
    loaded = dict(zip(models, load_models(models.values(), COMPILED).values(), strict=True))
    tables = []
    for number, verdict in enumerate(predict_videos(videos, loaded, COMPILED), 1):
        face = ["frame_idx", "face_idx"]
        wide = verdict.faces.pivot_table(index=face, columns="checkpoint", values="p_fake")
        tables.append(wide.reset_index().assign(video_id=verdict.video.stem))
        if number % 24 == 0:
            print(f"24 more of {len(videos)} videos scored", flush=True)
    return pd.concat(tables)


def score_all(data: Path, models: dict[str, Path]) -> pd.DataFrame:
    """Score all videos of a data set (see `score_faces`); add each video's label, …"""
    videos = read_metadata(data).set_index("video_id")
    paths = [data / file for file in videos.file]
    cores = count_cores()
    jobs = [(paths[i::cores], models) for i in range(cores)]
    tables = [table for _, table in run_jobs(score_faces, jobs, cores, time_limit=7200)]
    faces = pd.concat(tables).join(videos[["label", "original_id"]], on="video_id")
    faces = faces.assign(method=faces.video_id.map(read_methods(data)).fillna("original"))
    first = ["video_id", "label", "original_id", "method", "frame_idx", "face_idx"]
    return faces.sort_values(["video_id", "frame_idx", "face_idx"])[first + list(models)]


def join_faces(faces: pd.DataFrame, column: str) -> pd.DataFrame:
    """A model's p_fake of each video, joined by the mean and by the slides' strategy."""
    video_ids, mean = join_videos("mean", faces[column], faces.video_id)
    _, confident = join_videos("confident", faces[column], faces.video_id)
    about = faces.groupby("video_id")[["label", "original_id", "method"]].first().loc[video_ids]
    return about.assign(p_mean=mean, p_confident=confident).reset_index()


def main() -> None:
    """Train everything, or resume; score the videos; write the tables."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    learned, _ = prepare_both()
    train_all(list_jobs(learned))
    models = list_models(learned)
    faces, made = score_all(UNSEEN, models), describe_run()
    shown = [name for name in faces if not name.startswith(("larger", "snapshot"))]
    made["sample"] = f"sample {made['sample']}"
    about = "# " + ", ".join(made.values()) + "\n"  # once: a column would double the file
    FRAME_SCORES.write_text(about + faces[shown].to_csv(index=False, float_format="%.3f"))
    videos = []
    for model in models:
        arm, _, number = model.rpartition("_")
        videos.append(join_faces(faces, model).assign(arm=arm, number=number))
    TABLE.write_text(about + pd.concat(videos).to_csv(index=False, float_format="%.4f"))


if __name__ == "__main__":
    main()
