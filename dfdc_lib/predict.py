"""From a video to a verdict: 32 frames, their faces, a score each, one number.

Three stages run at the same time, each a few frames ahead of the next: decoding, face detection, scoring. A frame is
dropped as soon as its faces are cut out, so memory does not grow with a video's length, nor with their number.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
import torch

from dfdc_lib.aggregate import STRATEGIES, join_videos
from dfdc_lib.augment import valid_transforms
from dfdc_lib.config import INFERENCE_THRESHOLDS, PredictConfig
from dfdc_lib.faces import DETECT_AT_ONCE, Faces, link_faces, shared_detector
from dfdc_lib.geometry import cut_face, isotropic_resize, spread_indices
from dfdc_lib.model import DeepfakeClassifier, ModelCard, load_checkpoint
from dfdc_lib.tasks import cores
from dfdc_lib.video import VideoError, iterate_frames, probe, run_ahead

REHEARSAL_WARNING = (
    "this checkpoint has learned the sample only, a rehearsal stage with two people: "
    "on any other video its score means nothing"
)
BATCH = {"cpu": 8, "cuda": 32}  # crops that a model is given at once
FACE_COLUMNS = ["frame_idx", "face_idx", "x0", "y0", "x1", "y1", "score"]


@dataclass
class Verdict:
    """What can be said about one video.

    status: "ok" · "short" (fewer frames than asked for, or the file breaks off) · "decode_error" · "detect_error" ·
    "no_face" · "no_video_stream" · "unreadable" · "too_large" · "missing_file"; of `dfdc predict` also "crashed" ·
    "timeout" · "out_of_memory" (see submission.py). p_fake is None where no face was seen: what could not be judged has
    no score. The first four may have one, from the frames that could be read. faces: one row a face and checkpoint
    (frame_idx, face_idx, box x0, y0, x1, y1 in pixels, the detector's score, checkpoint, p_fake).
    """

    video: Path
    status: str
    p_fake: float | None = None
    n_frames: int = 0
    faces: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=[*FACE_COLUMNS, "checkpoint", "p_fake"]))
    reason: str = ""
    strategy: str = PredictConfig.strategy
    procedure: str = "slides"  # how its faces were found and cut: a name from config.PROCEDURES

    @property
    def n_faces(self) -> int:
        """Faces seen, each once however many models judged it."""
        return len(self.faces.drop_duplicates(["frame_idx", "face_idx"]))

    @property
    def people(self) -> pd.DataFrame:
        """One row a person: face_idx, n_faces, p_fake (the strategy over that person's faces, mean over models)."""
        rows = [
            (who, faces.frame_idx.nunique(), join_models(faces, self.strategy))
            for who, faces in self.faces.groupby("face_idx")
        ]
        return pd.DataFrame(rows, columns=["face_idx", "n_faces", "p_fake"])


class Cut(NamedTuple):
    """How a checkpoint wants its crops: margin (see geometry.add_margin) and side of the square, pixels."""

    margin: float | str
    size: int

    @classmethod
    def of(cls, model: DeepfakeClassifier, procedure: str) -> "Cut":
        """Those that a model judges under a procedure, a name from config.PROCEDURES."""
        return cls("upstream" if procedure == "upstream" else model.card.margin, model.card.size)


class Frame(NamedTuple):
    """A decoded frame on its way."""

    frame_idx: int
    picture: np.ndarray  # (H, W, 3) uint8 RGB


class Seen(NamedTuple):
    """The faces of a frame, with their crops as each checkpoint wants them."""

    frame_idx: int
    height: int  # of the frame, pixels: a video's size may change midway
    faces: Faces
    crops: dict[Cut, list[np.ndarray]]  # each (H, W, 3) uint8 RGB, its longer side the cut's size


class End(NamedTuple):
    """A video is through: what it was, and what went wrong. status: as in Verdict, without "no_face"."""

    video: Path
    status: str
    reason: str


def load_models(
    models: Iterable[DeepfakeClassifier | Path | str],
    backend: str = "auto",
    precision: str = "auto",
) -> dict[str, DeepfakeClassifier]:
    """Load what is given as a path, keep what is loaded: name → model. Raises ValueError where nothing is given.

    backend, precision: how those from paths compute (see `inference.make_scorer`); a loaded one is used as it is.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = {}
    for number, model in enumerate(models):
        name = f"model {number}" if isinstance(model, DeepfakeClassifier) else str(model)
        if name in loaded:
            raise ValueError(f"{name} is given twice: its vote would count double")
        if not isinstance(model, DeepfakeClassifier):
            model = load_checkpoint(model).speed_up(backend, precision)
        loaded[name] = model.to(device).eval()
    if not loaded:
        raise ValueError("a verdict needs at least one checkpoint")
    return loaded


def choose_procedure(cards: Iterable[ModelCard]) -> str:
    """The procedure that models with these cards go with. Raises ValueError where they go with several."""
    names = sorted({card.procedure for card in cards})
    if len(names) > 1:
        raise ValueError(f"these checkpoints go with different procedures: choose --procedure {' or '.join(names)}")
    return names[0]


def predict_video(
    path: Path, models, n_frames: int = PredictConfig.frames, strategy: str = PredictConfig.strategy
) -> Verdict:
    """Score one video: `n_frames` frames spread evenly, every face in them, `strategy` over all, mean over models.

    models: loaded models or checkpoint paths. strategy: a name from `aggregate.STRATEGIES`. A file that is not there
    raises FileNotFoundError; a video that can't be judged gives a verdict with a status and no score.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"no such video: {path}")
    return next(predict_videos([path], models, PredictConfig(n_frames, strategy)))


def predict_videos(paths: Iterable[Path], models, config: PredictConfig = PredictConfig()) -> Iterator[Verdict]:
    """Yield the verdict on each video, in order. models: loaded models or checkpoint paths."""
    if config.strategy not in STRATEGIES:
        raise ValueError(f"unknown strategy {config.strategy!r}: choose one of {', '.join(STRATEGIES)}")
    models = models if isinstance(models, dict) else load_models(models)
    config = replace(config, procedure=config.procedure or choose_procedure(model.card for model in models.values()))
    cuts = {Cut.of(model, config.procedure) for model in models.values()}
    decoded = run_ahead(decode_videos(paths, config.frames), 4)
    seen = run_ahead(detect_in(decoded, config, cuts), 8)
    yield from score_videos_in(seen, models, config)


def decode_videos(paths: Iterable[Path], n_frames: int) -> Iterator[Frame | End]:
    """Decode `n_frames` frames of each video, spread evenly (all of a shorter one), each video closed by an End."""
    for path in map(Path, paths):
        try:
            info, n_decoded = probe(path), 0
            wanted = spread_indices(info.n_frames, n_frames) if info.n_frames else []
            for frame_idx, picture in iterate_frames(path, wanted, info):
                n_decoded += 1
                yield Frame(frame_idx, picture)
        except FileNotFoundError:
            yield End(path, "missing_file", "no such file (a link that leads nowhere, or removed meanwhile)")
        except VideoError as error:
            yield End(path, error.status, error.reason)
        except OSError as error:
            yield End(path, "unreadable", str(error))
        except (ValueError, RuntimeError, cv2.error) as error:  # one odd video must not end the run of the others
            yield End(path, "decode_error", f"{type(error).__name__}: {error}")
        else:
            yield End(path, *describe_decoding(len(wanted), n_decoded, info.n_missing, n_frames))


def describe_decoding(n_wanted: int, n_decoded: int, n_missing: int, n_asked: int) -> tuple[str, str]:
    """Status and reason of a video that could be opened."""
    if n_decoded == 0:
        return "decode_error", "no frame could be decoded"
    if n_decoded < n_wanted:
        return "decode_error", f"{n_wanted - n_decoded} of {n_wanted} frames can't be decoded; judged by the others"
    if n_missing:
        return "short", f"the file ends {n_missing} frames before its header says; judged by what is there"
    if n_wanted < n_asked:
        return "short", f"{n_wanted} frames in all, {n_asked} were asked for; judged by all of them"
    return "ok", ""


def detect_in(items: Iterator[Frame | End], config: PredictConfig, cuts: set[Cut]) -> Iterator[Seen | End]:
    """Find the faces of each frame and cut them out; what is not a frame is passed on."""
    failed, waiting = "", []
    for item in items:
        if isinstance(item, Frame):
            waiting.append(item)
        if isinstance(item, End) or len(waiting) == DETECT_AT_ONCE:
            for frame, faces in zip(waiting, _detect_or_tell(waiting, config), strict=True):
                if isinstance(faces, Faces):
                    crops = {cut: cut_faces(frame.picture, faces, cut) for cut in cuts}
                    yield Seen(frame.frame_idx, len(frame.picture), faces, crops)
                else:
                    failed = f"no detection in frame {frame.frame_idx} ({faces}); judged by the others"
            waiting = []
        if isinstance(item, End):
            yield item._replace(status="detect_error", reason=failed) if failed and item.status == "ok" else item
            failed = ""


def _detect_or_tell(frames: list[Frame], config: PredictConfig) -> list[Faces | str]:
    """The faces of each frame, or what went wrong with it: one odd frame does not cost its neighbours theirs."""
    try:
        detector = shared_detector(INFERENCE_THRESHOLDS, cores())
        return detector.detect_resized([frame.picture for frame in frames], config.procedure)
    except (ValueError, RuntimeError, cv2.error) as error:
        if len(frames) == 1:
            return [f"{type(error).__name__}: {error}"]
        return [found for frame in frames for found in _detect_or_tell([frame], config)]


def cut_faces(picture: np.ndarray, faces: Faces, cut: Cut) -> list[np.ndarray]:
    """The crops of a frame's faces, with the margin and the longer side that a checkpoint wants."""
    return [isotropic_resize(cut_face(picture, box, cut.margin), cut.size) for box in faces.boxes]


def score_videos_in(
    items: Iterator[Seen | End], models: dict[str, DeepfakeClassifier], config: PredictConfig
) -> Iterator[Verdict]:
    """Score crops in batches, as they come; at each End yield the video's verdict."""
    frames: list[Seen] = []
    waiting: list[dict[Cut, np.ndarray]] = []
    scores: list[dict[str, np.ndarray]] = []
    sizes = {model.card.size for model in models.values()}
    transforms = {size: valid_transforms(size) for size in sizes}
    batch = BATCH[next(iter(models.values())).fc.weight.device.type]
    for item in items:
        if isinstance(item, Seen):
            waiting += [dict(zip(item.crops, face, strict=True)) for face in zip(*item.crops.values(), strict=True)]
            frames.append(item._replace(crops={}))
            while len(waiting) >= batch:
                scores.append(score_crops(waiting[:batch], models, transforms, config.procedure))
                waiting = waiting[batch:]
            continue
        scores += [score_crops(waiting, models, transforms, config.procedure)] if waiting else []
        yield conclude(item, frames, {name: [p for s in scores for p in s[name]] for name in models}, config)
        frames, waiting, scores = [], [], []


def score_crops(
    crops: Sequence[dict[Cut, np.ndarray]],
    models: dict[str, DeepfakeClassifier],
    transforms: dict[int, Callable],
    procedure: str,
) -> dict[str, np.ndarray]:
    """p_fake (n,) of n crops by each model, each given with the margin and size that it goes with."""
    pictures = {
        cut: torch.stack([transforms[cut.size](image=face[cut])["image"] for face in crops]) for cut in crops[0]
    }
    return {name: model.predict(pictures[Cut.of(model, procedure)]).numpy() for name, model in models.items()}


def conclude(end: End, frames: list[Seen], scores: dict[str, list[float]], config: PredictConfig) -> Verdict:
    """Join everything that was seen of one video."""
    table, about = tabulate_faces(frames), {"strategy": config.strategy, "procedure": config.procedure}
    if table.empty:
        looked = bool(frames)
        status = "no_face" if looked and end.status in ("ok", "short") else end.status
        reason = f"no face in {len(frames)} frames" if status == "no_face" else end.reason
        return Verdict(end.video, status, None, len(frames), reason=reason, **about)
    faces = pd.concat([table.assign(checkpoint=name, p_fake=p) for name, p in scores.items()], ignore_index=True)
    return Verdict(end.video, end.status, join_models(faces, config.strategy), len(frames), faces, end.reason, **about)


def join_models(faces: pd.DataFrame, strategy: str) -> float:
    """`strategy` over all faces of all frames for each model, then the mean over models, as upstream does."""
    return float(join_videos(strategy, faces.p_fake.to_numpy(float), faces.checkpoint.to_numpy(str))[1].mean())


def tabulate_faces(frames: list[Seen]) -> pd.DataFrame:
    """One row a face: frame_idx, face_idx, box in pixels of the frame, the detector's score."""
    found = link_faces([seen.faces.scaled(1 / seen.height) for seen in frames], [seen.frame_idx for seen in frames])
    rows = [
        (seen.frame_idx, who, *box, score)
        for seen, people in zip(frames, found, strict=True)
        for who, box, score in zip(people, seen.faces.boxes, seen.faces.scores, strict=True)
    ]
    return pd.DataFrame(rows, columns=FACE_COLUMNS)
