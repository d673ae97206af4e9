"""From a video to a verdict: 32 frames, their faces, a score each, one number."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dfdc_lib.aggregate import STRATEGIES
from dfdc_lib.augment import valid_transforms
from dfdc_lib.config import INFERENCE_THRESHOLDS
from dfdc_lib.faces import FaceDetector, Faces, link_faces
from dfdc_lib.geometry import add_margin, crop_box
from dfdc_lib.model import DeepfakeClassifier, load_checkpoint
from dfdc_lib.paths import appear_whole
from dfdc_lib.video import VideoError, read_spread_frames

VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm")
REHEARSAL_WARNING = (
    "this checkpoint has learned the sample only, a rehearsal stage with two people: "
    "on any other video its score means nothing"
)


@dataclass
class Verdict:
    """What can be said about one video.

    status: "ok", "no_face", "decode_error", "unreadable". p_fake is None unless the status is "ok": a video that could
    not be judged gets no score. faces: one row a face and checkpoint (frame_idx, face_idx, x0, y0, x1, y1, score,
    checkpoint, p_fake).
    """

    video: Path
    status: str
    p_fake: float | None
    n_frames: int
    faces: pd.DataFrame
    reason: str = ""


def load_models(models: Iterable[DeepfakeClassifier | Path | str]) -> list[DeepfakeClassifier]:
    """Load what is given as a path, keep what is loaded. Raises ValueError where nothing is given."""
    loaded = [m if isinstance(m, DeepfakeClassifier) else load_checkpoint(m) for m in models]
    if not loaded:
        raise ValueError("a verdict needs at least one checkpoint")
    return loaded


@cache
def _detector() -> FaceDetector:
    return FaceDetector(INFERENCE_THRESHOLDS)


def predict_video(path: Path, models, n_frames: int = 32, strategy: str = "confident") -> Verdict:
    """Score one video: `n_frames` frames spread evenly, every face in them, `strategy` over all, mean over models.

    models: loaded models or checkpoint paths. strategy: a name from `aggregate.STRATEGIES`. A file that is not there
    raises FileNotFoundError; a video that can't be judged gives a verdict with a status and no score.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"unknown strategy {strategy!r}: choose one of {', '.join(STRATEGIES)}")
    models = load_models(models)
    try:
        numbers, frames = read_spread_frames(path, n_frames)
    except VideoError as error:
        return Verdict(Path(path), error.status, None, 0, pd.DataFrame(), str(error))
    found = _detector().detect_resized(frames)
    table = tabulate_faces(numbers, found)
    if table.empty:
        return Verdict(Path(path), "no_face", None, len(frames), table, f"no face in {len(frames)} frames")
    by_number = dict(zip(numbers, frames, strict=True))
    scored = [table.assign(checkpoint=i, p_fake=score_faces(by_number, table, model)) for i, model in enumerate(models)]
    p_fake = float(np.mean([STRATEGIES[strategy](faces.p_fake) for faces in scored]))
    return Verdict(Path(path), "ok", p_fake, len(frames), pd.concat(scored, ignore_index=True))


def tabulate_faces(numbers: list[int], found: list[Faces]) -> pd.DataFrame:
    """One row a face: frame_idx, face_idx, box in pixels of the frame, the detector's score."""
    rows = [
        (number, who, *box, score)
        for number, faces, people in zip(numbers, found, link_faces(found, numbers), strict=True)
        for who, box, score in zip(people, faces.boxes, faces.scores, strict=True)
    ]
    return pd.DataFrame(rows, columns=["frame_idx", "face_idx", "x0", "y0", "x1", "y1", "score"])


def cut_face(frames: dict[int, np.ndarray], row, margin: float) -> np.ndarray:
    """The crop (H, W, 3) uint8 RGB of one row of a faces table, with `margin`."""
    frame = frames[row.frame_idx]
    return crop_box(frame, add_margin((row.x0, row.y0, row.x1, row.y1), margin, frame.shape[1], frame.shape[0]))


def score_faces(
    frames: dict[int, np.ndarray], table: pd.DataFrame, model: DeepfakeClassifier, batch: int = 32
) -> np.ndarray:
    """p_fake (n,) of each face of a table, with the margin and the size that the checkpoint was trained with."""
    transform = valid_transforms(model.card.size)
    crops = [transform(image=cut_face(frames, row, model.card.margin))["image"] for row in table.itertuples()]
    scores = [model.predict(torch.stack(crops[i : i + batch])) for i in range(0, len(crops), batch)]
    return torch.cat(scores).numpy()


def find_videos(inputs: Iterable[Path | str]) -> list[Path]:
    """Expand folders to the videos in them (by suffix, at any depth, sorted). Raises FileNotFoundError."""
    videos = []
    for given in map(Path, inputs):
        if not given.exists():
            raise FileNotFoundError(f"no such file or folder: {given}")
        inside = (
            sorted(p for p in given.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES and p.is_file())
            if given.is_dir()
            else [given]
        )
        if not inside:
            raise FileNotFoundError(f"no video ({', '.join(VIDEO_SUFFIXES)}) in {given}")
        videos += inside
    return videos


def write_verdicts(verdicts: list[Verdict], out: Path) -> None:
    """Write the submission `out`: filename, label, for scored videos only.

    Beside it go status.csv (all videos) and predictions.parquet (one row a face and checkpoint).
    """
    out = Path(out)
    if out.name in ("status.csv", "predictions.parquet"):
        raise ValueError(f"{out.name} is the name of another result: name the submission otherwise")
    scored = [v for v in verdicts if v.p_fake is not None]
    submission = pd.DataFrame({"filename": [v.video.name for v in scored], "label": [v.p_fake for v in scored]})
    status = pd.DataFrame(
        [(v.video.name, v.status, v.n_frames, v.reason) for v in verdicts],
        columns=["filename", "status", "n_frames", "reason"],
    )
    faces = pd.concat([v.faces.assign(video=v.video.name) for v in verdicts], ignore_index=True)
    with appear_whole(out) as temporary:
        submission.to_csv(temporary, index=False)
    with appear_whole(out.parent / "status.csv") as temporary:
        status.to_csv(temporary, index=False)
    with appear_whole(out.parent / "predictions.parquet") as temporary:
        faces.to_parquet(temporary, index=False)
