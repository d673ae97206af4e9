"""What twelve models say about every frame of held-out videos. Writes experiments/frame_scores.csv
(about 5 minutes).

    python -m experiments.seeds && python -m experiments.frame_scores

The models are those of experiments/seeds.py; each video is scored by those that never saw its fold.
One line a face, p_fake of each model in a column: seed_0 … seed_7, and longer_0 … longer_3 which
were trained four times as long. Notebooks 09 and 10 show the table.
"""

import argparse
from pathlib import Path

import pandas as pd

from benchmarks.measure import stamp
from dfdc_lib.config import PredictConfig
from dfdc_lib.dataset import read_folds
from dfdc_lib.metadata import read_metadata
from dfdc_lib.predict import load_models, predict_videos
from dfdc_lib.rehearsal.sample import read_methods
from dfdc_lib.store import WorkFolder
from experiments.seeds import ARMS, FOLDS

TABLE = Path(__file__).with_suffix(".csv")
FRAMES = 48  # all that a video of the sample has


def score_fold(data: Path, work: WorkFolder, fold: int) -> pd.DataFrame:
    """The faces of a fold's videos: video_id, frame_idx, face_idx and a column a seed."""
    names = [f"{arm}_{seed}" for arm in ("seed", "longer") for seed in ARMS[arm][1]]
    paths = [work.run(name.replace("_", f"_{fold}_")) / "last.pt" for name in names]
    models = dict(zip(names, load_models(paths).values(), strict=True))
    crops = read_folds(work)
    files = read_metadata(data).set_index("video_id").file
    held_out = sorted(crops.video_id[crops.fold == fold].unique())
    videos, tables = [data / files[video_id] for video_id in held_out], []
    for verdict in predict_videos(videos, models, PredictConfig(FRAMES)):
        face = ["frame_idx", "face_idx"]
        wide = verdict.faces.pivot_table(index=face, columns="checkpoint", values="p_fake")
        tables.append(wide.reset_index().assign(video_id=verdict.video.stem))
        print(f"{verdict.video.stem}: {verdict.status}", flush=True)
    return pd.concat(tables).assign(fold=fold)


def main() -> None:
    """Score the videos, write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("data/audit"))
    data = parser.parse_args().data
    faces = pd.concat([score_fold(data, WorkFolder.beside(data), fold) for fold in FOLDS])
    about = read_metadata(data).set_index("video_id")[["label", "original_id"]]
    table = faces.join(about, on="video_id").assign(
        method=faces.video_id.map(read_methods(data)).fillna("original")
    )
    first = ["video_id", "label", "original_id", "method", "fold", "frame_idx", "face_idx"]
    table = table[first + sorted(set(table) - set(first))]
    made = ", ".join(stamp("timm").values())  # once, as a comment: a column would double the file
    TABLE.write_text(f"# {made}\n" + table.to_csv(index=False, float_format="%.3f"))


if __name__ == "__main__":
    main()
